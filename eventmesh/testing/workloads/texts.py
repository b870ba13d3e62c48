"""Strategies of strings: plain ones, those of a pattern, those of a format, decimal numbers.

They are the values that people mean, not all that a schema allows. Text has no NUL, which
PostgreSQL cannot store, and no surrogates, which are not UTF-8. Points in time lie between 1900 and
2100, and have a time zone where they may have one.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Callable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Context, Decimal
from fractions import Fraction
from functools import partial
from ipaddress import ip_network
from operator import add
from typing import Any, Literal

from hypothesis import strategies as st
from pydantic_core import to_jsonable_python

from eventmesh.compat.schema import formats

_ALPHABET = st.characters(codec="utf-8", exclude_characters="\0")
_LONG = 200
"""From this least length on, a text repeats itself: to choose each character takes too long."""

_PLACES = 4
"""The most decimal places of a number whose schema says nothing of them."""
_MOST_PLACES = 30
_LARGEST = Decimal(10) ** 12
"""The largest decimal number where its schema does not say."""

_EXACT = Context(prec=1_000)

_FROM, _UNTIL = datetime(1900, 1, 1), datetime(2100, 1, 1)  # the zone comes later
_HOST = r"[a-z][a-z0-9]{0,8}\.(com|org|net)"
_EMAIL = rf"[a-z][a-z0-9]{{0,8}}(\.[a-z0-9]{{1,5}})?@{_HOST}"
_SCHEMES = re.compile(r"\^\(([a-z0-9+.|\\-]+)\):")


class NoTexts(Exception):
    """No strategy is known for this pattern; the message says why."""


def texts(schema: Mapping[str, Any]) -> st.SearchStrategy[str]:
    """Strings of a schema of the type `string`, most of them accepted by it. NoTexts."""
    if "x-decimal" in schema:
        return decimals(schema["x-decimal"])
    if schema.get("contentEncoding") == "base64":
        return _bytes(base64.b64encode)
    name = str(schema.get("format"))
    if name in _FORMATS:
        return _FORMATS[name](schema.get("pattern", ""))
    if known := formats.samples(name):
        return st.sampled_from(known)
    if "pattern" in schema:
        return _of_pattern(schema["pattern"])
    return _of_length(schema.get("minLength", 0), schema.get("maxLength"))


def _of_length(least: int, most: int | None) -> st.SearchStrategy[str]:
    if least <= _LONG:
        return st.text(_ALPHABET, min_size=least, max_size=most)
    part = st.text(_ALPHABET, min_size=1, max_size=20)
    return part.map(lambda text: (text * least)[:least])


def _of_pattern(pattern: str) -> st.SearchStrategy[str]:
    """Strings that a pattern describes as a whole: those where it is only found somewhere are
    rarely meant."""
    try:
        compiled = re.compile(pattern, re.ASCII)  # in JSON Schema, \d is one of ten digits
        return st.from_regex(compiled, fullmatch=True, alphabet=_ALPHABET)
    except re.error as error:
        raise NoTexts(f"Python has no such pattern as {pattern!r}: {error}") from None


def decimals(bounds: Mapping[str, str]) -> st.SearchStrategy[str]:
    """Texts of decimal numbers within the bounds of an `x-decimal`. NoTexts where there are
    none."""
    if "multiple_of" in bounds:
        units = [Decimal(bounds["multiple_of"])]
    else:
        most = int(bounds.get("decimal_places", _MOST_PLACES))
        units = [Decimal(1).scaleb(-places) for places in range(most + 1)]
    ranges = [(unit, _multiples(bounds, unit)) for unit in units]
    possible = [(unit, numbers) for unit, numbers in ranges if numbers][: _PLACES + 1]
    if not possible:
        raise NoTexts(f"no decimal number is within {dict(bounds)}")
    possible.sort(key=lambda each: abs(each[0].adjusted() + 2))  # cents are the plainest
    return st.one_of([_decimals(unit, numbers) for unit, numbers in possible])


def _decimals(unit: Decimal, numbers: range) -> st.SearchStrategy[str]:
    return st.integers(numbers[0], numbers[-1]).map(
        lambda number: format(_EXACT.multiply(number, unit), "f")
    )


def _multiples(bounds: Mapping[str, str], unit: Decimal) -> range:
    """Which multiples of the unit are within the bounds."""
    exact, places = Fraction(unit), max(0, -unit.adjusted())
    least, most = [], []
    if "max_digits" in bounds:
        digits = int(bounds["max_digits"])
        if places > digits:
            return range(0)
        limit = 10 ** (digits - int(bounds.get("decimal_places", places)) + places) - 1
        least.append(-limit)
        most.append(limit)
    if "ge" in bounds:
        least.append(math.ceil(Fraction(bounds["ge"]) / exact))
    if "gt" in bounds:
        least.append(math.floor(Fraction(bounds["gt"]) / exact) + 1)
    if "le" in bounds:
        most.append(math.floor(Fraction(bounds["le"]) / exact))
    if "lt" in bounds:
        most.append(math.ceil(Fraction(bounds["lt"]) / exact) - 1)
    span = math.floor(Fraction(_LARGEST) / exact)
    low = max(least) if least else min(most) - span if most else -span
    high = min(most) if most else max(low, 0) + span
    return range(low, high + 1)


def _uuids(version: str, _: str) -> st.SearchStrategy[str]:
    def with_version(text: str) -> str:
        return f"{text[:14]}{version}{text[15:19]}8{text[20:]}"

    return st.uuids().map(str).map(with_version if version else str)


def _bytes(encode: Callable[[bytes], bytes]) -> st.SearchStrategy[str]:
    return st.binary(max_size=50).map(lambda value: encode(value).decode())


def _datetimes(pattern: str) -> st.SearchStrategy[str]:
    plain = st.datetimes(_FROM, _UNTIL).map(datetime.isoformat)
    return _zoned(plain, pattern, "2000-01-01T00:00:00", has_zone=True)


def _times(pattern: str) -> st.SearchStrategy[str]:
    return _zoned(st.times().map(time.isoformat), pattern, "00:00:00", has_zone=False)


def _zoned(
    plain: st.SearchStrategy[str], pattern: str, example: str, *, has_zone: bool
) -> st.SearchStrategy[str]:
    """With a time zone where the pattern wants one; where it leaves the choice, as `has_zone`."""
    takes = [bool(re.search(pattern, example + zone)) for zone in ("", "Z")]
    if not (has_zone if takes[0] == takes[1] else takes[1]):
        return plain
    minutes = st.integers(-12 * 60, 14 * 60)
    zones = st.just("Z") | minutes.filter(bool).map(
        lambda offset: f"{'-' if offset < 0 else '+'}{abs(offset) // 60:02}:{abs(offset) % 60:02}"
    )
    return st.builds(add, plain, zones)


def _durations(_: str) -> st.SearchStrategy[str]:
    most = timedelta(days=9_999)
    return st.timedeltas(-most, most).map(to_jsonable_python)


def _urls(pattern: str) -> st.SearchStrategy[str]:
    found = _SCHEMES.match(pattern)
    schemes = found[1].replace("\\", "").split("|") if found else ["https", "http"]
    rest = st.from_regex(rf"://{_HOST}/([a-z0-9]{{1,9}}(\?[a-z]=[0-9])?)?", fullmatch=True)
    return st.builds(add, st.sampled_from(schemes), rest)


def _matching(pattern: str) -> st.SearchStrategy[str]:
    return st.from_regex(pattern, fullmatch=True)


def _addresses(version: Literal[4, 6] | None) -> st.SearchStrategy[str]:
    return st.ip_addresses(v=version).map(str)


def _networks(version: Literal[4, 6] | None) -> st.SearchStrategy[str]:
    return _interfaces(version).map(lambda text: str(ip_network(text, strict=False)))


def _interfaces(version: Literal[4, 6] | None) -> st.SearchStrategy[str]:
    versions: tuple[Literal[4, 6], ...] = (4, 6) if version is None else (version,)
    return st.one_of(
        [
            st.builds(
                "{}/{}".format, st.ip_addresses(v=each), st.integers(0, 32 if each == 4 else 128)
            )
            for each in versions
        ]
    )


_FORMATS: Mapping[str, Callable[[str], st.SearchStrategy[str]]] = {
    "date-time": _datetimes,
    "date": lambda _: st.dates(_FROM.date(), _UNTIL.date()).map(date.isoformat),
    "time": _times,
    "duration": _durations,
    "uuid": partial(_uuids, ""),
    **{f"uuid{version}": partial(_uuids, str(version)) for version in range(1, 9)},
    "email": lambda _: _matching(_EMAIL),
    "name-email": lambda _: _matching(rf"[A-Z][a-z]{{1,9}} <{_EMAIL}>"),
    "ipv4": lambda _: _addresses(4),
    "ipv6": lambda _: _addresses(6),
    "ipvanyaddress": lambda _: _addresses(None),
    "ipv4network": lambda _: _networks(4),
    "ipv6network": lambda _: _networks(6),
    "ipvanynetwork": lambda _: _networks(None),
    "ipv4interface": lambda _: _interfaces(4),
    "ipv6interface": lambda _: _interfaces(6),
    "ipvanyinterface": lambda _: _interfaces(None),
    "uri": _urls,
    "multi-host-uri": _urls,
    "path": lambda _: _matching("[a-z0-9]{1,9}(/[a-z0-9]{1,9}){0,3}"),
    "base64": lambda _: _bytes(base64.b64encode),
    "base64url": lambda _: _bytes(base64.urlsafe_b64encode),
}
"""How to generate each format, from the pattern that the schema has beside it."""
