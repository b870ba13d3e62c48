"""Whether a document is valid, with `format` as pydantic enforces it, by two validators."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from eventmesh.compat.budget import Unproved
from eventmesh.compat.schema.formats import checks
from eventmesh.compat.schema.reading import Schema, dialect, stated

if TYPE_CHECKING:
    from jsonschema import FormatChecker, ValidationError

Check = Callable[[Any], bool]


def validator(schema: Schema, draft: str) -> Check:
    """Whether a document is accepted, by `jsonschema-rs`. Unproved for a schema it cannot take."""
    import jsonschema_rs

    if isinstance(schema, bool):
        return lambda document: schema
    try:
        made = jsonschema_rs.validator_for(
            stated(schema, dialect(schema, draft)),
            formats=checks(),
            validate_formats=True,
            offline=True,
        )
    except (jsonschema_rs.ValidationError, jsonschema_rs.ReferencingError, ValueError) as error:
        raise Unproved(f"the schema cannot be used: {_first_line(error)}") from None
    return made.is_valid


def explain(schema: Schema, draft: str, document: Any) -> str:
    """What is wrong with a document, in one line; empty when nothing is."""
    import jsonschema_rs

    if isinstance(schema, bool):
        return "" if schema else "no document is accepted"
    made = jsonschema_rs.validator_for(
        stated(schema, dialect(schema, draft)), formats=checks(), validate_formats=True,
        offline=True,
    )  # fmt: skip
    for error in made.iter_errors(document):
        place = ".".join(map(str, error.instance_path))
        return f"{place}: {error.message}" if place else str(error.message)
    return ""


def second_validator(schema: Schema, draft: str) -> Check:
    """The same by `jsonschema`, which is slower and was written by others; only patterns are read
    by the first, whose time is bounded. The check is Unproved where it fails, such as on recursion
    without an end."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import validator_for
    from referencing.exceptions import Unresolvable

    if isinstance(schema, bool):
        return lambda document: schema
    whole = stated(schema, dialect(schema, draft))
    if "'patternProperties'" in repr(whole) and "'unevaluatedProperties'" in repr(whole):
        raise Unproved("the second validator would read patterns by itself")
    kind = _with_our_patterns(validator_for(whole))
    made = kind(whole, format_checker=_format_checker())

    def check(document: Any) -> bool:
        try:
            return bool(made.is_valid(document))
        except (Unresolvable, SchemaError, RecursionError, ArithmeticError, ValueError) as error:
            raise Unproved(f"the second validator failed: {_first_line(error)}") from None

    return check


@lru_cache(maxsize=8)
def _with_our_patterns(kind: Any) -> Any:
    from jsonschema.validators import extend

    keywords = {
        "pattern": _pattern,
        "patternProperties": _pattern_properties,
        "additionalProperties": _additional_properties,
    }
    return extend(kind, keywords)


Errors = Iterator["ValidationError"]


def _pattern(validator: Any, pattern: str, document: Any, schema: Any) -> Errors:
    if isinstance(document, str) and not matches(pattern, document):
        yield _error("it does not match the pattern")


def _pattern_properties(validator: Any, held: Any, document: Any, schema: Any) -> Errors:
    for pattern, part in held.items() if isinstance(document, dict) else ():
        for name, value in document.items():
            if matches(pattern, name):
                yield from validator.descend(value, part, path=name, schema_path=pattern)


def _additional_properties(validator: Any, held: Any, document: Any, schema: Any) -> Errors:
    for name, value in document.items() if isinstance(document, dict) else ():
        known = name in schema.get("properties", ()) or any(
            matches(pattern, name) for pattern in schema.get("patternProperties", ())
        )
        if not known and held is False:
            yield _error(f"{name!r} is not known")
        elif not known:
            yield from validator.descend(value, held, path=name)


def _error(message: str) -> ValidationError:
    from jsonschema import ValidationError

    return ValidationError(message)


@lru_cache(maxsize=1)
def _format_checker() -> FormatChecker:
    from jsonschema import FormatChecker

    checker = FormatChecker(formats=())
    for name, check in checks().items():
        checker.checkers = {**checker.checkers, name: (_of_text(check), ())}
    return checker


def _of_text(check: Callable[[str], bool]) -> Check:
    return lambda value: not isinstance(value, str) or check(value)


def matches(pattern: str, text: str) -> bool:
    """Whether a pattern is found in a text, as JSON Schema reads patterns."""
    return _matcher(pattern)(text)


@lru_cache(maxsize=2048)
def _matcher(pattern: str) -> Check:
    try:
        return validator({"pattern": pattern}, "2020")
    except Unproved:
        return lambda text: False


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
