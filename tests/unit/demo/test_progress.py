from __future__ import annotations

import pytest

from services.demo.progress import Tenths


@pytest.mark.parametrize("total", [1, 7, 10, 1000])
def test_every_tenth_is_said_once(total: int) -> None:
    tenths = Tenths(total)
    lines = [line for ended in range(total + 1) for _ in range(2) if (line := tenths.line(ended))]
    assert len(lines) == min(total, 10)
    assert lines[-1] == f"orders ended: {total} of {total}"


def test_tenths_that_are_passed_at_once_are_one_line() -> None:
    tenths = Tenths(100)
    assert tenths.line(35) == "orders ended: 35 of 100"
    assert tenths.line(39) is None
    assert tenths.line(100) == "orders ended: 100 of 100"
