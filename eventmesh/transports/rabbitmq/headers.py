"""The headers that EventMesh writes on messages in RabbitMQ.

RabbitMQ can return a message to its queue only unchanged, so a retry and a dead letter are copies
of the message with other headers: a retry says which attempt it is, a dead letter says why, when
and after how many attempts. A copy carries the application's headers unchanged. It must not carry
what RabbitMQ noted on the original (`x-death`, `x-delivery-count`), and neither CC nor BCC, which
would route the copy to more queues.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import datetime
from decimal import Decimal
from typing import Any

from eventmesh.transports.outcome import Dead
from eventmesh.transports.rabbitmq.text import keep_end, keep_start
from eventmesh.wire.envelope import part_of

HEADER_PREFIX = "x-eventmesh-"
ATTEMPT = HEADER_PREFIX + "attempt"
ATTEMPTS = HEADER_PREFIX + "attempts"
REASON = HEADER_PREFIX + "reason"
ERROR = HEADER_PREFIX + "error"
DIED_AT = HEADER_PREFIX + "died-at"
DEAD_LETTER_ID = HEADER_PREFIX + "dead-id"
PARTITION = HEADER_PREFIX + "partition"
"""Of a dead letter: from which of how many partitions its message came, such as 3/16."""

TRUNCATED = HEADER_PREFIX + "cut"
"""Names what was left out of the message to make it fit; see `truncation`."""

DELIVERY_COUNT = "x-delivery-count"
"""How often RabbitMQ took the message back from a consumer."""

BUCKETS = 256
"""Into so many buckets the keys of all messages are divided, for ever: publishers compute the
bucket, and the partitions of subscriptions are made of buckets."""

MAX_REASON_BYTES = 1024
MAX_ERROR_BYTES = 8 * 1024
"""All headers must fit into one frame, however long a traceback is."""

_BROKER_PREFIXES = (
    HEADER_PREFIX,
    "x-death",
    "x-first-death-",
    "x-last-death-",
    DELIVERY_COUNT,
    "x-acquired-count",
    "x-opt-",
)
BUCKET_PREFIX = "bucket-"
_BCC = "BCC"
_ROUTING = frozenset({"CC", _BCC})


def bucket_of(key: str) -> int:
    """The bucket of a key."""
    return part_of(key, "", BUCKETS)


def bucket_key(bucket: int) -> str:
    """The routing key of a bucket. No message has such a name, which would have a dot."""
    return f"{BUCKET_PREFIX}{bucket}"


_ROUTING_KEYS = tuple([bucket_key(bucket)] for bucket in range(BUCKETS))


def routing_headers(key: str | None) -> dict[str, Any]:
    """The headers by which a published message also reaches the partition of its key."""
    return {} if key is None else {_BCC: _ROUTING_KEYS[bucket_of(key)]}


def application_headers(headers: Mapping[str, Any] | None) -> dict[str, Any]:
    """The headers to publish the message with again: without what RabbitMQ and EventMesh noted on
    it, and without those that would route it to more queues."""
    return {
        name: _writable(value)
        for name, value in (headers or {}).items()
        if not name.startswith(_BROKER_PREFIXES) and name not in _ROUTING
    }


def retry_headers(headers: Mapping[str, Any] | None, attempt: int) -> dict[str, Any]:
    """The headers of the copy that is to be delivered as this attempt."""
    return application_headers(headers) | {ATTEMPT: attempt}


def dead_letter_headers(
    headers: Mapping[str, Any] | None,
    dead: Dead,
    *,
    attempts: int,
    letter_id: str,
    now: datetime,
    partition: str | None = None,
) -> dict[str, Any]:
    """The headers of the copy that is kept as a dead letter."""
    of_partition = {} if partition is None else {PARTITION: partition}
    return (
        application_headers(headers)
        | of_partition
        | {
            DEAD_LETTER_ID: letter_id,
            REASON: keep_start(dead.reason, MAX_REASON_BYTES),
            ERROR: keep_end(dead.error, MAX_ERROR_BYTES),
            ATTEMPTS: attempts,
            DIED_AT: now.isoformat(),
        }
    )


def count_header(headers: Mapping[str, Any], name: str, default: int) -> int:
    """The count in a header, or the default if the header is missing or not a count: anybody can
    write headers."""
    value = headers.get(name)
    return value if type(value) is int and value >= 0 else default


def attempt_and_deliveries(headers: Mapping[str, Any]) -> tuple[int, int]:
    """Which attempt a delivered message is, and how often that attempt has been delivered."""
    return count_header(headers, ATTEMPT, 1), 1 + count_header(headers, DELIVERY_COUNT, 0)


def _writable(value: Any) -> Any:
    """A header's value as it came, except for values that pamqp can read but not write."""
    match value:
        case bytes():  # a long string that is not UTF-8
            return bytearray(value)
        case Decimal():  # pamqp rejects those with too large a scale or number
            return value if _fits_decimal(value) else str(value)
        case float():  # pamqp writes 32 bits, which would change the value
            return value if _fits_single(value) else repr(value)
        case dict():
            return {name: _writable(item) for name, item in value.items()}
        case list():
            return [_writable(item) for item in value]
        case _:
            return value


def _fits_decimal(value: Decimal) -> bool:
    """Whether AMQP can express it: a scale of 8 bits and a number of 32 bits."""
    scale = -int(value.as_tuple().exponent)
    return 0 <= scale <= 255 and abs(value.scaleb(scale)) < 2**31


def _fits_single(value: float) -> bool:
    try:
        return bool(struct.unpack(">f", struct.pack(">f", value))[0] == value)
    except OverflowError:
        return False
