"""Warning of database connections that others on the network could read, change or answer."""

from __future__ import annotations

import logging
import ssl

_log = logging.getLogger("eventmesh.database")


def exposure(*, tls: ssl.SSLContext | None, is_local: bool, accepted: bool) -> str | None:
    """What others on the network can do to a connection; None where that is nothing, or is
    `accepted`."""
    if is_local or accepted:
        return None
    if tls is None:
        return "is not encrypted, so that the network can read and change it"
    if tls.verify_mode is ssl.CERT_NONE:
        return "is encrypted, but to whom is not verified, so that another server could answer"
    return None


class ExposureWarning:
    """One log line about the connections of one engine, with what to `write` into the URL that is
    in `variable`."""

    def __init__(self, variable: str, *, accepted: bool, write: str) -> None:
        self._variable = variable
        self._accepted = accepted
        self._write = write
        self._given = False

    def look_at(self, tls: ssl.SSLContext | None, *, is_local: bool) -> None:
        """Warn if this is the first connection that is exposed."""
        found = exposure(tls=tls, is_local=is_local, accepted=self._accepted)
        if found and not self._given:
            self._given = True
            _log.warning(
                "the connection to the database in %s %s: add %s where the network is trusted",
                self._variable,
                found,
                self._write,
            )
