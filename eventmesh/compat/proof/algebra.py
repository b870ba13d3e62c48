"""What `jsonschema-rs` says of two schemas: a proof, or a schema of what breaks."""

from __future__ import annotations

from typing import Any

from eventmesh.compat.schema.normal import definitions_of
from eventmesh.compat.schema.reading import Schema


class Algebra:
    """What `jsonschema-rs` can say of two schemas in their one form, brought to its own once."""

    def __init__(self, writer: Schema, reader: Schema) -> None:
        self._pair = _canonical(writer, reader)
        # It takes a format that it does not know for one that refuses nothing in some places.
        self._proves = "'format'" not in repr((writer, reader))

    def covered(self) -> bool:
        """Whether it proves that the reader's accepts all that the writer's does."""
        import jsonschema_rs

        if self._pair is None or not self._proves:
            return False
        writer, reader = self._pair
        try:
            return bool(reader.covers(writer) == jsonschema_rs.canonical.Containment.YES)
        except (jsonschema_rs.canonical.CanonicalizationError, ValueError):
            return False

    def difference(self) -> Schema | None:
        """A schema of what the writer's accepts and the reader's does not, if it can say that."""
        import jsonschema_rs

        if self._pair is None:
            return None
        writer, reader = self._pair
        try:
            found = writer.subtract(reader).to_json_schema()
        except (jsonschema_rs.canonical.CanonicalizationError, ValueError):
            return None
        return _with_formats_named(found, "")  # type: ignore[no-any-return]


def _canonical(writer: Schema, reader: Schema) -> Any:
    import jsonschema_rs

    if definitions_of(writer) or definitions_of(reader):
        return None  # it binds references of two documents to one of them
    # The time it takes grows with the product of the alternatives, and of the sizes.
    if _weight(writer) * _weight(reader) > 2_000 or _size(writer) + _size(reader) > 3_000:
        return None
    try:
        return tuple(
            jsonschema_rs.canonicalize(
                _with_formats_named(schema, "pydantic-"),
                draft=jsonschema_rs.Draft202012,
                validate_formats=True,
                offline=True,
            )
            for schema in (writer, reader)
        )
    except (jsonschema_rs.ValidationError, ValueError):  # the library's own errors are ValueErrors
        return None


def _size(schema: Any) -> int:
    if isinstance(schema, dict):
        return 1 + sum(map(_size, schema.values()))
    return 1 + sum(map(_size, schema)) if isinstance(schema, list) else 1


def _weight(schema: Any) -> int:
    """About how many alternatives a schema comes to, at each level."""
    if isinstance(schema, list):
        return max((_weight(entry) for entry in schema), default=1)
    if not isinstance(schema, dict):
        return 1
    weight = 1
    for keyword, value in schema.items():
        if keyword in ("anyOf", "oneOf") and isinstance(value, list):
            weight *= sum(_weight(entry) for entry in value) or 1
        elif keyword == "allOf" and isinstance(value, list):
            for entry in value:
                weight *= _weight(entry)
        elif keyword in ("if", "then", "else", "not"):
            weight *= 2 * _weight(value)
        elif keyword in ("dependentRequired", "dependentSchemas"):
            weight *= 2 ** min(len(value), 20)
        elif keyword not in ("enum", "const"):
            weight = max(weight, _weight(value))
        weight = min(weight, 1_000_000)
    return weight


def _with_formats_named(schema: Any, prefix: str) -> Any:
    """The schema with each format under a name that the library knows nothing of, or back."""
    if isinstance(schema, list):
        return [_with_formats_named(entry, prefix) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    written = {}
    for keyword, value in schema.items():
        if keyword == "format" and isinstance(value, str):
            written[keyword] = prefix + value if prefix else value.removeprefix("pydantic-")
        elif keyword in ("enum", "const"):
            written[keyword] = value
        else:
            written[keyword] = _with_formats_named(value, prefix)
    return written
