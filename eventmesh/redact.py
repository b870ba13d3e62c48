"""Removes passwords from URLs and error texts before people or logs see them.

Passwords with reserved characters are often not escaped, so a URL is not parsed by its grammar
here. Everything from the first colon after the scheme to the last `@` is hidden, and everything
after `password=` and the like. In case of doubt, more is hidden than necessary:

    amqp://u:p@ss:w0rd/x?y#z@h:1/     amqp://u:***@h:1/
    u:s3cr3t@host                     u:***@host
    u:s3cr3t                          u:***
    localhost:5672                    localhost:5672           a port is a number
    amqp://u:s3cr3t                   amqp://u:***
    redis://h?password=s3cr3t&db=1    redis://h?password=***   a password may hold "&db=1"

Texts may be long and come from anywhere, so no pattern here may read the same characters again
from each of many places: a match begins where the run of its characters begins, or is bounded.
"""

from __future__ import annotations

import re
from urllib.parse import unquote

_HIDDEN = "***"

_SCHEME = re.compile(
    r"\s*(?:(?:amqp|redis|postgres|postgresql|mariadb|mysql|http|ws)s?|sqlite|memory|kafka|nats)"
    r"(?:\+\w+)?://",
    re.IGNORECASE,
)
"""Known schemes. Other text before `://` may not be a scheme: in `user://word@host` the password
may begin with two slashes."""

_COLON = re.compile(r":|%3a", re.IGNORECASE)
_BAD_PORT = re.compile(r":(?!\d*(?:,|$))")
_PORT = re.compile(r"\d{1,5}(?=[/?#,]|$)")
_IN_BRACKETS = re.compile(r"\[[^\[\]]*\]")
_SECRET_PARAMETER = re.compile(
    r"(?<![\w.-])(?=[\w.-]*(?:password|passwd|passphrase|pwd|secret|token|api_?key))"
    r"[\w.-]++\s*+=",
    re.IGNORECASE,
)
_RESERVED = re.compile(r"[^\w.~!$'()*+%-]")
"""Characters that end a password early in a parser unless they are escaped. A password without them
is parsed as a whole, so no piece of it can appear in another part of an error."""

_KEY_PATH = re.compile(
    r"([?&](?:ssl_?key(?:file)?|keyfile|passfile|servicefile)=)[^&#]*", re.IGNORECASE
)
"""Parameters with the path of a key or of a password file, which a log need not show."""

_URL_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,40}://[^\s'\"<>]+")
"""With the end of a scheme that is longer: what matters is where the rest begins."""

_CUT_URL_AT_BEGIN = re.compile(r"[^\s'\"<>]*")
_CUT_URL_AT_END = re.compile(r"(?<![^\s'\"<>])[^\s'\"<>]*+\Z")
"""What may be a part of a URL where a text is cut."""

_PIECE = 4
"""How many consecutive characters of a password are hidden in an error. Shorter pieces reveal
little and would match everywhere, unless they are all that is in quotes."""

_QUOTED = re.compile(r"(?<=')[^']+(?=')")


def redact(url: str) -> str:
    """The URL without passwords and paths of keys, even if it is not a valid URL."""
    shown, begin = "", 0
    for start, end in _secret_spans(url):
        shown += url[begin:start] + _HIDDEN
        begin = end
    return _KEY_PATH.sub(rf"\1{_HIDDEN}", shown + url[begin:])


def redact_error(error: object, url: str) -> str:
    """The text of an error about this URL, without its passwords. A parser that mistook part of an
    unescaped password for the host or port repeats that part: "invalid port 'w0rd'"."""
    text = str(error)
    for start, end in _secret_spans(url):
        secret = url[start:end]
        if _RESERVED.search(secret):
            for form in (secret, unquote(secret)):
                text = _without_quoted_piece(_without_pieces(text, form), form)
        elif secret:
            text = text.replace(f":{secret}@", f":{_HIDDEN}@")
    return text


def redact_text(text: str) -> str:
    """Any text without the passwords of the URLs in it, as far as they are escaped."""
    if "://" not in text:
        return text
    return _URL_IN_TEXT.sub(lambda found: redact(found[0]), text)


def redact_ends(text: str, kept: int) -> str:
    """As `redact_text`, except that of a text longer than twice `kept` only so many characters are
    read at either end, and the words that this cuts are left out: they may be parts of URLs."""
    if len(text) > 2 * kept:
        head = _CUT_URL_AT_END.sub("", text[:kept])
        tail = _CUT_URL_AT_BEGIN.sub("", text[-kept:], count=1)
        text = f"{head} … {tail}"
    return redact_text(text)


def _secret_spans(url: str) -> list[tuple[int, int]]:
    """The positions of secrets, in order."""
    scheme = _SCHEME.match(url)
    begin = scheme.end() if scheme else 0
    colon, at = _COLON.search(url, begin), url.rfind("@")
    parameter = _SECRET_PARAMETER.search(url, begin)
    if parameter and at >= parameter.end():  # one contains the other
        first = min(parameter.end(), colon.end() if colon else len(url))
        return [(first, len(url))]
    spans = []
    if at >= begin:
        if colon and colon.end() <= at:
            spans.append((colon.end(), at))
    elif (start := _misplaced_password(url, begin)) is not None:
        return [(min(start, parameter.end()) if parameter else start, len(url))]
    if parameter:
        spans.append((parameter.end(), len(url)))
    return spans


def _misplaced_password(url: str, begin: int) -> int | None:
    """The position of text in the place of a port that is not a number, such as the password in
    `user:password` without a host."""
    if not begin:
        colon = _COLON.search(url)
        if not colon or url.startswith("/", colon.end()) or _PORT.match(url, colon.end()):
            return None
        return colon.end()
    authority = re.split(r"[/?#]", url[begin:], maxsplit=1)[0]
    masked = _IN_BRACKETS.sub(lambda found: "x" * len(found[0]), authority)
    bad = _BAD_PORT.search(masked)
    return begin + bad.end() if bad else None


def _without_quoted_piece(text: str, secret: str) -> str:
    """The text without a piece of the secret, however short, that a parser has put in quotes."""
    return _QUOTED.sub(lambda quoted: _HIDDEN if quoted[0] in secret else quoted[0], text)


def _without_pieces(text: str, secret: str) -> str:
    """The text without the pieces that it shares with the secret."""
    pieces = {secret[at : at + _PIECE] for at in range(len(secret) - _PIECE + 1)}
    kept, at, hidden_to = [], 0, 0
    for at, char in enumerate(text):
        if text[at : at + _PIECE] in pieces:
            if at >= hidden_to:
                kept.append(_HIDDEN)
            hidden_to = at + _PIECE
        if at >= hidden_to:
            kept.append(char)
    return "".join(kept)
