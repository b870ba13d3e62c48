"""URLs as people and logs may see them."""

from __future__ import annotations

import re

# Up to the last @, because a password that was not escaped may hold anything.
_PASSWORD = re.compile(r"(://[^:@/?#]*:).*(@)")
_QUERY_PASSWORD = re.compile(r"([?&][^=&]*password[^=&]*=)[^&#]*", re.IGNORECASE)


def redact(url: str) -> str:
    """The URL without its password; also one that is no proper URL."""
    return _QUERY_PASSWORD.sub(r"\1***", _PASSWORD.sub(r"\1***\2", url))
