"""What others have put into Redis where EventMesh keeps its own: it is understood, or it becomes a
dead letter that can be listed, shown, replayed and discarded. It never stops a worker."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from redis import Redis

if TYPE_CHECKING:
    from tests.integration.conftest import Project, Put

GOOD = b'{"owner": "ada", "cents": 1250}'

PARCELS = (
    b"1 x\n[1,2]\n{}",  # the head of the envelope is JSON, and not an object
    b"1 y\nnull\n{}",
    b'1 z\n{"id": 7}\n{}',  # an attribute that is not a text
    b"1 x\n{nothing\n{}",
    b'999999999999999999999 x\n{"id": "a"}\n{}',
    b'-1 x\n{"id": "a"}\n{}',
    b"",
    b"\n",
    b"\xff\xfe\x00",
)
"""Members of the set of delayed retries, and values of the field `parcel` in the retry stream."""

ENTRIES: tuple[dict[bytes, bytes], ...] = (
    {b"x": b"y"},
    {b"\xff": b"\xff", b"data": b"\xff"},
    {b"id": b"", b"type": b"bank.deposit", b"data": b"{}"},
    {b"specversion": b"1.0", b"id": b"a", b"source": b"/a", b"type": b"bank.deposit"},
)
"""Fields of entries in the stream of a message, and in the retry stream."""


async def test_a_worker_makes_dead_letters_of_hostile_content_and_goes_on(
    on: Callable[[str], Project], put: Put, attributes: Callable[..., dict[str, str]]
) -> None:
    bank = on("redis")
    with Redis.from_url(bank.environment["EVENTMESH_BROKER_URL"]) as redis:
        for parcel in PARCELS:
            redis.xadd(f"{bank.prefix}:retry:bank.deposit", {b"parcel": parcel})
            redis.zadd(f"{bank.prefix}:delayed:bank.deposit", {parcel: 0})
        for entry in ENTRIES:
            redis.xadd(f"{bank.prefix}:stream:bank.deposit", dict(entry))
            redis.xadd(f"{bank.prefix}:retry:bank.deposit", dict(entry))
    worker = bank.worker()
    await put(bank, attributes(), GOOD)
    worker.until_prints("ada has 12.50")
    count = 2 * (len(PARCELS) + len(ENTRIES))
    letters = bank.letters(count)
    assert len(letters) == count
    assert all(letter["reason"] for letter in letters)
    as_they_came = {letter["data"] for letter in letters if not letter["attributes"]}
    assert "1 x\n[1,2]\n{}" in as_they_came
    assert "subscription waits" not in worker.events()
    worker.drain()
