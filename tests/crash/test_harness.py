"""What stands for a killed process leaves what one leaves."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tests.crash.points import Life
from tests.crash.virtual_loop import bury


async def test_what_is_dead_holds_no_lock_though_it_has_not_read_its_rows(tmp_path: Path) -> None:
    dead, other = (
        sqlite3.connect(tmp_path / "shop.db", isolation_level=None, timeout=0) for _ in range(2)
    )
    dead.execute("CREATE TABLE shop (number)")
    dead.execute("INSERT INTO shop VALUES (1), (2)")
    dead.execute("BEGIN IMMEDIATE")
    rows = dead.execute("SELECT number FROM shop")
    life = Life(connections=[dead], kept=[rows])
    bury(life)
    bury(life)  # which does no harm
    other.execute("BEGIN IMMEDIATE")
    other.close()
