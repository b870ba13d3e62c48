"""What the standard library draws by chance, made the same in each run with the same seed.

`random` begins with the seed. What asks the system for entropy gets bytes of a generator that
begins with it, too: `os.urandom` and `os.getrandom`, and so `secrets`, `random.SystemRandom`,
`random.Random()` without a seed, and the ids of `uuid`. Those that tell the time (`uuid1`, `uuid6`,
`uuid7`) must differ from the last one that this process made, whose time is forgotten, and may have
the address of the machine, which is not looked up.

Each module that asks has a generator of its own. In the first run of a process, libraries draw what
they keep for the later ones, such as the names in a statement that SQLAlchemy caches, or the key of
a module that is imported then. A service would draw other values after them than in a later run.

Compiled libraries that ask the system themselves are not reached, nor is a `urandom` that a module
has imported by its name.
"""

from __future__ import annotations

import os
import random
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, MethodType

_SEED_BYTES = 32
_NODE = 0x0100_0000_0001
"""In the place of the machine's address, with the bit that no real one has (RFC 9562)."""

_PASSED_THROUGH = frozenset({__name__, "random", "secrets", "uuid"})
"""Modules that draw for their caller."""


class _Entropy:
    """Bytes by the seed and the module that asks."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._generators: dict[str, random.Random] = {}

    def draw(self, size: int, flags: int = 0) -> bytes:
        """So many bytes, whatever the `flags` of `os.getrandom` are."""
        asking = _asking_module()
        if asking not in self._generators:
            known = f"{self._seed}/{asking}"
            self._generators[asking] = random.Random(known)  # noqa: S311  # not for secrets
        return self._generators[asking].randbytes(size)


def _asking_module() -> str:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        name = str(frame.f_globals.get("__name__", ""))
        if name not in _PASSED_THROUGH:
            return name
        frame = frame.f_back
    return ""


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While the context is open, all that draws begins with this seed."""
    state = random.getstate()
    random.seed(seed)
    entropy = _Entropy(seed)
    set_seed = random.Random.seed

    def seed_known(generator: random.Random, a: object = None, version: int = 2) -> None:
        known = entropy.draw(_SEED_BYTES) if a is None else a
        set_seed(generator, known, version)  # type: ignore[arg-type]  # it says what it takes

    replaced: list[tuple[object, str, object]] = [
        (os, "urandom", entropy.draw),
        (os, "getrandom", entropy.draw),
        (random, "_urandom", entropy.draw),
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
