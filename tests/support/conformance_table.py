"""The table of what came out of the guarantees that transports keep.

It is written to `build/conformance.md` at the end of a run: a column for each broker with the
version that it says of itself, a row for each guarantee. With pytest-xdist, the process that gets
all reports runs no test, so it does not load the `conftest.py` of the tests of guarantees.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

TABLE = Path(__file__).parents[2] / "build" / "conformance.md"

BROKER, GUARANTEE = "conformance broker", "conformance guarantee"
"""The properties of a test's report that place it in the table."""


class Table:
    """Collects what came out of the tests, and writes it at the end."""

    def __init__(self) -> None:
        self.results: dict[str, dict[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties)
        if BROKER in properties and (report.when == "call" or not report.passed):
            column = self.results.setdefault(str(properties[BROKER]), {})
            column[str(properties[GUARANTEE])] = _word(report)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self.results and not hasattr(session.config, "workerinput"):
            TABLE.parent.mkdir(exist_ok=True)
            TABLE.write_text(written(self.results))


def written(results: dict[str, dict[str, str]]) -> str:
    """The results as a table in Markdown."""
    from eventmesh.testing.conformance import GUARANTEES  # only where there are results

    rows: list[Sequence[str]] = [
        ["guarantee", *results],
        ["---", *("---" for _ in results)],
        *(
            [
                guarantee.__name__.replace("_", " "),
                *(column.get(guarantee.__name__, "") for column in results.values()),
            ]
            for guarantee in GUARANTEES
        ),
    ]
    return "".join(f"| {' | '.join(row)} |\n" for row in rows)


def _word(report: pytest.TestReport) -> str:
    if report.passed:
        return "pass"
    if report.failed:
        return "**FAIL**"
    return "n/a" if "not applicable" in report.longreprtext else "skip"
