"""Refuses actions that another site makes a user's browser send (cross-site request forgery).

An action is accepted only if all of this holds:

- the browser sends our cookie, which is `SameSite=Strict`, so never with another site's request;
- the form has the token that belongs to this cookie and this user;
- Origin, or Referer from a browser that sends no Origin, names the host that was asked.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

COOKIE = "eventmesh_dashboard"
FIELD = "token"

_COOKIE_BYTES = 32


class ForgeryGuard:
    """Makes and checks tokens. `origins` are further origins of the pages, such as
    `https://ops.example.org`, where a proxy changes the Host header."""

    def __init__(self, origins: Collection[str] = ()) -> None:
        self._secret = secrets.token_bytes(32)
        self._origins = frozenset(origins)

    def new_cookie(self) -> str:
        return secrets.token_urlsafe(_COOKIE_BYTES)

    def token(self, cookie: str, user: str) -> str:
        """The token for the forms of this user in the browser with this cookie."""
        both = f"{cookie}\n{user}".encode(errors="surrogatepass")
        return hmac.new(self._secret, both, hashlib.sha256).hexdigest()

    def why_refused(
        self, headers: Mapping[str, str], cookie: str | None, user: str, token: str
    ) -> str | None:
        """Why a form is not accepted; None if it is."""
        if headers.get("sec-fetch-site", "same-origin") != "same-origin":
            return "Another site has sent this form."
        origin = headers.get("origin") or _origin_of(headers.get("referer", ""))
        if not self._is_ours(origin, headers.get("host", "")):
            return "This form was not sent from a page of this dashboard."
        expected = "" if not cookie else self.token(cookie, user)
        if not expected or not hmac.compare_digest(
            expected.encode(), token.encode("utf-8", "replace")
        ):
            return (
                "This form is too old, for example because the dashboard was restarted. Load its "
                "page again."
            )
        return None

    def _is_ours(self, origin: str, host: str) -> bool:
        if origin in self._origins:
            return True
        try:
            found = urlsplit(origin)
        except ValueError:
            return False
        return found.scheme in ("http", "https") and found.netloc == host != ""


def _origin_of(url: str) -> str:
    try:
        found = urlsplit(url)
    except ValueError:
        return ""
    return f"{found.scheme}://{found.netloc}" if found.netloc else ""
