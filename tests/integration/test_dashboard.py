"""The dashboard's pages and actions, on real brokers and databases."""

from __future__ import annotations

import asyncio
import base64
import json
import re
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from html import unescape
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from starlette.applications import Starlette
from starlette.requests import HTTPConnection
from starlette.routing import Mount, Route
from structlog.testing import capture_logs
from typer.testing import CliRunner

from eventmesh import Reject, Service, Transaction
from eventmesh.cli.main import app as cli
from eventmesh.contracts.locks.freezing import freeze
from eventmesh.dashboard import Dashboard, User
from eventmesh.errors import UsageError
from eventmesh.operations.action_log import newest_actions, operator_of_machine
from eventmesh.operations.reach import Reach
from eventmesh.operations.status import mesh_status
from eventmesh.persistence import pauses
from eventmesh.persistence.tables import outbox
from eventmesh.transports.base import Subscription, Transport, publish_or_raise
from eventmesh.transports.outcome import Dead
from eventmesh.wire.envelope import Envelope, seal
from services.demo.page import serving
from tests.support.dashboards import (
    CLOCK,
    NASTY,
    Bill,
    Billed,
    Browser,
    ServedMesh,
    Viewed,
    bills,
    browsing,
    hidden_field,
    is_own,
    make_service,
    ordered,
)
from tests.support.running_meshes import running_mesh, until

VIEWER = User("eve", "viewer")

MakeMesh = Callable[..., Awaitable[ServedMesh]]


@pytest.fixture
async def make_mesh(durable_url: Callable[[str], str], database_url: str, tmp_path: Path) -> Any:
    stack = AsyncExitStack()

    async def make(broker: str, **changes: Any) -> ServedMesh:
        url = durable_url(broker) if "://" not in broker else broker
        made = running_mesh([make_service()], url, {"shop": database_url}, tmp_path, **changes)
        running = await stack.enter_async_context(made)
        return ServedMesh(running.services, running.settings)

    async with stack:
        yield make


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


@ON_SQLITE
async def test_the_overview_shows_what_waits(make_mesh: MakeMesh) -> None:
    mesh = await make_mesh("sqlite")
    async with mesh.broker() as transport:
        await mesh.dead_letter(transport, bills(-1, -2))
        async with browsing(app_of(mesh)) as browser:
            page = await browser.text("/")
    assert "2 dead letters in shop.bill" in page
    assert "shop.count" in page
    for address in re.findall(r'(?:href|src|action)="([^"]+)"', page):
        assert is_own(address)


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


async def one_listed(browser: Browser, subscription: str = "shop.bill") -> tuple[str, str]:
    """The id of the list that is read now, and the page."""
    response = await browser.http.get(
        "/dead-letters", params={"subscription": subscription}, follow_redirects=True
    )
    assert response.status_code == 200, response.text
    return str(response.url.params["list"]), response.text


def ids_in(page: str) -> list[str]:
    return re.findall(r'name="id" value="([^"]+)"', page)


@ON_EACH_BROKER
async def test_a_frozen_selection_is_replayed_and_recorded(
    make_mesh: MakeMesh, broker: str
) -> None:
    mesh = await make_mesh(broker)
    subscription = mesh.service.handlers["shop.bill"].subscription
    async with mesh.broker() as transport, browsing(app_of(mesh)) as browser:
        await mesh.dead_letter(transport, bills(-1, -2, 2_000))
        listed, page = await one_listed(browser)
        assert len(ids_in(page)) == 3
        assert "negative: ada" in page
        assert "ValueError: too much" in page
        group = {"subscription": "shop.bill", "list": listed, "group": 0}
        review = await browser.text("/dead-letters/review", **group, deed="discard")
        assert "Nothing has been done yet" in review
        await mesh.dead_letter(transport, bills(-3))  # comes meanwhile, and stays

        fields = {"selection": hidden_field(review, "selection"), "deed": "discard"}
        assert "2 of 2 discarded" in await browser.act({**fields, "reason": "a wrong form"})
        await until_counted(transport, subscription, dead=2)

        again = await browser.act(fields)  # as a second operator
        assert "0 of 2 discarded" in again
        assert "2 were not there any more" in again

        checked = ids_in((await one_listed(browser))[1])[:1]
        listed, _ = await one_listed(browser)
        review = await browser.text(
            "/dead-letters/review",
            subscription="shop.bill",
            list=listed,
            only="checked",
            id=checked,
            deed="replay",
        )
        fields = {"selection": hidden_field(review, "selection"), "deed": "replay"}
        assert "1 of 1 replayed" in await browser.act(fields)
        await until_counted(transport, subscription, dead=1, ready=1)
        log = await browser.text("/actions")
    assert "a wrong form" in log
    assert "2 of 2 discarded" in log
    assert "0 of 2 discarded; 2 were not there any more" in log


@ON_EACH_BROKER
async def test_an_edited_dead_letter_is_checked_and_then_takes_effect(
    make_mesh: MakeMesh, broker: str
) -> None:
    mesh = await make_mesh(broker)
    subscription = mesh.service.handlers["shop.bill"].subscription
    async with mesh.broker() as transport, browsing(app_of(mesh)) as browser:
        await mesh.dead_letter(transport, bills(-1, customer=NASTY))
        [letter_id] = ids_in((await one_listed(browser))[1])
        where = {"subscription": "shop.bill", "id": letter_id}
        page = await browser.text("/dead-letters/letter", **where)
        text = unescape(re.search(r"<textarea[^>]*>\n(.*?)</textarea>", page, re.DOTALL)[1])  # type: ignore[index]
        assert json.loads(text) == {"customer": NASTY, "cents": -1}

        wrong = await browser.post("/dead-letters/edit", {**where, "data": '{"cents":"many"}'})
        assert wrong.status_code == 422
        assert "Not replayed" in wrong.text
        assert "many" in wrong.text
        await until_counted(transport, subscription, dead=1)

        data = text.replace("-1", "5")
        assert (
            await browser.post("/dead-letters/edit", {**where, "data": data})
        ).status_code == 200
        twice = await browser.post("/dead-letters/edit", {**where, "data": data})
        assert twice.status_code == 404
        assert "somebody has replayed or discarded it" in twice.text
        async with mesh.worker(transport):
            async with asyncio.timeout(60):
                while (await transport.stats(subscription)).ready or not await handled(mesh):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        await until_counted(transport, subscription, dead=0)


async def until_counted(transport: Transport, subscription: Subscription, **numbers: int) -> None:
    """Wait until the broker counts so many. RabbitMQ counts letters again only some time after they
    were listed."""

    async def are_counted() -> bool:
        stats = await transport.stats(subscription)
        return all(getattr(stats, name) == number for name, number in numbers.items())

    await until(are_counted)


async def handled(mesh: ServedMesh) -> int:
    async with Reach([mesh.service], mesh.settings, CLOCK) as reach:
        status = await mesh_status(reach)
    return round(60 * (status.subscriptions[0].rate or 0))


@ON_EACH_BROKER
async def test_two_operators_replay_the_same_dead_letters_at_once(
    make_mesh: MakeMesh, broker: str
) -> None:
    mesh = await make_mesh(broker)
    subscription = mesh.service.handlers["shop.bill"].subscription
    async with mesh.broker() as transport, app_of(mesh) as app:
        await mesh.dead_letter(transport, bills(*range(-20, 0)))
        operators = [Browser(app), Browser(app)]
        forms = []
        for browser in operators:
            listed, _ = await one_listed(browser)
            review = await browser.text(
                "/dead-letters/review", subscription="shop.bill", list=listed, deed="replay"
            )
            forms.append({"selection": hidden_field(review, "selection"), "deed": "replay"})
        pages = await asyncio.gather(
            *(browser.act(form) for browser, form in zip(operators, forms, strict=True))
        )
        done = [re.search(r"(\d+) of 20 replayed", page)[1] for page in pages]  # type: ignore[index]
        assert sum(map(int, done)) == 20
        await until_counted(transport, subscription, ready=20)
        for browser in operators:
            await browser.http.aclose()


@ON_SQLITE
async def test_ten_thousand_dead_letters_stay_usable(make_mesh: MakeMesh) -> None:
    mesh = await make_mesh("sqlite")
    [handler] = [
        each for each in mesh.service.handlers.values() if "bill" in each.subscription.name
    ]
    many = bills(*[-1] * 10_000)
    async with mesh.broker() as transport, browsing(app_of(mesh)) as browser:
        await publish_or_raise(transport, many)
        async with transport.consume(handler.subscription, prefetch=1_000) as consumer:
            left = len(many)
            while left:
                deliveries = await consumer.receive(1_000)
                await consumer.settle([(each, Dead("refused", "")) for each in deliveries])
                left -= len(deliveries)
        listed, page = await one_listed(browser)
        assert len(ids_in(page)) == 100
        assert len(page) < 200_000
        assert "Page 1 of 100" in page
        last = await browser.text(
            "/dead-letters", subscription="shop.bill", list=listed, page="100"
        )
        assert len(ids_in(last)) == 100
        review = await browser.text(
            "/dead-letters/review", subscription="shop.bill", list=listed, deed="discard"
        )
        fields = {"selection": hidden_field(review, "selection"), "deed": "discard"}
        assert "10,000 of 10,000 discarded" in await browser.act(fields)
        assert (await transport.stats(handler.subscription)).dead == 0


@ON_EACH_BROKER
async def test_a_subscription_is_paused_and_resumed(make_mesh: MakeMesh, broker: str) -> None:
    mesh = await make_mesh(broker)
    name = {"name": "shop.bill"}
    async with browsing(app_of(mesh, interval=0.02)) as browser:
        answer = await browser.post("/subscription/pause", name)
        assert answer.status_code == 200
        assert answer.url.path == "/subscription"
        again = await browser.post("/subscription/pause", name)
        assert again.status_code == 409
        assert "shop.bill is paused already" in again.text

        async def is_shown() -> bool:
            return "shop.bill is paused since " in await browser.text("/")

        await until(is_shown)
        page = await browser.text("/subscription", name="shop.bill")
        assert f"by {operator_of_machine()}: a test" in page
        answer = await browser.post("/subscription/resume", name)
        assert answer.status_code == 200
        again = await browser.post("/subscription/resume", name)
        assert "shop.bill is not paused" in again.text
        log = await browser.text("/actions")
    assert "nothing changed" in log
    async with (await mesh.service.database()).reading() as connection:
        assert await connection.run_sync(pauses.paused) == {}


ACTIONS = [
    "/dead-letters/act",
    "/dead-letters/edit",
    "/outbox/retry",
    "/outbox/skip",
    "/sagas/operate",
    "/subscription/pause",
    "/subscription/resume",
]


@ON_SQLITE
async def test_every_action_needs_an_operator_a_token_an_origin_and_a_reason(
    make_mesh: MakeMesh,
) -> None:
    mesh = await make_mesh("sqlite")
    async with browsing(app_of(mesh, authenticate=as_viewer)) as browser:
        for path in ACTIONS:
            response = await browser.post(path, {})
            assert response.status_code == 403, path
            assert "has the role viewer" in response.text
    app = app_of(mesh)
    posting = {
        route.path
        for route in app._app.routes
        if isinstance(route, Route) and "POST" in (route.methods or ())
    }
    assert posting == set(ACTIONS)  # or this test would miss one
    async with browsing(app) as browser:
        for path in ACTIONS:
            for fields, headers, code in (
                ({"token": ""}, {}, 403),
                ({"token": "0" * 64}, {}, 403),
                ({}, {"origin": "http://evil.example"}, 403),
                ({}, {"sec-fetch-site": "cross-site"}, 403),
                ({"reason": " "}, {}, 400),
                ({"reason": "x" * 1_001}, {}, 400),
                ({"reason": "x\0"}, {}, 400),
                ({"data": "x" * 4_000_000}, {}, 413),
            ):
                response = await browser.post(path, fields, **headers)
                assert response.status_code == code, (path, fields, headers)
            browser.http.cookies.clear()
        assert "Nobody has done anything" in await browser.text("/actions")


@ON_SQLITE
async def test_what_a_viewer_sees_has_no_form_that_acts(make_mesh: MakeMesh) -> None:
    mesh = await make_mesh("sqlite")
    async with mesh.broker() as transport:
        await mesh.dead_letter(transport, bills(-1))
        async with browsing(app_of(mesh, authenticate=as_viewer)) as browser:
            _, page = await one_listed(browser)
            assert "Replay" not in page
            letters = re.findall(r"/dead-letters/letter\?[^\"]+", page)
            shown = await browser.text(unescape(letters[0]))
    assert "negative: ada" in shown
    assert 'method="post"' not in shown


@ON_SQLITE
async def test_payloads_keys_reasons_and_errors_are_masked_everywhere(make_mesh: MakeMesh) -> None:
    def mask(name: str, data: Any) -> Any:
        text = json.dumps(data).replace(person, "…")
        return json.loads(text)

    person = "grace-hopper"
    mesh = await make_mesh("sqlite")
    async with mesh.broker() as transport:
        await publish_or_raise(transport, [ordered(person)])
        await mesh.dead_letter(transport, bills(-1, 9_999, customer=person))
        database = await mesh.service.database()
        async with database.connection() as connection:
            await connection.execute(
                update(outbox).values(parked=True, last_error=f"no room for {person}", attempts=9)
            )
        async with browsing(app_of(mesh, mask=mask)) as browser:
            _, letters = await one_listed(browser)
            pages = [letters]
            for letter_id in ids_in(letters):
                where = {"subscription": "shop.bill", "id": letter_id}
                pages.append(await browser.text("/dead-letters/letter", **where))
                review = {**where, "deed": "replay"}
                pages.append(await browser.text("/dead-letters/review-one", **review))
                assert "textarea" not in pages[-2]
                edit = await browser.post("/dead-letters/edit", {**where, "data": "{}"})
                assert edit.status_code == 403
            waiting = await browser.text("/outbox", service="shop")
            pages.append(waiting)
            for link in re.findall(r'href="(/outbox/message[^"]+)"', waiting):
                pages.append(await browser.text(unescape(link)))
            sagas = await browser.text("/sagas", service="shop")
            pages.append(sagas)
            for link in re.findall(r'href="(/sagas/saga[^"]+)"', sagas):
                pages.append(await browser.text(unescape(link)))
            found = await browser.text("/search", q=person, by="key")
            assert "dead letter in shop.bill" in found
            asked = (f'value="{person}"', f"What came of {person}")
            pages.append(found.replace(asked[0], "").replace(asked[1], ""))
    assert sum("…" in page for page in pages) >= 7
    for page in pages:
        assert person not in page


@ON_SQLITE
async def test_any_text_in_a_message_is_shown_as_text(make_mesh: MakeMesh) -> None:
    mesh = await make_mesh("sqlite")
    async with mesh.broker() as transport:
        await mesh.dead_letter(transport, bills(-1, customer=NASTY))
        async with browsing(app_of(mesh)) as browser:
            _, page = await one_listed(browser)
            [letter_id] = ids_in(page)
            where = {"subscription": "shop.bill", "id": letter_id}
            shown = await browser.text("/dead-letters/letter", **where)
            review = await browser.text("/dead-letters/review-one", **where, deed="discard")
    for each in (page, shown, review):
        assert "<script>alert" not in each
        assert "\x1b" not in each
        assert "\u202e" not in each


@ON_SQLITE
async def test_what_is_not_there_is_named(make_mesh: MakeMesh) -> None:
    mesh = await make_mesh("sqlite")
    async with mesh.broker(), browsing(app_of(mesh)) as browser:
        for path, code in (
            ("/nothing", 404),
            ("/subscription?name=x", 404),
            ("/dead-letters?subscription=x", 404),
            ("/dead-letters?subscription=shop.bill&list=x", 409),
            ("/dead-letters/letter?subscription=shop.bill&id=x", 404),
            ("/dead-letters/review?subscription=shop.bill&list=x&deed=replay", 409),
            ("/dead-letters/review-one?subscription=shop.bill&id=x&deed=replay", 404),
            ("/dead-letters/review-one?subscription=shop.bill&id=x&deed=x", 400),
            ("/job?id=x", 404),
            ("/events?view=x", 404),
        ):
            response = await browser.get(path)
            assert response.status_code == code, path
            assert '<main id="main"' in response.text


@pytest.mark.parametrize("database_url", ["postgres"], indirect=True)
async def test_text_that_no_database_can_compare_is_not_asked_for(make_mesh: MakeMesh) -> None:
    mesh = await make_mesh("sqlite")
    async with browsing(app_of(mesh)) as browser:
        for path in (
            "/search?q=a%00",
            "/sagas?service=shop&key=%00",
            "/outbox?service=shop&key=%00",
            "/outbox/message?service=shop&id=%00",
        ):
            response = await browser.get(path)
            assert (response.status_code, "%00" in response.text) == (400, True), path


async def with_saga(mesh: ServedMesh, transport: Transport, order: str) -> None:
    """A saga that waits for its first step."""
    await publish_or_raise(transport, [ordered(order)])
    async with mesh.worker(transport), asyncio.timeout(60):
        while True:
            async with Reach([mesh.service], mesh.settings, CLOCK) as reach:
                if (await mesh_status(reach)).sagas[0].running:
                    return
            await asyncio.sleep(0.02)


def decision_of(page: str) -> dict[str, Any]:
    """What the form of a saga's page sends, whatever is decided."""
    return {name: hidden_field(page, name) for name in ("service", "id", "row_version")}


@pytest.mark.parametrize("database_url", ["sqlite", "postgres", "mariadb"], indirect=True)
async def test_of_two_operators_who_skip_the_step_that_both_see_one_does(
    make_mesh: MakeMesh,
) -> None:
    """The other one would skip the step after it, which nobody has looked at."""
    mesh = await make_mesh("sqlite")
    async with mesh.broker() as transport:
        await with_saga(mesh, transport, "o1")
    app = app_of(mesh)
    async with browsing(app) as ada:
        bob = Browser(app)
        listed = await ada.text("/sagas", service="shop")
        [link] = re.findall(r"/sagas/saga\?[^\"]+", listed)
        decisions = []
        for browser in (ada, bob):
            page = await browser.text(unescape(link))
            assert "<dt>Waits for</dt><dd>pack," in page
            decisions.append({**decision_of(page), "operation": "skip"})
        answers = await asyncio.gather(
            *(
                browser.post("/sagas/operate", decision)
                for browser, decision in zip((ada, bob), decisions, strict=True)
            )
        )
        assert sorted(each.status_code for each in answers) == [200, 409]
        [refused] = [each.text for each in answers if each.status_code == 409]
        assert "moved on since you looked at it" in refused
        assert "it is running now, and waits for send." in refused
        late = await ada.post("/sagas/operate", decisions[0] | {"operation": "retry"})
        assert late.status_code == 409
        page = await bob.text(unescape(link))
        assert "<dt>Waits for</dt><dd>send," in page
        assert page.count("skip by an operator") == 1
        assert "retry by an operator" not in page
        await bob.http.aclose()


@pytest.mark.parametrize("database_url", ["sqlite", "postgres", "mariadb"], indirect=True)
async def test_a_saga_is_drawn_and_an_operator_decides(make_mesh: MakeMesh) -> None:
    mesh = await make_mesh("sqlite")
    async with mesh.broker() as transport:
        await with_saga(mesh, transport, NASTY)
        async with browsing(app_of(mesh)) as browser:
            listed = await browser.text("/sagas", service="shop")
            [link] = re.findall(r"/sagas/saga\?[^\"]+", listed)
            page = await browser.text(unescape(link))
            assert "<svg" in page
            assert re.search(r'<g class="sent"><title>pack\nPack\nsent', page)
            assert "\x1b" not in page
            assert "<script>alert" not in page
            saga_id = hidden_field(page, "id")
            asked = {**decision_of(page), "reason": "packed by hand"}
            for missing in (None, "", "new"):
                nothing = {**asked, "operation": "skip", "row_version": missing}
                assert (await browser.post("/sagas/operate", nothing)).status_code == 400

            after = await browser.post("/sagas/operate", {**asked, "operation": "skip"})
            assert re.search(r'<g class="sent"><title>send', after.text)
            assert "because packed by hand" in after.text
            asked |= decision_of(after.text)
            assert (
                await browser.post("/sagas/operate", {**asked, "operation": "x"})
            ).status_code == 400
            ended = await browser.post("/sagas/operate", {**asked, "operation": "cancel"})
            assert "<dd>cancelled" in ended.text
            assert "Decide" not in ended.text
            again = await browser.post("/sagas/operate", {**asked, "operation": "cancel"})
            assert again.status_code == 409
            assert "it is cancelled now" in again.text
            log = await browser.text("/actions")
            assert "skip saga" in log
            assert "failed:" in log
            found = await browser.text("/sagas", service="shop", status="cancelled", key=NASTY)
            assert saga_id in found


@ON_SQLITE
async def test_a_saga_that_is_not_in_the_code_any_more_is_shown_and_can_only_be_cancelled(
    make_mesh: MakeMesh,
) -> None:
    mesh = await make_mesh("sqlite")
    without_saga = Service("shop")
    without_saga.publisher(Billed)
    async with mesh.broker() as transport:
        await with_saga(mesh, transport, "o1")
    async with browsing(Dashboard([without_saga], settings=mesh.settings)) as browser:
        assert "shop.order" in await browser.text("/sagas")
        listed = await browser.text("/sagas", service="shop")
        [link] = re.findall(r"/sagas/saga\?[^\"]+", listed)
        page = await browser.text(unescape(link))
        assert "The code of shop has no such saga any more" in page
        assert re.findall(r'name="operation" value="(\w+)"', page) == ["cancel"]
        assert "<svg" not in page
        asked = {**decision_of(page), "reason": "packed by hand"}
        nameless = await browser.post("/sagas/operate", {**asked, "id": "", "operation": "cancel"})
        assert nameless.status_code == 404
        refused = await browser.post("/sagas/operate", {**asked, "operation": "retry"})
        assert refused.status_code == 400
        assert "has no saga shop.order any more" in refused.text
        ended = await browser.post("/sagas/operate", {**asked, "operation": "cancel"})
        assert "<dd>cancelled" in ended.text
        assert "because packed by hand" in ended.text
        assert "has no such saga" not in ended.text
        nobody = await browser.get("/sagas", service="shop")
        assert nobody.status_code == 400
        assert "has no saga: nothing is given to service.include" in unescape(nobody.text)
        assert "cancel saga" in await browser.text("/actions")


@pytest.mark.parametrize("database_url", ["sqlite", "postgres", "mariadb"], indirect=True)
async def test_parked_messages_are_retried_and_skipped(make_mesh: MakeMesh) -> None:
    mesh = await make_mesh("sqlite")
    async with mesh.broker(), mesh.service as service:
        async with service.transaction() as transaction:
            for cents in (1, 2, 3):
                transaction.publish(Billed(customer=NASTY, cents=cents))
        database = await service.database()
        async with database.connection() as connection:
            await connection.execute(
                update(outbox).values(parked=True, attempts=10, last_error=NASTY)
            )
        async with browsing(app_of(mesh)) as browser:
            page = await browser.text("/outbox", service="shop", parked="1", key=NASTY)
            messages = re.findall(r"/outbox/message\?[^\"]+", page)
            assert len(messages) == 3
            assert "\x1b" not in page
            assert "<script>alert" not in page
            shown = await browser.text(unescape(messages[0]))
            first = {"service": "shop", "id": hidden_field(shown, "id")}

            assert (await browser.post("/outbox/skip", first)).status_code == 200
            assert (await browser.post("/outbox/skip", first)).status_code == 409
            retried = await browser.post("/outbox/retry", {"service": "shop"})
            assert "Parked keys" not in retried.text
            assert (await browser.post("/outbox/retry", {"service": "shop"})).status_code == 409
            log = await browser.text("/actions")
            assert "skipped" in log
            assert "2 to be published again" in log
        async with Reach([mesh.service], mesh.settings, CLOCK) as reach:
            actions = await newest_actions(reach, 10)
        [skipped] = [row for row in actions.rows if row.what == "skip parked"]
        kept = json.loads(base64.b64decode(skipped.details["message"]["data_base64"]))
        assert kept == {"customer": NASTY, "cents": 1}


@ON_SQLITE
async def test_the_topology_leads_to_each_subscription(make_mesh: MakeMesh) -> None:
    mesh = await make_mesh("sqlite")
    freeze([Bill], mesh.settings.schemas)
    async with mesh.broker() as transport:
        await mesh.dead_letter(transport, bills(-1))
        async with browsing(app_of(mesh)) as browser:
            page = await browser.text("/topology")
            schemas = await browser.text("/schemas")
            assert re.search(r'<a href="/subscription\?name=shop.bill"><g class="failed">', page)
            assert "shop.billed" in page
            for link in set(re.findall(r'<a href="(/subscription[^"]+)"><g', page)):
                assert "As it is declared" in await browser.text(unescape(link))
    assert re.search(
        r'<th scope="row">shop.bill v1</th>.*?<span>readable</span>', schemas, re.DOTALL
    )
    assert re.search(r'<th scope="row">depot.pack</th><td data-label="Kind">command', schemas)


@ON_SQLITE
async def test_a_search_shows_what_happened_as_a_picture(make_mesh: MakeMesh) -> None:
    mesh = await make_mesh("sqlite")
    [bad, good] = [*bills(-1, customer="ada"), *bills(1, customer="ada")]
    async with mesh.broker() as transport:
        await mesh.dead_letter(transport, [bad])
        async with mesh.worker(transport):
            await publish_or_raise(transport, [good])
            async with asyncio.timeout(60):
                while not await handled(mesh):  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
        async with browsing(app_of(mesh)) as browser:
            dead = await browser.text("/search", q=bad.id)
            done = await browser.text("/search", q=good.id)
            by_key = await browser.text("/search", q="ada", by="key")
            nothing = await browser.text("/search", q=NASTY)
            [link] = re.findall(r"/dead-letters/letter\?[^\"]+", dead)
            assert "negative: ada" in await browser.text(unescape(link))
    assert re.search(r'<g class="failed"><title>shop.bill\ndead letter in shop.bill', dead)
    assert "handled by shop.bill" in done
    assert "shop.billed" in done
    assert bad.id in by_key
    assert good.id in by_key
    assert "Nobody who was asked knows it." in nothing
    assert "<script>alert" not in nothing


@ON_SQLITE
async def test_every_page_is_there_while_the_servers_are_away(make_mesh: MakeMesh) -> None:
    away = "postgresql://nobody@127.0.0.1:1/none"
    mesh = await make_mesh("redis://127.0.0.1:1", database_urls={"shop": away})
    async with browsing(app_of(mesh)) as browser:
        assert (await browser.text("/")).count("does not answer") >= 2
        for path, code in (
            ("/dead-letters", 200),
            ("/dead-letters?subscription=shop.bill", 503),
            ("/subscription?name=shop.bill", 200),
            ("/outbox", 200),
            ("/outbox?service=shop", 503),
            ("/sagas", 200),
            ("/sagas?service=shop", 503),
            ("/topology", 200),
            ("/schemas", 200),
            ("/search?q=x", 200),
            ("/audit?run=1", 200),
            ("/actions", 200),
        ):
            response = await browser.get(path)
            assert response.status_code == code, path
            assert '<main id="main"' in response.text
            if path != "/schemas":
                assert "answer" in response.text or "unknown" in response.text, path


@ON_SQLITE
async def test_a_payload_of_a_megabyte_is_shown_in_part_and_not_edited(
    make_mesh: MakeMesh,
) -> None:
    mesh = await make_mesh("sqlite")
    large = Envelope(
        bills(-1)[0].attributes, b'{"customer":"' + b"x" * 1_000_000 + b'","cents":-1}'
    )
    async with mesh.broker() as transport:
        await mesh.dead_letter(transport, [large])
        async with browsing(app_of(mesh)) as browser:
            [letter_id] = ids_in((await one_listed(browser))[1])
            page = await browser.text(
                "/dead-letters/letter", subscription="shop.bill", id=letter_id
            )
    assert len(page) < 1_000_000
    assert "Only the beginning of" in page
    assert "textarea" not in page


async def test_a_stream_is_live_and_ends_with_the_server(tmp_path: Path) -> None:
    broker, urls = f"sqlite:///{tmp_path}/b.db", {"shop": f"sqlite:///{tmp_path}/shop.db"}
    async with (
        running_mesh([make_service()], broker, urls, tmp_path) as mesh,
        serving(Dashboard(mesh.services, settings=mesh.settings, interval=0.05)) as address,
        httpx.AsyncClient(base_url=address, timeout=60) as client,
    ):
        numbers: list[int] = []
        async with client.stream("GET", "/events?view=overview") as response:
            assert response.headers["content-type"].startswith("text/event-stream")
            async for line in response.aiter_lines():
                numbers += [int(line[4:])] if line.startswith("id: ") else []
                if len(numbers) == 3:
                    break
        assert numbers == sorted(set(numbers))
        refused = await client.get("/events?view=overview", headers={"host": "evil.example"})
        assert refused.status_code == 403


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["--host", "0.0.0.0"], "somebody has to tell who they are"),  # noqa: S104
        (["--host", "localhost.example"], "somebody has to tell who they are"),
        (["--role", "admin"], "is not a role"),
        (["--user-header", "X-User"], "Name both"),
        (["--proxy", "10.0.0.1"], "name the header, too"),
        (["--user-header", "X-User", "--proxy", "there"], "not an address"),
        (["--user-header", "X-User", "--authenticate", "a:b"], "either"),
        (["--authenticate", "nowhere:who"], "was not found"),
        (["--mask", "json:nothing"], "was not found"),
    ],
)
def test_mistakes_on_the_command_line_are_named(arguments: list[str], why: str) -> None:
    result = CliRunner().invoke(cli, ["dashboard", *arguments])
    assert isinstance(result.exception, UsageError)
    assert why in str(result.exception)


@ON_SQLITE
async def test_nothing_is_done_that_cannot_be_recorded(make_mesh: MakeMesh) -> None:
    mesh = await make_mesh("sqlite")
    subscription = mesh.service.handlers["shop.bill"].subscription
    away = {"shop": "postgresql://nobody@127.0.0.1:1/none"}
    settings = mesh.settings.model_copy(update={"database_urls": away})
    async with mesh.broker() as transport:
        await mesh.dead_letter(transport, bills(-1))
        async with browsing(Dashboard([mesh.service], settings=settings)) as browser:
            listed, page = await one_listed(browser)
            [letter_id] = ids_in(page)
            review = await browser.text(
                "/dead-letters/review", subscription="shop.bill", list=listed, deed="discard"
            )
            fields = {"selection": hidden_field(review, "selection"), "deed": "discard"}
            result = await browser.act(fields)
            where = {"subscription": "shop.bill", "id": letter_id, "data": '{"customer":"a"}'}
            edited = await browser.post("/dead-letters/edit", where)
        assert "It was stopped: " in result
        assert "does not answer" in result
        assert "Not replayed" in edited.text
        assert (await transport.stats(subscription)).dead == 1


@ON_SQLITE
async def test_an_action_on_a_service_without_a_database_is_logged(make_mesh: MakeMesh) -> None:
    service = Service("web")

    @service.subscriber()
    async def look(event: Viewed) -> None: ...

    mesh = ServedMesh([service], (await make_mesh("sqlite")).settings)
    async with mesh.broker() as transport:
        handler = service.handlers["web.look"]
        viewed = seal(Viewed(page=NASTY), source="web", clock=CLOCK)
        await publish_or_raise(transport, [viewed])
        async with transport.consume(handler.subscription, prefetch=1) as consumer:
            [delivery] = await consumer.receive(1)
            await consumer.settle([(delivery, Dead("refused", ""))])
        async with browsing(app_of(mesh)) as browser:
            listed, _ = await one_listed(browser, "web.look")
            review = await browser.text(
                "/dead-letters/review", subscription="web.look", list=listed, deed="discard"
            )
            fields = {"selection": hidden_field(review, "selection"), "deed": "discard"}
            with capture_logs() as logs:
                await browser.act({**fields, "reason": "not needed"})
            assert "in the dashboard" in await browser.text("/actions")
    [begun, ended] = [each for each in logs if each["event"].startswith("operator")]
    assert (begun["what"], begun["reason"]) == ("discard dead letters", "not needed")
    assert ended["outcome"] == "1 of 1 discarded"


@ON_SQLITE
async def test_the_balance_sheet_is_drawn_up_and_finds_what_was_taken_away(
    make_mesh: MakeMesh,
) -> None:
    mesh = await make_mesh("sqlite")
    subscription = Subscription("shop.tell", ("shop.billed",))

    @mesh.service.subscriber(name="tell")
    async def tell(event: Billed, tx: Transaction) -> None:
        if event.cents == 13:
            raise Reject("thirteen")

    async with mesh.broker() as transport:
        await publish_or_raise(transport, bills(1, 13, 13))
        async with mesh.worker(transport), asyncio.timeout(60):
            while (await transport.stats(subscription)).dead < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        async with browsing(app_of(mesh)) as browser:
            assert "balanced" not in await browser.text("/audit")
            balanced = await browser.text("/audit", run="1")
            assert "It is balanced" in balanced
            [first, second] = ids_in((await one_listed(browser, "shop.tell"))[1])
            where = {"subscription": "shop.tell", "id": first}
            review = await browser.text("/dead-letters/review-one", **where, deed="discard")
            fields = {"selection": hidden_field(review, "selection"), "deed": "discard"}
            await browser.act(fields)
            assert "It is balanced" in await browser.text("/audit", run="1")  # it was counted
            await transport.discard(subscription, [second])  # behind our back
            missing = await browser.text("/audit", run="1")
    assert "shop.tell: 1 of shop.billed missing" in missing
