"""What the standard library draws by chance, made the same in each run with the same seed.

`random` begins with the seed. What asks the system for entropy gets bytes of a generator that
begins with it, too: `os.urandom` and `os.getrandom`, and so `secrets`, `random.SystemRandom`,
`random.Random()` without a seed, and the ids of `uuid`. Those that tell the time (`uuid1`, `uuid6`,
`uuid7`) must differ from the last one that this process made, whose time is forgotten, and may have
the address of the machine, which is not looked up.

Compiled libraries that ask the system themselves are not reached, nor is a `urandom` that a module
has imported by its name.
"""

from __future__ import annotations

import os
import random
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import MethodType

_SEED_BYTES = 32
_NODE = 0x0100_0000_0001
"""In the place of the machine's address, with the bit that no real one has (RFC 9562)."""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While the context is open, all that draws begins with this seed."""
    state = random.getstate()
    random.seed(seed)
    entropy = random.Random(seed)  # noqa: S311  # not for secrets
    set_seed = random.Random.seed

    def seed_known(generator: random.Random, a: object = None, version: int = 2) -> None:
        known = entropy.randbytes(_SEED_BYTES) if a is None else a
        set_seed(generator, known, version)  # type: ignore[arg-type]  # it says what it takes

    replaced: list[tuple[object, str, object]] = [
        (os, "urandom", entropy.randbytes),
        (os, "getrandom", lambda size, _flags=0: entropy.randbytes(size)),
        (random, "_urandom", entropy.randbytes),
        (random.Random, "seed", seed_known),
        (random, "seed", MethodType(seed_known, random._inst)),
        (uuid, "_node", _NODE),
        (uuid, "_generate_time_safe", None),  # the system's, which tells real time
        (uuid, "_last_timestamp", None),
        (uuid, "_last_timestamp_v6", None),
        (uuid, "_last_timestamp_v7", None),
    ]
    # Not every system and every version of Python has all of them.
    replaced = [(of, name, value) for of, name, value in replaced if hasattr(of, name)]
    before = [(of, name, getattr(of, name)) for of, name, _ in replaced]
    for of, name, value in replaced:
        setattr(of, name, value)
    try:
        yield
    finally:
        for of, name, value in before:
            setattr(of, name, value)
        random.setstate(state)
