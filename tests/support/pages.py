"""Pages of documentation, followed as a reader would: files are written, commands are typed, and
what a page shows as printed must be printed.

A page is Markdown. Its blocks, from top to bottom:

- `python`, `toml` or `ini`: a file, named by the comment on the first line (`# services/bank/…`).
- `console`: `$ ` begins a command; the lines below it are what it prints, or what the worker in the
  background prints meanwhile. `…` stands for any text. A worker with `&` is waited for until it is
  ready. `export NAME=URL` takes a test server's URL of the same scheme instead.
- `text`: shown, and not run.

A block of any other kind, and a command that nobody knows how to run, fails the page's test.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tests.integration.conftest import Ended, Project, Running

ROOT = Path(__file__).parents[2]

BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_FILES = ("python", "toml", "ini")
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


class Reader:
    """Follows a page in a project; `urls` are those of test servers, by their schemes."""

    def __init__(self, project: Project, urls: Mapping[str, str] | None = None) -> None:
        self.project = project
        self.urls = urls or {}
        self.workers: list[Running] = []

    def read(self, page: str) -> None:
        """Do everything that the page says, then let the workers that it started drain."""
        for kind, text in BLOCK.findall(page):
            if kind in _FILES:
                self.write(text)
            elif kind == "console":
                self.follow(text)
            else:
                assert kind == "text", f"no test knows what to do with a block of {kind!r}"
        for worker in self.workers:
            worker.drain()

    def write(self, text: str) -> None:
        """Write a file that is named on its first line."""
        named = re.match(r"# (\S+)\n", text)
        assert named, f"the first line does not say which file this is: {text!r}"
        self.project.write(named[1], text)

    def follow(self, block: str) -> None:
        """Type a console block line by line."""
        for step in steps(block):
            ended = self.type(step.command)
            for line in step.output:
                self._expect(line, ended)

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
                self.workers.append(worker)
                count = re.search(r"--workers (\d+)", " ".join(arguments))
                worker.until_says("worker is ready", int(count[1]) if count else 1)
            case ["eventmesh" | "python", *_] as whole:
                ended = self.project.start_program(*whole).ended()
                ended.succeeds()
                return ended
            case _:
                raise AssertionError(f"no test knows how to run {command!r}")
        return None

    def _expect(self, line: str, ended: Ended | None) -> None:
        """The line was printed by the command, or is by the worker that was started last."""
        pattern = re.compile(".*".join(re.escape(part) for part in line.strip().split(_ANYTHING)))
        if ended is not None and pattern.search(ended.said):
            return
        assert self.workers, f"{line!r} was not printed, but {ended.said if ended else ''!r}"
        self.workers[-1].until(lambda said: bool(pattern.search(said)), f"{line!r} printed")


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
