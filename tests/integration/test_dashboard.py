"""The dashboard's pages and actions, on real brokers and databases."""

from __future__ import annotations

import re
import uuid
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import Mount

from eventmesh import Settings
from eventmesh.dashboard import Dashboard, User
from tests.support.dashboards import (
    Browser,
    ServedMesh,
    bills,
    browsing,
    is_own,
    make_service,
    migrated,
)

VIEWER = User("eve", "viewer")

MakeMesh = Callable[..., Awaitable[ServedMesh]]


@pytest.fixture
async def make_mesh(durable_url: Callable[[str], str], database_url: str, tmp_path: Path) -> Any:
    meshes: list[ServedMesh] = []

    async def make(broker: str, **changes: Any) -> ServedMesh:
        await migrated(database_url)
        settings = Settings(
            **{
                "broker_url": durable_url(broker) if "://" not in broker else broker,
                "broker_prefix": f"t{uuid.uuid4().hex[:12]}",
                "database_urls": {"shop": database_url},
                "schemas": tmp_path / "schemas",
                **changes,
            }
        )
        service = make_service()
        service.configure(settings)
        meshes.append(ServedMesh(service, settings))
        return meshes[-1]

    yield make
    for mesh in meshes:
        await mesh.service.close()


ON_EACH_BROKER = pytest.mark.parametrize(
    ("broker", "database_url"),
    [("sqlite", "sqlite"), ("redis", "postgres"), ("amqp", "mariadb")],
    indirect=["database_url"],
)
ON_SQLITE = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


def app_of(mesh: ServedMesh, **options: Any) -> Dashboard:
    return Dashboard([mesh.service], settings=mesh.settings, **options)


async def as_viewer(_: HTTPConnection) -> User:
    return VIEWER


@ON_EACH_BROKER
async def test_the_overview_shows_what_waits(make_mesh: MakeMesh, broker: str) -> None:
    mesh = await make_mesh(broker)
    async with mesh.broker() as transport:
        await mesh.dead_letter(transport, bills(-1, -2))
        async with browsing(app_of(mesh)) as browser:
            page = await browser.text("/")
    assert "2 dead letters in shop.bill" in page
    assert "shop.count" in page
    for address in re.findall(r'(?:href|src|action)="([^"]+)"', page):
        assert is_own(address)


@ON_SQLITE
async def test_a_page_is_there_while_its_servers_are_away(make_mesh: MakeMesh) -> None:
    away = "postgresql://nobody@127.0.0.1:1/none"
    mesh = await make_mesh("redis://127.0.0.1:1", database_urls={"shop": away})
    async with browsing(app_of(mesh)) as browser:
        page = await browser.text("/")
    assert "unknown" in page
    assert page.count("does not answer") >= 2


@ON_SQLITE
async def test_nothing_is_served_to_other_machines_without_authentication(
    make_mesh: MakeMesh,
) -> None:
    mesh = await make_mesh("sqlite")
    async with app_of(mesh) as app:
        for browser in (
            Browser(app, client="10.0.0.3"),
            Browser(app, origin="http://evil.example:8088"),
        ):
            for path in ("/", "/static/style.css", "/events?view=overview", "/nothing"):
                response = await browser.get(path)
                assert response.status_code == 403, path
                assert "EventMesh" not in response.text


@ON_SQLITE
async def test_every_answer_has_the_headers_that_keep_a_browser_safe(make_mesh: MakeMesh) -> None:
    mesh = await make_mesh("sqlite")
    async with browsing(app_of(mesh)) as browser:
        page = await browser.get("/")
        for path in ("/", "/static/dashboard.js", "/nothing"):
            response = await browser.get(path)
            policy = response.headers["content-security-policy"]
            assert policy.startswith("default-src 'none'; script-src 'self'")
            assert "unsafe" not in policy
            assert response.headers["cache-control"] == "no-store"
        assert not re.search(r"\son\w+=|\sstyle=|<style|<script(?! defer src=)", page.text)
        cookie = page.headers["set-cookie"].lower()
        assert "httponly" in cookie
        assert "samesite=strict" in cookie


@ON_SQLITE
async def test_who_is_not_logged_in_sees_nothing(make_mesh: MakeMesh) -> None:
    async def nobody(_: HTTPConnection) -> None:
        return None

    mesh = await make_mesh("sqlite")
    async with browsing(app_of(mesh, authenticate=nobody)) as browser:
        assert (await browser.get("/")).status_code == 401
        assert (await browser.get("/static/style.css")).status_code == 401


@ON_SQLITE
async def test_it_can_be_mounted_anywhere(make_mesh: MakeMesh) -> None:
    mesh = await make_mesh("sqlite")
    app = app_of(mesh, authenticate=as_viewer)
    outer = Starlette(routes=[Mount("/ops/mesh", app)])
    async with app:
        browser = Browser(outer, origin="http://shop.example")
        async with browser.http:
            page = await browser.get("/ops/mesh/")
            assert page.status_code == 200
            for address in re.findall(r'(?:href|src|action)="([^"#]+)"', page.text):
                assert address.startswith("/ops/mesh/")
            assert (await browser.get("/ops/mesh/static/style.css")).status_code == 200
            assert "path=/ops/mesh" in page.headers["set-cookie"].lower()
