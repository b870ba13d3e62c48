"""Notes in the front of a partition are read as they were written; what is not a note is a
message."""

from __future__ import annotations

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp.commands import Basic

from eventmesh.transports.rabbitmq.ordered.notes import (
    Held,
    LastMoved,
    Moved,
    Opened,
    Progress,
    Released,
    Replayed,
    WrittenNote,
    read,
    replayed,
    written,
)


@pytest.mark.parametrize(
    "note",
    [
        Opened("token"),
        Progress("key", "id", 3, 1764427200.5, 2, 1),
        Held(None, "letter", "id"),
        Held("ключ", "letter", "id"),
        Released("key", ("one", "two")),
        Moved(),
        LastMoved(),
    ],
    ids=["opened", "progress", "held-without-key", "held", "released", "moved", "last-moved"],
)
def test_a_note_is_read_as_it_was_written(note: WrittenNote) -> None:
    message = written(note, "shop.front.stock.0")
    assert read(message.properties.headers or {}, message.body) == note


def test_a_replayed_message_says_which_letters_are_gone() -> None:
    properties = Basic.Properties(headers={"cloudEvents_id": "1", "x-eventmesh-reason": "no"})
    message = replayed(properties, b"{}", "shop.front.stock.0", ["one", "two"])
    assert read(message.properties.headers or {}, message.body) == Replayed(("one", "two"))
    assert (message.properties.headers or {})["cloudEvents_id"] == "1"
    assert "x-eventmesh-reason" not in (message.properties.headers or {})


ODD = st.one_of(
    st.sampled_from(["opened", "progress", "held", "released", "replayed", "moved", "lastmoved"]),
    st.text(),
    st.integers(),
    st.none(),
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@given(ODD, ODD, st.binary() | JSON)
def test_anything_can_be_read(kind: Any, letters: Any, said: Any) -> None:
    try:
        body = said if isinstance(said, bytes) else orjson.dumps(said)
    except TypeError:
        return  # an integer that JSON does not have
    headers = {"x-eventmesh-note": kind, "x-eventmesh-released": letters}
    assert isinstance(read(headers, body), WrittenNote | Replayed)
