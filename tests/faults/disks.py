"""Small disks that a test can fill: file systems in memory, where mounting is allowed."""

from __future__ import annotations

import errno
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

BALLAST = "ballast"
CHUNK = 65_536


class NoDisk(Exception):
    """Mounting is not allowed here."""


@contextmanager
def small_disk(megabytes: int) -> Iterator[Path]:
    """A folder on a file system of its own, accessible to every user; NoDisk if not allowed."""
    with tempfile.TemporaryDirectory(prefix="eventmesh-disk-") as name:
        Path(name).chmod(0o755)
        with mounted(Path(name) / "disk", megabytes) as folder:
            yield folder


@contextmanager
def mounted(folder: Path, megabytes: int) -> Iterator[Path]:
    folder.mkdir()
    options = f"size={megabytes}m"
    mounting = subprocess.run(  # noqa: S603 - our own command line
        ["mount", "-t", "tmpfs", "-o", options, "eventmesh-tests", str(folder)],  # noqa: S607
        capture_output=True,
        text=True,
        check=False,
    )
    if mounting.returncode:
        raise NoDisk(f"a small disk cannot be mounted: {mounting.stderr.strip()}")
    try:
        yield folder
    finally:
        # --lazy, because a process may still have a file open there.
        subprocess.run(["umount", "--lazy", str(folder)], check=True)  # noqa: S603, S607


@contextmanager
def full(disk: Path) -> Iterator[None]:
    """While the context is open, the disk is full to the last byte."""
    ballast = disk / BALLAST
    fill(ballast)
    try:
        yield
    finally:
        ballast.unlink()


def fill(ballast: Path) -> None:
    with ballast.open("ab", buffering=0) as file:
        for size in (CHUNK, 1):
            try:
                while file.write(b"\0" * size):
                    pass
            except OSError as error:
                if error.errno != errno.ENOSPC:
                    raise
        os.fsync(file.fileno())
