"""How the inbox tells a duplicate from another message that has the same id by mistake, and what
its journal makes of the attributes of a message."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventmesh.persistence.inbox import Entry, digest_of
from eventmesh.wire.envelope import Envelope


def digest(data: bytes, name: str = "bank.deposited") -> int:
    return digest_of(Envelope({"id": "1", "type": name}, data))


@pytest.mark.parametrize(
    "rewritten",
    [
        b'{"owner": "\\u00fc", "cents": 5, "of": [1, 2]}',
        '{\n  "cents": 5,\n  "of": [1,2],\n  "owner": "ü"\n}\n'.encode(),
    ],
)
def test_json_that_a_bridge_has_rewritten_has_the_same_digest(rewritten: bytes) -> None:
    assert digest(rewritten) == digest('{"owner":"ü","cents":5,"of":[1,2]}'.encode())


def test_messages_with_different_data_or_names_have_different_digests() -> None:
    data = b'{"cents":5,"of":[1,2]}'
    others = [b'{"cents":6,"of":[1,2]}', b'{"cents":5,"of":[2,1]}', b'{"cents":"5","of":[1,2]}']
    digests = {digest(data), digest(data, "bank.withdrawn"), *map(digest, others)}
    assert len(digests) == 5


def test_data_that_is_not_json_is_compared_byte_by_byte() -> None:
    deep, deeper = b"[" * 300 + b"]" * 300, b"[" * 5_000 + b"]" * 5_000
    texts = [b"", b" ", b"{", b"\xff", b'"\\ud800"', b"NaN", deep, deeper]
    assert len({*map(digest, texts)}) == len(texts)


@given(st.text(max_size=600))
def test_whatever_a_publisher_wrote_fits_the_journal(text: str) -> None:
    attributes = {"id": text, "type": text, "partitionkey": text, "causationid": text}
    entry = Entry.of(Envelope(attributes, b"{}"), 1)
    for stored in (entry.name, entry.key or "", entry.correlation_id, entry.causation_id):
        assert stored is not None
        assert len(stored.encode()) <= 255
        assert "\0" not in stored
    if text.isascii() and text.isprintable() and 0 < len(text) <= 255:
        assert entry.key == entry.causation_id == entry.correlation_id == text
