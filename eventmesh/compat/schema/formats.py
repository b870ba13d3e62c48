"""The formats that pydantic enforces, as it enforces them; any other format is an annotation.

What a schema's `format` means is decided by running pydantic's own types on a string: it takes
`2026-01-31` for a date-time and `urn:uuid:…` for a UUID, which the RFCs do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, lru_cache
from typing import Any

from pydantic import ValidationError
from pydantic_core import to_json

FORMATS = frozenset(
    {
        "date-time", "date", "time", "duration", "uuid", "uuid1", "uuid3", "uuid4", "uuid5",
        "email", "name-email", "ipv4", "ipv6", "ipv4network", "ipv6network", "ipv4interface",
        "ipv6interface", "ipvanyaddress", "ipvanyinterface", "ipvanynetwork", "uri",
        "multi-host-uri", "base64", "base64url", "regex",
    }
)  # fmt: skip
"""Formats of strings that a pydantic type refuses some strings for. Not among them are `path`,
`password` and `binary`, which take every string, and paths that must exist, which depends on the
machine."""

_WIDER: Mapping[str, frozenset[str]] = {
    "date": frozenset({"date-time"}),
    **{f"uuid{version}": frozenset({"uuid"}) for version in (1, 3, 4, 5)},
    "email": frozenset({"name-email"}),
    "ipv4": frozenset(
        {"ipv4interface", "ipv4network", "ipvanyaddress", "ipvanyinterface", "ipvanynetwork"}
    ),
    "ipv6": frozenset(
        {"ipv6interface", "ipv6network", "ipvanyaddress", "ipvanyinterface", "ipvanynetwork"}
    ),
    "ipv4network": frozenset({"ipv4interface", "ipvanynetwork", "ipvanyinterface"}),
    "ipv6network": frozenset({"ipv6interface", "ipvanynetwork", "ipvanyinterface"}),
    "ipv4interface": frozenset({"ipvanyinterface"}),
    "ipv6interface": frozenset({"ipvanyinterface"}),
}

_SAMPLES: Mapping[str, tuple[str, ...]] = {
    "date-time": (
        "2026-01-31T12:30:00Z",
        "2026-01-31",
        "2026-01-31T12:30:00",
        "2026-01-31 12:30:00.123456+02:00",
        "1700000000",
    ),
    "date": ("2026-01-31", "2024-02-29", "2026-01-31T00:00:00", "0"),
    "time": ("12:30:00", "12:30", "12:30:00.123456Z"),
    "duration": ("P1D", "PT1H30M", "3 days, 04:05:06", "-P1DT0.5S", "01:00:00"),
    "uuid": (
        "12345678-1234-5678-1234-567812345678",
        "12345678123456781234567812345678",
        "urn:uuid:12345678-1234-5678-1234-567812345678",
        "{12345678-1234-5678-1234-567812345678}",
    ),
    "uuid1": ("a6cc5730-2261-11ee-9c43-2eb5a363657c",),
    "uuid3": ("6fa459ea-ee8a-3ca4-894e-db77e160355e",),
    "uuid4": ("16fd2706-8baf-433b-82eb-8c7fada847da",),
    "uuid5": ("886313e1-3b8a-5372-9b90-0c9aee199e5d",),
    "email": ("a@example.com", "first.last+tag@sub.example.co.uk"),
    "name-email": ("Ada <ada@example.com>", "a@example.com"),
    "ipv4": ("192.0.2.1", "0.0.0.0"),  # noqa: S104  # a text, nothing listens there
    "ipv6": ("2001:db8::1", "::"),
    "ipv4network": ("192.0.2.0/24", "192.0.2.1"),
    "ipv6network": ("2001:db8::/32", "::1"),
    "ipv4interface": ("192.0.2.1/24", "192.0.2.1"),
    "ipv6interface": ("2001:db8::1/32", "::1"),
    "ipvanyaddress": ("192.0.2.1", "2001:db8::1"),
    "ipvanyinterface": ("192.0.2.1/24", "2001:db8::1/32", "192.0.2.1"),
    "ipvanynetwork": ("192.0.2.0/24", "2001:db8::/32", "192.0.2.1"),
    "uri": ("https://example.com/", "urn:a:b", "mailto:a@example.com", "x://h"),
    "multi-host-uri": ("postgres://user:secret@a:1,b:2/db", "x://h"),
    "base64": ("", "aGk=", "aGVsbG8="),
    "base64url": ("", "aGk=", "_-8="),
    "regex": ("", "a", "^[a-z]+$"),
}


def includes(wider: str, narrower: str) -> bool:
    """Whether every string of the one format is known to be one of the other."""
    return wider == narrower or wider in _WIDER.get(narrower, ())


def samples(name: str) -> tuple[str, ...]:
    """Strings of this format, the plainest first; none for a format that is not enforced."""
    return _SAMPLES.get(name, ())


def is_of(text: str, name: str) -> bool:
    """Whether pydantic takes a text for one of this format; of one it does not enforce, true."""
    return name not in FORMATS or _check(name)(text)


def checks() -> dict[str, Callable[[str], bool]]:
    """For each format whether pydantic takes a string for it."""
    return {name: _check(name) for name in FORMATS}


@cache
def _check(name: str) -> Callable[[str], bool]:
    adapter: Any = None

    @lru_cache(maxsize=4_096)
    def check(text: str) -> bool:
        nonlocal adapter
        if adapter is None:
            adapter = _adapter(name)
        try:
            adapter.validate_json(to_json(text))
        except (ValidationError, ValueError, ArithmeticError):
            return False
        return True

    return check


def _adapter(name: str) -> Any:
    import datetime
    import ipaddress
    import re
    import uuid

    import pydantic
    import pydantic_core

    types: Mapping[str, Any] = {
        "date-time": datetime.datetime,
        "date": datetime.date,
        "time": datetime.time,
        "duration": datetime.timedelta,
        "uuid": uuid.UUID,
        "uuid1": pydantic.UUID1,
        "uuid3": pydantic.UUID3,
        "uuid4": pydantic.UUID4,
        "uuid5": pydantic.UUID5,
        "email": pydantic.EmailStr,
        "name-email": pydantic.NameEmail,
        "ipv4": ipaddress.IPv4Address,
        "ipv6": ipaddress.IPv6Address,
        "ipv4network": ipaddress.IPv4Network,
        "ipv6network": ipaddress.IPv6Network,
        "ipv4interface": ipaddress.IPv4Interface,
        "ipv6interface": ipaddress.IPv6Interface,
        "ipvanyaddress": pydantic.IPvAnyAddress,
        "ipvanyinterface": pydantic.IPvAnyInterface,
        "ipvanynetwork": pydantic.IPvAnyNetwork,
        "uri": pydantic.AnyUrl,
        "multi-host-uri": pydantic_core.MultiHostUrl,
        "base64": pydantic.Base64Bytes,
        "base64url": pydantic.Base64UrlBytes,
        "regex": re.Pattern,
    }
    return pydantic.TypeAdapter(types[name])
