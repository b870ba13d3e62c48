"""A program in a process of its own, looked at from outside."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

PATIENCE = 60.0
"""Seconds within which a program says what is waited for."""

POLL_INTERVAL = 0.02


class Program:
    """A running program, its output in a file."""

    def __init__(self, process: subprocess.Popen[bytes], output: Path) -> None:
        self._process = process
        self._output = output

    @property
    def said(self) -> str:
        return self._output.read_text()

    def until_it_says(self, text: str, times: int = 1, patience: float = PATIENCE) -> None:
        """Wait for its output; RuntimeError when it ends before, or takes too long."""
        deadline = time.perf_counter() + patience
        while self.said.count(text) < times:
            if self._process.poll() is not None or time.perf_counter() > deadline:
                raise RuntimeError(f"a program did not say {text!r}: {self.said[-2000:]}")
            time.sleep(POLL_INTERVAL)

    def kill(self) -> None:
        """End it by SIGKILL; returns when it is gone."""
        self._process.kill()
        self._process.wait()

    def cpu_seconds(self) -> float:
        """User and system time so far."""
        stat = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(stat[11]) + int(stat[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self) -> int:
        """Memory that it holds now."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def running(
    command: Sequence[str], folder: Path, environment: Mapping[str, str]
) -> Iterator[Program]:
    """The program, run in the folder, and ended on leaving."""
    output = folder / "output"
    with output.open("wb") as file:
        process = subprocess.Popen(  # noqa: S603  # our own programs
            list(command),
            cwd=folder,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        yield Program(process, output)
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
