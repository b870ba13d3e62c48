"""What pydantic writes for a flag of Python, and what it reads as one.

Pydantic's own schema lists the single members, such as 1 and 2, but `READ | WRITE` is written as 3,
and no member at all as 0. With the bits 1 and 2 every whole number from 0 to 3 is a value; with 1
and 4 not every number is (2 is none), which only a check can say. What else is taken depends on the
boundary of the flag:

| boundary       | an unknown bit is | written      | read              |
|----------------|-------------------|--------------|-------------------|
| STRICT (Flag)  | an error          | known bits   | known bits        |
| CONFORM        | removed           | known bits   | any number        |
| KEEP (IntFlag) | kept              | not negative | any number        |
| EJECT          | no flag any more  | any number   | any number        |
"""

from __future__ import annotations

from enum import CONFORM, EJECT, STRICT
from typing import Any

_MOST = 2**63 - 1
"""The largest number that pydantic takes for a member of an enumeration."""


def written_flags(flag: Any) -> tuple[dict[str, Any], list[str]]:
    """The schema of what is written for a subclass of `Flag`, and what the schema cannot say."""
    if flag._boundary_ in (STRICT, CONFORM):
        return _known_bits(flag)
    least = {} if flag._boundary_ is EJECT else {"minimum": 0}
    return {"type": "integer", **least, "maximum": max(_MOST, flag._flag_mask_)}, []


def read_flags(flag: Any) -> tuple[dict[str, Any], list[str]]:
    """The schema of what is read as a subclass of `Flag`, and what the schema cannot say."""
    if flag._boundary_ is STRICT:
        return _known_bits(flag)
    return {"type": "integer", "minimum": -_MOST, "maximum": _MOST}, []


def _known_bits(flag: Any) -> tuple[dict[str, Any], list[str]]:
    mask = flag._flag_mask_
    has_gaps = mask & (mask + 1) != 0
    checks = [f"only the bits {mask:#b}"] if has_gaps else []
    return {"type": "integer", "minimum": 0, "maximum": mask}, checks
