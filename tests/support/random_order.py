"""Runs tests in random order, so that a test that depends on another one is noticed.

    make test ARGS="--shuffle=7"

The same seed gives the same order. The files are shuffled, and the tests of each file, as far as
tests that share a fixture stay together: pytest sorts them by it afterwards. A server would
otherwise be started for almost every test.
"""

from __future__ import annotations

import random

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--shuffle", metavar="SEED", default=None, help="run tests in the random order of this seed"
    )


def pytest_report_header(config: pytest.Config) -> str | None:
    seed = config.option.shuffle
    return None if seed is None else f"random order: --shuffle={seed}"


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.option.shuffle is not None:
        items[:] = in_random_order(items, config.option.shuffle)


def in_random_order(items: list[pytest.Item], seed: str) -> list[pytest.Item]:
    by_file: dict[str, list[pytest.Item]] = {}
    for item in items:
        by_file.setdefault(item.nodeid.partition("::")[0], []).append(item)
    chance = random.Random(seed)  # noqa: S311  # the same each time
    files = list(by_file.values())
    chance.shuffle(files)
    for each in files:
        chance.shuffle(each)
    return [item for each in files for item in each]
