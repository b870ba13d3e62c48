"""Untrusted text is shown as text, by every expression of every template."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmesh.dashboard.masking import MOST_SHOWN, Masking, Shown
from eventmesh.dashboard.rendering import link, make_environment

ENVIRONMENT = make_environment()
ONE_LINE = ENVIRONMENT.from_string('<a title="{{ text }}">{{ text }}</a>')
LINES = ENVIRONMENT.from_string("<pre>{{ text | lines }}</pre>")


@given(st.text())
def test_no_text_leaves_its_element_or_hides(text: str) -> None:
    for shown in (ONE_LINE.render(text=text), LINES.render(text=text)):
        inner = shown.removeprefix("<a").removeprefix("<pre")
        assert inner.count("<") == 1  # the closing tag
        assert all(char.isprintable() or char == "\n" for char in shown)


@given(st.text())
def test_a_link_holds_any_text(text: str) -> None:
    assert all(char.isascii() and char.isprintable() for char in link("", "/x", id=text))


def test_a_payload_is_indented_and_bounded() -> None:
    masking = Masking(None)
    assert masking.payload("a.b", b'{"a":1}').text == '{\n  "a": 1\n}'
    assert masking.payload("a.b", b"\xff").text == "\\xff"
    long = masking.payload("a.b", b'"' + b"x" * 2 * MOST_SHOWN + b'"')
    assert long.is_cut
    assert len(long.text) == MOST_SHOWN
    assert masking.payload("a.b", b"[" * 100_000).text.startswith("[[")


def test_a_mask_changes_what_is_shown_and_never_what_it_was_given() -> None:
    def mask(name: str, data: Any) -> Any:
        if isinstance(data, dict):
            data["card"] = "…"
        return data

    given_data = {"card": "4111", "n": 1}
    shown = Masking(mask).value("a.b", given_data)
    assert shown.is_masked
    assert "4111" not in shown.text
    assert given_data["card"] == "4111"
    assert not Masking(mask).text("a.b", "an error").is_masked


@pytest.mark.parametrize("literal", ["1234567890.12345678901", "1e999"])
def test_numbers_are_shown_and_edited_exactly_where_a_mask_has_changed_nothing(
    literal: str,
) -> None:
    def mask(name: str, data: Any) -> Any:
        return {**data, "card": "***"} if "card" in data else data

    text = f'{{"amount":{literal}}}'
    assert Masking(mask).payload("a.b", text.encode()) == Shown(text)
    assert Masking(mask).payload("a.b", f'{{"amount":{literal},"card":1}}'.encode()).is_masked


def test_what_a_mask_has_not_seen_is_not_shown_with_an_exact_number() -> None:
    twice = b'{"card":"4111","card":null,"amount":1234567890.12345678901}'
    shown = Masking(lambda _, data: data).payload("a.b", twice)
    assert "4111" not in shown.text
    assert shown.is_masked


def test_nothing_is_shown_where_the_mask_fails() -> None:
    def mask(name: str, data: Any) -> Any:
        raise KeyError(name)

    shown = Masking(mask).payload("a.b", b'{"card":"4111"}')
    assert "4111" not in shown.text
    assert shown.is_masked
