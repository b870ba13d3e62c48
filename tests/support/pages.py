"""Runs pages of documentation as a reader would: it writes their files, runs their commands, and
checks that the commands print the output that the page shows.

A page is Markdown. Its blocks, from top to bottom:

- `python`, `toml` or `ini`: a file, named by the comment on the first line (`# services/bank/…`).
- `console`: `$ ` begins a command; the lines below it are its output, or that of the last worker in
  the background: whole lines, in order. `…` stands for any text. A worker runs in the background,
  and the next command runs when it is ready. A command that shows the state of the system is run
  again until it shows what the page says, because workers get there in their own time.
  `export NAME=URL` gets the URL of a test server of the same scheme instead.
- `text`, `mermaid`, and `sql` and `bash`, which are for servers: not run.

A block of any other kind fails the page's test, and so does an unknown command.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from tests.integration.conftest import Ended, Project, Running

ROOT = Path(__file__).parents[2]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILES = ("python", "toml", "ini")
_SHOWN = ("text", "mermaid", "sql", "bash")
_ANYTHING = "…"
_OF_STATE = (
    *("audit", "dlq list", "doctor", "saga list", "saga show"),
    *("status", "unrouted list", "why"),
)
"""The commands that change nothing and show what workers have done so far."""
_PATIENCE = 120.0
"""Seconds until a command has to show the state that its page says."""


@dataclass(frozen=True)
class Step:
    """A command of a console block, and the output lines below it."""

    command: str
    output: list[str] = field(default_factory=list)

    @property
    def shows_state(self) -> bool:
        """Whether the command changes nothing and shows what workers have done so far."""
        return self.command.startswith(tuple(f"eventmesh {name}" for name in _OF_STATE))


def steps(block: str) -> Iterator[Step]:
    """The commands of a console block, without their comments."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        first, *output = part.splitlines()
        yield Step(first.partition("  #")[0].strip(), [line for line in output if line.strip()])


Said = TypeVar("Said", "Ended", "Running")


class Printed(Generic[Said]):
    """The output of a command. The lines that a page shows must occur in order, but stdout and
    stderr have no common order."""

    def __init__(self, output: Said) -> None:
        self.output = output
        self._seen = [0, 0]

    def shows(self, line: str) -> bool:
        """Whether a whole line like this one was printed after the lines found before."""
        parts = map(re.escape, line.strip().split(_ANYTHING))
        whole = re.compile(rf"^[ \t]*{'.*'.join(parts)}[ \t]*\n", re.MULTILINE)
        for stream, text in enumerate((self.output.out, self.output.err)):
            if found := whole.search(text, self._seen[stream]):
                self._seen[stream] = found.end()
                return True
        return False


class Reader:
    """Runs a page in a project; `urls` are those of test servers, by scheme."""

    def __init__(self, project: Project, urls: Mapping[str, str] | None = None) -> None:
        self.project = project
        self.urls = urls or {}
        self.forks = True
        """Whether workers and programs are forked, which takes less time than starting them."""
        self.workers: list[Printed[Running]] = []

    def read(self, page: str) -> None:
        """Run all blocks of the page, then drain the workers that it started."""
        for kind, text in BLOCK.findall(page):
            if kind in _FILES:
                self.write(text)
            elif kind == "console":
                self.follow(text)
            else:
                assert kind in _SHOWN, f"no test knows what to do with a block of {kind!r}"
        for worker in self.workers:
            worker.output.drain()

    def write(self, text: str) -> None:
        """Write a file that its first line names."""
        named = re.match(r"# (\S+)\n", text)
        assert named, f"the first line does not name the file: {text!r}"
        self.project.write(named[1], text)

    def follow(self, block: str) -> None:
        """Run a console block line by line."""
        for step in steps(block):
            if step.shows_state:
                self._show_state(step)
                continue
            ended = self.type(step.command)
            command = Printed(ended) if ended is not None else None
            for line in step.output:
                if command is None or not command.shows(line):
                    assert self.workers, f"{line!r} was not printed by {step.command!r}: {ended}"
                    self._await(self.workers[-1], line)

    def _show_state(self, step: Step) -> None:
        _, *arguments = shlex.split(step.command)
        give_up = time.monotonic() + _PATIENCE
        while True:
            ended = self.project.run(*arguments)
            printed = Printed(ended)
            missing = [line for line in step.output if not printed.shows(line)]
            if not missing and ended.code == 0:
                return
            assert time.monotonic() < give_up, f"{step.command!r} did not show {missing}: {ended}"

    def _await(self, worker: Printed[Running], line: str) -> None:
        worker.output.until(lambda _: worker.shows(line), f"the line {line!r}")

    def type(self, command: str) -> Ended | None:
        """Run a command; returns its result, unless it runs in the background."""
        match shlex.split(command.removesuffix("&")):
            case ["make", *arguments]:
                _check_make_targets(arguments)
            case ["export", setting]:
                name, _, value = setting.partition("=")
                scheme, has_scheme, _ = value.partition("://")
                self.project.environment[name] = self.urls[scheme] if has_scheme else value
            case ["eventmesh", "worker", *arguments]:
                worker = self._start_worker(*arguments)
                self.workers.append(Printed(worker))
                count = re.search(r"--workers (\d+)", " ".join(arguments))
                worker.until_says("worker is ready", int(count[1]) if count else 1)
            case ["eventmesh", *arguments]:
                ended = self.project.run(*arguments)
                ended.succeeds()
                return ended
            case ["alembic", *arguments]:
                program = self.project.start_program(sys.executable, "-m", "alembic", *arguments)
                ended = program.ended()
                ended.succeeds()
                return ended
            case ["python", *arguments]:
                ended = self._start_file(*arguments).ended()
                ended.succeeds()
                return ended
            case ["pytest", *arguments]:
                ended = self.project.pytest(*arguments)
                ended.succeeds()
                return ended
            case _:
                raise AssertionError(f"no test knows how to run {command!r}")
        return None

    def _start_worker(self, *arguments: str) -> Running:
        if self.forks:
            return self.project.start_as_typed("worker", *arguments)
        return self.project.start_program("eventmesh", "worker", *arguments)

    def _start_file(self, *command: str) -> Running:
        if self.forks:
            return self.project.start_file(*command)
        return self.project.start_program("python", *command)


def _check_make_targets(arguments: list[str]) -> None:
    """Check that make has these targets, without running them."""
    done = subprocess.run(  # noqa: S603
        ["make", "--dry-run", *arguments],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=_PATIENCE,
    )
    assert done.returncode == 0, done.stderr
