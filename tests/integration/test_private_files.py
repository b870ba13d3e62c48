"""Files that EventMesh creates in a project are private to its user; existing ones keep their
mode."""

from __future__ import annotations

import fcntl
import os
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from eventmesh.private_files import make_private_file

if TYPE_CHECKING:
    from tests.integration.conftest import Project

SQLITE = {name + end for name in ("broker.db", "bank.db") for end in ("", "-wal", "-shm")}

WITH_UMASK = """
import os
import sys

from eventmesh.cli.main import main

os.umask(int(sys.argv[1], 8))
sys.argv = ["eventmesh", "worker", "bank", "--no-supervise"]
main()
"""
"""A worker with this umask."""


def modes(folder: Path) -> dict[str, str]:
    return {path.name: f"{path.stat().st_mode & 0o777:o}" for path in sorted(folder.iterdir())}


def modes_while_a_worker_runs(project: Project, umask: str, **environment: str) -> dict[str, str]:
    """Run a worker; returns the modes of the files in `.eventmesh/` meanwhile."""
    project.write("with_umask.py", WITH_UMASK)
    worker = project.start_file("with_umask.py", umask, **environment)
    worker.until_says("worker is ready")
    found = modes(project.root / ".eventmesh")
    worker.drain()
    return found


@pytest.mark.parametrize("umask", ["022", "000"])
def test_created_files_are_private_whatever_the_umask(bank: Project, umask: str) -> None:
    assert modes_while_a_worker_runs(bank, umask) == dict.fromkeys(SQLITE, "600")
    assert f"{(bank.root / '.eventmesh').stat().st_mode & 0o777:o}" == "700"


def test_every_created_folder_of_a_path_is_private(bank: Project) -> None:
    bank.environment["EVENTMESH_BANK_DATABASE_URL"] = "sqlite:///data/of/bank.db"
    modes_while_a_worker_runs(bank, "000")
    for folder in ("data", "data/of"):
        assert f"{(bank.root / folder).stat().st_mode & 0o777:o}" == "700"
    assert set(modes(bank.root / "data/of").values()) == {"600"}


def test_existing_files_and_folders_keep_their_mode(bank: Project) -> None:
    folder = bank.root / ".eventmesh"
    folder.mkdir(mode=0o755)
    folder.chmod(0o755)
    (folder / "bank.db").touch()
    (folder / "bank.db").chmod(0o664)
    found = modes_while_a_worker_runs(bank, "022")
    assert {found[f"bank.db{end}"] for end in ("", "-wal", "-shm")} == {"664"}
    assert {found[f"broker.db{end}"] for end in ("", "-wal", "-shm")} == {"600"}
    assert f"{folder.stat().st_mode & 0o777:o}" == "755"


def test_leftover_files_of_a_deleted_database_are_removed_before_a_new_one_is_created(
    tmp_path: Path,
) -> None:
    for name in ("bank.db-wal", "bank.db-shm", "bank.db-journal", "other.db-wal"):
        (tmp_path / name).touch()
    make_private_file(tmp_path / "bank.db")
    assert modes(tmp_path).keys() == {"bank.db", "other.db-wal"}


def test_files_of_a_database_that_another_process_just_created_are_not_deleted(
    tmp_path: Path,
) -> None:
    folder = os.open(tmp_path, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    slower = threading.Thread(target=make_private_file, args=[tmp_path / "bank.db"])
    slower.start()
    for name in ("bank.db", "bank.db-wal"):
        (tmp_path / name).touch()
    os.close(folder)
    slower.join()
    assert modes(tmp_path).keys() == {"bank.db", "bank.db-wal"}
