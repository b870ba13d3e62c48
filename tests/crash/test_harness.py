"""A simulated kill leaves the same state as a real one."""

from __future__ import annotations

import sqlite3
from pathlib import Path

from tests.crash.crash_points import WorkerRun
from tests.crash.virtual_loop import close_connections


async def test_a_dead_worker_holds_no_lock_even_with_unread_rows(tmp_path: Path) -> None:
    dead, other = (
        sqlite3.connect(tmp_path / "shop.db", isolation_level=None, timeout=0) for _ in range(2)
    )
    dead.execute("CREATE TABLE shop (number)")
    dead.execute("INSERT INTO shop VALUES (1), (2)")
    dead.execute("BEGIN IMMEDIATE")
    rows = dead.execute("SELECT number FROM shop")
    run = WorkerRun(connections=[dead], kept=[rows])
    close_connections(run)
    close_connections(run)  # is idempotent
    other.execute("BEGIN IMMEDIATE")
    other.close()
