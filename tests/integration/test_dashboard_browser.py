"""The dashboard in a real browser: live pages, forms, the keyboard, a phone.

EVENTMESH_TEST_SCREENSHOTS=FOLDER keeps pictures of the pages there.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from eventmesh.dashboard import Dashboard
from eventmesh.testing.servers import required
from eventmesh.transports.base import publish_or_raise
from services.demo.page import serving
from tests.support.browsers import DESKTOP, PHONE, Window, browser_missing, chromium
from tests.support.dashboards import NASTY, ServedMesh, bills, make_service, ordered
from tests.support.running_meshes import running_mesh

PAGES = (
    "/",
    "/dead-letters",
    "/dead-letters?subscription=shop.bill",
    "/subscription?name=shop.bill",
    "/outbox",
    "/outbox?service=shop",
    "/sagas",
    "/sagas?service=shop",
    "/topology",
    "/schemas",
    "/search",
    "/audit?run=1",
    "/actions",
)


@asynccontextmanager
async def served(tmp_path: Path) -> AsyncIterator[tuple[ServedMesh, str]]:
    """A mesh with dead letters and a saga, and the address of its pages."""
    urls = {"shop": f"sqlite+aiosqlite:///{tmp_path}/shop.db"}
    async with running_mesh([make_service()], "sqlite:///broker.db", urls, tmp_path) as running:
        mesh = ServedMesh(running.services, running.settings)
        async with mesh.broker() as transport:
            await publish_or_raise(transport, [ordered("o-1"), *bills(1, 2, 3)])
            await mesh.dead_letter(transport, bills(-1, -2, 2_000, customer=NASTY))
            app = Dashboard([mesh.service], settings=mesh.settings, interval=0.2)
            async with serving(app) as address:
                yield mesh, address


@pytest.fixture(scope="module")
def needs_browser() -> None:
    if (why := browser_missing()) is not None:
        if required("redis"):  # all that a run can need is required together
            pytest.fail(why, pytrace=False)
        pytest.skip(why)


@pytest.mark.usefixtures("needs_browser")
async def test_an_operator_works_with_the_pages_in_a_browser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with served(tmp_path) as (mesh, address):

        def until_live(window: Window) -> None:
            window.size(DESKTOP)
            window.open("/")
            window.sees("3 dead letters in shop.bill")
            window.run("document.querySelector('#s-shop\\\\.bill a').focus()")

        def from_overview_to_result(window: Window) -> None:
            window.sees("4 dead letters in shop.bill")  # without loading the page again
            focused = window.run("return document.activeElement.textContent")
            assert focused == "shop.bill"  # the keyboard's place stays while figures change
            window.open("/dead-letters?subscription=shop.bill")
            window.click("[data-select-all] input")
            checked = "return document.querySelectorAll('input[name=id]:checked').length"
            assert window.run(checked) == 4
            window.click("button[name=deed][value=discard]:not([form]).danger")
            window.sees("Nothing has been done yet")
            window.type("input[name=reason]", "tried in a browser")
            window.click("form.act button")
            window.sees("4 of 4 discarded")
            window.open("/actions")
            window.sees("tried in a browser")

        def everywhere(window: Window) -> None:
            for size in (DESKTOP, PHONE):
                window.size(size)
                for page in PAGES:
                    window.open(page)
                    assert window.run("return !!document.querySelector('main h1')"), page
                    assert not window.scrolls_sideways(), (page, size)
                    unlabelled = window.run(
                        "return [...document.querySelectorAll('input:not([type=hidden]), select, "
                        "textarea')].filter(e => !e.labels.length && !e.ariaLabel).length"
                    )
                    assert unlabelled == 0, page
                    uncaptioned = (
                        "return document.querySelectorAll('table:not(:has(caption))').length"
                    )
                    assert window.run(uncaptioned) == 0, page
            window.open("/")
            window.type("body", "\ue004")  # the tab key
            assert window.run("return document.activeElement.className") == "skip"
            assert window.complaints() == []

        with chromium(address) as window:
            await asyncio.to_thread(until_live, window)
            async with mesh.broker() as transport:
                await mesh.dead_letter(transport, bills(-5))
            if folder := os.environ.get("EVENTMESH_TEST_SCREENSHOTS"):
                await asyncio.to_thread(take_pictures, window, Path(folder))
            await asyncio.to_thread(from_overview_to_result, window)
            await asyncio.to_thread(everywhere, window)


def take_pictures(window: Window, folder: Path) -> None:
    """Pictures for the documentation."""
    window.open("/dead-letters?subscription=shop.bill")
    window.sees("By message and error")
    window.take_picture(folder / "dashboard-dead-letters.png")
    window.open("/sagas?service=shop")
    window.sees("shop.order")
    window.click("tbody th a")
    window.sees("Where it stands")
    window.take_picture(folder / "dashboard-saga.png")
    window.size(PHONE)
    window.dark(True)
    window.open("/")
    window.sees("Attention")
    window.take_picture(folder / "dashboard-phone.png")
    window.dark(False)
    window.size(DESKTOP)
    window.open("/")
    window.sees("Attention")
    window.run("document.querySelector('#s-shop\\\\.bill a').focus()")
