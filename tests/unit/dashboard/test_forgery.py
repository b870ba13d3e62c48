"""Which forms are accepted."""

from __future__ import annotations

import pytest

from eventmesh.dashboard.forgery import ForgeryGuard

HOST = {"host": "ops.example:8088"}
OURS = {**HOST, "origin": "http://ops.example:8088"}


@pytest.fixture
def guard() -> ForgeryGuard:
    return ForgeryGuard()


@pytest.mark.parametrize(
    "headers",
    [
        OURS,
        {**HOST, "referer": "http://ops.example:8088/outbox?x=1"},
        {**OURS, "sec-fetch-site": "same-origin"},
    ],
)
def test_a_form_of_our_own_page_is_accepted(guard: ForgeryGuard, headers: dict[str, str]) -> None:
    assert guard.why_refused(headers, "c", "ada", guard.token("c", "ada")) is None


@pytest.mark.parametrize(
    "headers",
    [
        HOST,
        {},
        {**HOST, "origin": "null"},
        {**HOST, "origin": "http://evil.example"},
        {**HOST, "origin": "http://ops.example"},  # another port
        {**HOST, "origin": "http://ops.example:8088.evil.example"},
        {**HOST, "origin": "javascript://ops.example:8088"},
        {**HOST, "origin": "http://[::1"},
        {**HOST, "referer": "http://evil.example/http://ops.example:8088"},
        {**OURS, "sec-fetch-site": "cross-site"},
        {**OURS, "sec-fetch-site": "same-site"},
    ],
)
def test_a_form_of_another_site_is_refused(guard: ForgeryGuard, headers: dict[str, str]) -> None:
    assert guard.why_refused(headers, "c", "ada", guard.token("c", "ada"))


def test_the_token_belongs_to_a_cookie_a_user_and_a_process(guard: ForgeryGuard) -> None:
    token = guard.token("c", "ada")
    assert guard.why_refused(OURS, "other", "ada", token)
    assert guard.why_refused(OURS, "c", "eve", token)
    assert guard.why_refused(OURS, None, "ada", token)
    assert guard.why_refused(OURS, "c", "ada", "")
    assert guard.why_refused(OURS, "c", "ada", "ü")
    assert ForgeryGuard().why_refused(OURS, "c", "ada", token)


def test_a_proxy_may_change_the_host_where_its_origin_is_given() -> None:
    guard = ForgeryGuard(["https://ops.example.org"])
    behind = {**HOST, "origin": "https://ops.example.org"}
    assert guard.why_refused(behind, "c", "ada", guard.token("c", "ada")) is None
