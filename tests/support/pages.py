"""Pages of documentation, followed as a reader would: files are written, commands are typed, and
what a page shows as printed must be printed.

A page is Markdown. Its blocks, from top to bottom:

- `python`, `toml` or `ini`: a file, named by the comment on the first line (`# services/bank/…`).
- `console`: `$ ` begins a command; the lines below it are what it prints, or what the worker in the
  background prints meanwhile: whole lines, in their order. `…` stands for any text. A worker with
  `&` is waited for until it is ready. `export NAME=URL` takes a URL of a test server of the same
  scheme instead.
- `text` and `mermaid`: shown, and not run.

A block of any other kind, and a command that nobody knows how to run, fails the page's test.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

if TYPE_CHECKING:
    from tests.integration.conftest import Ended, Project, Running

ROOT = Path(__file__).parents[2]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILES = ("python", "toml", "ini")
_SHOWN = ("text", "mermaid")
_ANYTHING = "…"


@dataclass(frozen=True)
class Step:
    """A command of a console block, and the lines that are printed below it."""

    command: str
    output: list[str] = field(default_factory=list)


def steps(block: str) -> Iterator[Step]:
    """The commands of a console block, without their comments."""
    for part in re.split(r"^\$ ", block, flags=re.MULTILINE)[1:]:
        first, *output = part.splitlines()
        yield Step(first.partition("  #")[0].strip(), [line for line in output if line.strip()])


Said = TypeVar("Said", "Ended", "Running")


class Printed(Generic[Said]):
    """What a command prints, line by line: each line that a page shows comes after those before it.
    Its two streams have no common order."""

    def __init__(self, output: Said) -> None:
        self.output = output
        self._seen = [0, 0]

    def shows(self, line: str) -> bool:
        """Whether a whole line like this one has been printed, after those asked for before."""
        parts = map(re.escape, line.strip().split(_ANYTHING))
        whole = re.compile(rf"^[ \t]*{'.*'.join(parts)}[ \t]*\n", re.MULTILINE)
        for stream, text in enumerate((self.output.out, self.output.err)):
            if found := whole.search(text, self._seen[stream]):
                self._seen[stream] = found.end()
                return True
        return False


class Reader:
    """Follows a page in a project; `urls` are those of test servers, by their schemes."""

    def __init__(self, project: Project, urls: Mapping[str, str] | None = None) -> None:
        self.project = project
        self.urls = urls or {}
        self.workers: list[Printed[Running]] = []

    def read(self, page: str) -> None:
        """Do everything that the page says, then let the workers that it started drain."""
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
        """Write a file that is named on its first line."""
        named = re.match(r"# (\S+)\n", text)
        assert named, f"the first line does not say which file this is: {text!r}"
        self.project.write(named[1], text)

    def follow(self, block: str) -> None:
        """Type a console block line by line."""
        for step in steps(block):
            ended = self.type(step.command)
            command = Printed(ended) if ended is not None else None
            for line in step.output:
                if command is None or not command.shows(line):
                    assert self.workers, f"{line!r} was not printed by {step.command!r}: {ended}"
                    self._await(self.workers[-1], line)

    def _await(self, worker: Printed[Running], line: str) -> None:
        worker.output.until(lambda _: worker.shows(line), f"the line {line!r}")

    def type(self, command: str) -> Ended | None:
        """Run a command; what came of it, unless it goes on in the background."""
        match shlex.split(command.removesuffix("&")):
            case ["make", *arguments]:
                _make_takes(arguments)
            case ["export", setting]:
                name, _, value = setting.partition("=")
                scheme, has_scheme, _ = value.partition("://")
                self.project.environment[name] = self.urls[scheme] if has_scheme else value
            case ["eventmesh", "worker", *arguments] as whole:
                worker = self.project.start_program(*whole)
                self.workers.append(Printed(worker))
                count = re.search(r"--workers (\d+)", " ".join(arguments))
                worker.until_says("worker is ready", int(count[1]) if count else 1)
            case ["eventmesh", *arguments]:
                ended = self.project.run(*arguments)
                ended.succeeds()
                return ended
            case ["python", *_] as whole:
                ended = self.project.start_program(*whole).ended()
                ended.succeeds()
                return ended
            case _:
                raise AssertionError(f"no test knows how to run {command!r}")
        return None


def _make_takes(arguments: list[str]) -> None:
    """Check that make has these targets, without making them."""
    done = subprocess.run(  # noqa: S603
        ["make", "--dry-run", *arguments],  # noqa: S607
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
