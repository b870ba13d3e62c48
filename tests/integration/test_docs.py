"""docs/: the commands of every page are run from top to bottom, and its links are checked."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from eventmesh.testing.servers import Server
from tests.integration.conftest import Ended, Project
from tests.support.pages import BLOCK, ROOT, Printed, Reader

DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
SERVICE, SEND = (
    text for kind, text in BLOCK.findall((ROOT / "README.md").read_text()) if kind == "python"
)

each_page = pytest.mark.parametrize(
    "page", PAGES, ids=[str(path.relative_to(DOCS).with_suffix("")) for path in PAGES]
)
NEWCOMERS = [ROOT / f"{name}.md" for name in ("README", "CONTRIBUTING", "CHANGELOG", "SECURITY")]


@pytest.fixture
def reader(project: Project, request: pytest.FixtureRequest) -> Callable[[str], Reader]:
    """A reader who has written the README's two files, and has the servers that a page needs."""
    project.write("services/bank/service.py", SERVICE)
    project.write("send.py", SEND)

    def make(text: str) -> Reader:
        urls = {}
        if "=postgresql://" in text:
            urls["postgresql"] = request.getfixturevalue("postgres_url").replace("+asyncpg", "")
        if "=mariadb://" in text:
            urls["mariadb"] = request.getfixturevalue("mariadb_url").replace("+asyncmy", "")
        for scheme, fixture in (("amqp", "rabbitmq_server"), ("redis", "redis_server")):
            if f"={scheme}://" in text:
                server: Server = request.getfixturevalue(fixture)
                urls[scheme] = server.url
        return Reader(project, urls)

    return make


@each_page
def test_the_commands_of_the_page_work_as_it_shows(
    page: str, reader: Callable[[str], Reader]
) -> None:
    text = (DOCS / page).read_text(encoding="utf-8")
    assert text.count("```") == 2 * len(BLOCK.findall(text))
    reader(text).read(text)


@pytest.mark.parametrize("page", [*PAGES, *NEWCOMERS], ids=lambda page: page.stem)
def test_the_links_of_the_page_have_targets(page: Path) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, heading = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        assert not heading or heading in headings(target), link


def headings(page: Path) -> set[str]:
    """What links to the headings of a page call them."""
    text = BLOCK.sub("", page.read_text(encoding="utf-8"))
    titles = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


def links(page: Path) -> list[str]:
    """The targets of a page's links, as they are written."""
    return re.findall(r"\]\(([^)]+)\)", BLOCK.sub("", page.read_text(encoding="utf-8")))


def test_a_shown_line_must_be_a_whole_line_after_the_lines_shown_before() -> None:
    printed = Printed(Ended(0, "10 letters\n0 letters\nada has 1\n", "warning\n"))
    shown = ["0 letters", "warning", "10 letters", "ada …", "ada …"]
    assert [printed.shows(line) for line in shown] == [True, True, False, True, False]


def test_readme_and_index_link_every_page_and_the_list_of_decisions_every_record() -> None:
    for page, prefix, named_by in (
        (DOCS, "docs/", ROOT / "README.md"),
        (DOCS, "", DOCS / "README.md"),
        (DOCS / "decisions", "", DOCS / "decisions" / "README.md"),
    ):
        named = links(named_by)
        pages = [path.name for path in page.glob("*.md") if path.name != "README.md"]
        assert [name for name in pages if f"{prefix}{name}" not in named] == []
