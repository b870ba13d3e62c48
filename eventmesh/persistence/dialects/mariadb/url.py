"""The parameters of a MariaDB URL: those of MariaDB's and MySQL's own clients.

    mariadb://user:password@host/db?ssl_ca=ca.pem

A parameter that EventMesh does not understand is an error: if it were ignored, it could be the one
that was to protect the connection.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any

from sqlalchemy.engine import URL

from eventmesh.errors import UsageError

_FILES = ("ssl_ca", "ssl_cert", "ssl_key")
_SWITCHES = ("ssl", "ssl_disabled", "ssl_verify_cert", "ssl_verify_identity", "ssl_check_hostname")
_TLS = (*_FILES, *_SWITCHES, "ssl_mode", "ssl_capath", "ssl_key_password", "ssl_cipher")
_NUMBERS = ("connect_timeout", "read_timeout", "port")
_TEXTS = ("unix_socket", "program_name", "host", "user", "password")
_KNOWN = (*_TLS, *_NUMBERS, *_TEXTS, "charset")

_MODES = ("DISABLED", "REQUIRED", "VERIFY_CA", "VERIFY_IDENTITY")
_TRUTH: Mapping[str, bool] = MappingProxyType(
    {"true": True, "1": True, "on": True, "yes": True}
    | {"false": False, "0": False, "off": False, "no": False}
)


@dataclass(frozen=True, slots=True)
class Tls:
    """What is asked of TLS: of the certificate, whether it is `verified`, and whether it must have
    the `identity` of the host in the URL."""

    verified: bool
    identity: bool
    query: Mapping[str, str] = field(repr=False)


def tls(url: URL, variable: str) -> Tls | None:
    """What the parameters of a URL ask of TLS; None where it is not asked for. UsageError for what
    is not understood."""
    query = _understood(url, variable)
    switches = {name: _switch(name, query[name], variable) for name in _SWITCHES if name in query}
    mode = query.get("ssl_mode", "").upper()
    if mode == "PREFERRED":
        raise UsageError(
            f"{variable} has ssl_mode={query['ssl_mode']}, which the driver does not "
            f"support. Write VERIFY_IDENTITY, with ssl_ca, or REQUIRED."
        )
    if mode and mode not in _MODES:
        raise UsageError(f"{variable} has ssl_mode={mode}. Write one of {', '.join(_MODES)}.")
    off = is_off(url)
    asked = [name for name in _TLS if name in query and name not in ("ssl", "ssl_disabled")]
    if off and [name for name in asked if name != "ssl_mode"]:
        raise UsageError(f"{variable} turns TLS off, and has {asked[0]}. Keep one of them.")
    if off or not (asked or switches.get("ssl")):
        return None
    identity = switches.get("ssl_verify_identity", switches.get("ssl_check_hostname"))
    verified = switches.get("ssl_verify_cert")
    if verified is None:
        authority = "ssl_ca" in query or "ssl_capath" in query
        verified = bool(authority or identity or mode.startswith("VERIFY"))
    if identity is None:
        identity = verified and mode != "VERIFY_CA"
    if identity and not verified:
        raise UsageError(
            f"{variable} has ssl_verify_cert=false, and asks for a check of the host's name, "
            f"which is worth nothing without it. Write ssl_verify_cert=true."
        )
    return Tls(verified, identity, query)


def is_off(url: URL) -> bool:
    """Whether a URL that `tls` has accepted turns TLS off."""
    query = {name: str(value).lower() for name, value in url.query.items()}
    return (
        query.get("ssl_mode") == "disabled"
        or _TRUTH.get(query.get("ssl", "")) is False
        or bool(_TRUTH.get(query.get("ssl_disabled", "")))
    )


def arguments(url: URL, variable: str) -> dict[str, Any]:
    """The driver's arguments for these parameters; UsageError for what cannot be used."""
    asked = tls(url, variable)
    query = _understood(url, variable)
    found: dict[str, Any] = {name: query[name] for name in _TEXTS if name in query}
    for name in _NUMBERS:
        if name in query:
            if not query[name].isdecimal() or int(query[name]) < 1:
                raise UsageError(
                    f"{variable} has {name}={query[name]}. Write a whole number, such as 10."
                )
            found[name] = int(query[name])
    if asked is not None:
        found["ssl"] = _context(asked, variable)
    return found


def _context(asked: Tls, variable: str) -> ssl.SSLContext:
    query = asked.query
    for name in _FILES:
        if name in query:
            try:
                with open(query[name], "rb"):  # noqa: PTH123  # an error that names no path
                    pass
            except OSError:
                shown = "a file" if name == "ssl_key" else f"the file {query[name]}"
                raise UsageError(
                    f"{variable} names {shown} by {name} that is not there or cannot be read. "
                    f"Correct its path, or its permissions."
                ) from None
    try:
        context = ssl.create_default_context(
            cafile=query.get("ssl_ca"), capath=query.get("ssl_capath")
        )
        context.check_hostname = asked.identity
        context.verify_mode = ssl.CERT_REQUIRED if asked.verified else ssl.CERT_NONE
        if cert := query.get("ssl_cert"):
            password = query.get("ssl_key_password", "")
            context.load_cert_chain(cert, query.get("ssl_key"), password=lambda: password)
        if ciphers := query.get("ssl_cipher"):
            context.set_ciphers(ciphers)
    except (ssl.SSLError, OSError) as error:
        reason = getattr(error, "reason", None) or type(error).__name__
        raise UsageError(
            f"{variable} has parameters that cannot be used for TLS ({reason}). Files must be PEM, "
            f"and a key must belong to its certificate."
        ) from None
    return context


def _understood(url: URL, variable: str) -> dict[str, str]:
    query: dict[str, str] = {}
    for name, value in url.query.items():
        if not isinstance(value, str):
            raise UsageError(f"{variable} has {name} {len(value)} times. Write it once.")
        if name not in _KNOWN:
            near = get_close_matches(name, _KNOWN, 1)
            advice = f"Did you mean {near[0]}?" if near else f"Known are {', '.join(_KNOWN)}."
            raise UsageError(
                f"{variable} has the parameter {name}, which EventMesh does not know. {advice}"
            )
        query[name] = value
    if query.get("charset", "utf8mb4").lower() != "utf8mb4":
        raise UsageError(f"{variable} has charset={query['charset']}. It is always utf8mb4.")
    return query


def _switch(name: str, value: str, variable: str) -> bool:
    if value.lower() not in _TRUTH:
        raise UsageError(f"{variable} has {name}={value}. Write true or false.")
    return _TRUTH[value.lower()]
