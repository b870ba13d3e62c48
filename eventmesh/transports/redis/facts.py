"""What a Redis says about itself."""

from __future__ import annotations

from eventmesh.clock import Clock
from eventmesh.transports.facts import BrokerFacts
from eventmesh.transports.redis.connection import CommandRejected, Redis


async def examine(redis: Redis, clock: Clock) -> BrokerFacts:
    """The server's facts. INFO may be forbidden to our user: what it tells is unknown then."""
    before = clock.now()
    seconds, microseconds = await redis.ask("TIME")
    middle = before + (clock.now() - before) / 2
    ahead = int(seconds) + int(microseconds) / 1e6 - middle.timestamp()
    try:
        info = parse_info(await redis.ask("INFO"))
    except CommandRejected as error:
        return BrokerFacts(clock_ahead=ahead, unknown={"version": str(error)})
    return BrokerFacts(version=info.get("redis_version"), clock_ahead=ahead)


def parse_info(answer: bytes | str) -> dict[str, str]:
    """The lines `name:value` of an answer to INFO."""
    text = answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
    lines = (line.partition(":") for line in text.splitlines() if not line.startswith("#"))
    return {name: value for name, colon, value in lines if colon}
