from __future__ import annotations

import pytest

from services.demo.progress import ProgressLines


@pytest.mark.parametrize("total", [1, 7, 10, 1000])
def test_each_tenth_is_printed_once(total: int) -> None:
    lines = ProgressLines(total)
    lines = [line for ended in range(total + 1) for _ in range(2) if (line := lines.line(ended))]
    assert len(lines) == min(total, 10)
    assert lines[-1] == f"orders ended: {total} of {total}"


def test_several_tenths_at_once_are_one_line() -> None:
    lines = ProgressLines(100)
    assert lines.line(35) == "orders ended: 35 of 100"
    assert lines.line(39) is None
    assert lines.line(100) == "orders ended: 100 of 100"
