"""Shortening text to a number of UTF-8 bytes, which is how AMQP limits it, without leaving half a
character. A lone surrogate, which UTF-8 cannot express, is written as its escape."""

from __future__ import annotations

_ELLIPSIS = "…".encode()


def keep_start(text: str, max_bytes: int) -> str:
    """The text, or its beginning and an ellipsis if it is longer than that."""
    raw = text.encode("utf-8", errors="backslashreplace")
    if len(raw) > max_bytes:
        start = raw[: max_bytes - len(_ELLIPSIS)].decode(errors="ignore")
        raw = start.encode() + _ELLIPSIS
    return raw.decode()


def keep_end(text: str, max_bytes: int) -> str:
    """The text, or an ellipsis and its end if it is longer than that: in a traceback, the end says
    most."""
    raw = text.encode("utf-8", errors="backslashreplace")
    if len(raw) > max_bytes:
        continuation_bytes = bytes(range(0x80, 0xC0))
        end = raw[len(raw) - max_bytes + len(_ELLIPSIS) :].lstrip(continuation_bytes)
        raw = _ELLIPSIS + end
    return raw.decode()
