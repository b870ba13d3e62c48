"""What a pydantic model really writes, and what it really reads, as JSON Schemas.

Pydantic's own schemas are for people and for other languages. They say nothing of the texts that
an `int` takes, call every text a Decimal, and know one of a field's aliases. These are for proofs:

- `writer_schema` allows what the model writes, and is closed: no field but those it names.
- `reader_schema` allows what the model reads, and more only where it says `x-checked`.

Keywords of our own begin with `x-`, and mean nothing to a validator: `x-checked` names what a
schema cannot say of a value (validators and serializers), `x-decimal` bounds a number written as
text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from datetime import timedelta
from enum import Flag
from typing import Annotated, Any, cast

from pydantic import BaseModel, ByteSize, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.json_schema import (
    GenerateJsonSchema,
    JsonSchemaValue,
    SkipJsonSchema,
    WithJsonSchema,
)
from pydantic_core import PydanticOmit, to_jsonable_python
from pydantic_core import core_schema as core

from eventmesh.compat.pydantic_models.flags import read_flags, written_flags
from eventmesh.compat.pydantic_models.functions import fingerprint, is_library, missing_of
from eventmesh.compat.pydantic_models.own_defaults import with_own_defaults

CHECKED, DECIMAL, EDITION = "x-checked", "x-decimal", "x-edition"
TODAY = 3
"""The edition of these schemas. Those of the first one, which lock files do not name, believed a
schema written by hand, and left out bounds on lengths of time and times of day, fields of any
subclass, NaN as text, and what `_Truthful._more` adds. Those of the second one left out what
`_Truthful._names` adds: bounds on keys, and which flags are read as keys."""

STRIPPED = "what is left without the white space around"
"""What a reader with `strip_whitespace` checks; its writer says it by `STRIPPED_TEXT`."""
STRIPPED_TEXT = r"^(\S([\s\S]*\S)?)?$"
_ANY_CLASS = "SerializeAsAny"
_HAND_WRITTEN = "pydantic_js_annotation_functions"
_BY_HAND = (WithJsonSchema, cast(type, SkipJsonSchema))
_ANNOTATIONS = {"title", "description", "examples", "discriminator", "deprecated", "readOnly",
                "writeOnly"}  # fmt: skip
_VALUES = {"default", "const", "enum", CHECKED, DECIMAL}  # what stands below these is no schema
_MAPS_OF_SCHEMAS = {"properties", "$defs", "patternProperties", "dependentSchemas"}

_INT_TEXT = r"^[+-]?[0-9]+(\.0+)?$"
_FLOAT_TEXT = r"^[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_OF_TEXTS = {_INT_TEXT: "integer", _FLOAT_TEXT: "number"}
_BOOL_TEXT = (
    r"^(0|1|[oO][nN]|[oO][fF][fF]|[tT]|[fF]|[yY]|[nN]|[yY][eE][sS]|[nN][oO]"
    r"|[tT][rR][uU][eE]|[fF][aA][lL][sS][eE])$"
)
_DATE = r"[0-9]{4}-[0-9]{2}-[0-9]{2}"
_TIME = r"[0-9]{2}:[0-9]{2}:[0-9]{2}(\.[0-9]{6})?"
_ZONE = r"(Z|[+-][0-9]{2}:[0-9]{2})"
_DURATION = r"^-?P([0-9]+Y)?([0-9]+M)?([0-9]+D)?(T([0-9]+H)?([0-9]+M)?([0-9]+(\.[0-9]+)?S)?)?$"
_UUID = "^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
_EXPONENTS = (  # pydantic's patterns have exponents for which Python writes no exponent
    ("0E[+-][1-9][0-9]*", r"0E\+[1-9][0-9]*|0E-(?:[7-9]|[1-9][0-9]+)"),
    ("?E-[1-9][0-9]*", "?E-(?:[7-9]|[1-9][0-9]+)"),
)
_NUMBER_KEYS = {"integer": r"^(0|-?[1-9][0-9]*)$", "boolean": "^(true|false)$"}

_FILES = ("file-path", "directory-path")
_SIZE = ByteSize.byte_string_pattern
_UNITS = "|".join(
    "".join(f"[{letter}{letter.upper()}]" for letter in unit) for unit in ByteSize.byte_sizes
)
_KNOWN_SIZE = rf"^\s*[0-9]*\.?[0-9]+\s*({_UNITS})?([^0-9A-Za-z_][\s\S]*)?$"
_ENDING_IN_A_SLASH = {"http", "https", "ws", "wss", "ftp", "file"}
_BOUNDS = {"ge": "minimum", "gt": "exclusiveMinimum", "le": "maximum", "lt": "exclusiveMaximum",
           "multiple_of": "multipleOf"}  # fmt: skip

# Seconds, or milliseconds beyond 2e10, that pydantic takes for a point in time.
_TIMESTAMP = {"type": "number", "minimum": -62_135_596_800_000, "maximum": 253_402_300_799_999}
_DATESTAMP = {"type": "number", "minimum": -2e10, "maximum": 2e10, "multipleOf": 86_400}
_DATESTAMP_IN_MILLISECONDS = {
    "type": "number", "minimum": -62_135_596_800_000, "maximum": 253_402_300_799_999,
    "multipleOf": 86_400_000,
}  # fmt: skip
_SECONDS = {"type": "number", "minimum": -86_399_999_913_600, "maximum": 86_399_999_913_600}
_SPANS = {  # seconds that stand for a point or a length of time, the least and the most
    "date": (-62_135_596_800, 253_402_214_400),
    "date-time": (-62_135_596_800, 253_402_300_799),
    "time": (0, 86_399),
    "duration": (-86_399_999_913_600, 86_399_999_913_600),
}
_SECONDS_OF_DAY = {"type": "number", "minimum": 0, "exclusiveMaximum": 86_400}


def writer_schema(
    model: type[BaseModel], *, by_alias: bool = True, edition: int = TODAY
) -> dict[str, Any]:
    """What this model writes by `model_dump_json(by_alias=True)`, or False; the same for the same
    model with every release of pydantic that writes the same."""
    schema = model.model_json_schema(
        by_alias=by_alias,
        mode="serialization",
        schema_generator=_WRITTEN.get(edition, _Written),
    )
    return cast(dict[str, Any], _with_subclasses(closed(tidy(schema))))


def reader_schema(
    model: type[BaseModel], *, by_alias: bool = True, edition: int = TODAY
) -> dict[str, Any]:
    """What this model reads by `model_validate_json`; without `by_alias`, by the names of its
    fields only."""
    schema = model.model_json_schema(
        by_alias=by_alias,
        mode="validation",
        schema_generator=_READ.get(edition, _Read),
    )
    return cast(dict[str, Any], tidy(schema))


def shown_schema(model: type[BaseModel]) -> dict[str, Any]:
    """What pydantic says that this model reads: without what it takes besides, such as texts for
    numbers. Changes are told by it, as people know it."""
    schema = model.model_json_schema(mode="validation", schema_generator=_Shown)
    return cast(dict[str, Any], tidy(schema))


def as_read(reader: dict[str, Any]) -> dict[str, Any]:
    """A reader's schema, also a frozen one, with what it leaves out.

    Dates are read from milliseconds, too, the texts of a number have its bounds, and a `ByteSize`
    has a known unit. Lock files say none of this, because then every model with a date or a bounded
    number had to be frozen again.
    """
    return cast(dict[str, Any], mapped(reader, lambda node: _with_all_ways(_with_units(node))))


def with_checked_files(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with the check that a `FilePath` or `DirectoryPath` makes: what is there."""

    def check(node: dict[str, Any]) -> dict[str, Any]:
        return _marked(node, [node["format"]]) if node.get("format") in _FILES else node

    return cast(dict[str, Any], mapped(schema, check))


def closed(schema: Any) -> Any:
    """The schema of what is written: no object has fields beyond those it names."""

    def close(node: dict[str, Any]) -> dict[str, Any]:
        if isinstance(node.get("properties"), dict) and node.get("type") == "object":
            node.setdefault("additionalProperties", False)
        return node

    return mapped(schema, close)


def _with_subclasses(schema: Any) -> Any:
    """The schema of what is written, with other fields in models that stand for subclasses."""
    open_ended: set[str] = set()

    def find(node: dict[str, Any]) -> dict[str, Any]:
        if _ANY_CLASS in node.get(CHECKED, ()):
            mapped(node, lambda part: open_ended.add(part.get("$ref")))
        return node

    mapped(schema, find)
    for name, definition in schema.get("$defs", {}).items():
        if f"#/$defs/{name}" in open_ended and "properties" in definition:
            definition["additionalProperties"] = True
    return schema


def tidy(schema: Any) -> Any:
    """The schema without what is for people only."""
    return mapped(schema, lambda node: {k: v for k, v in node.items() if k not in _ANNOTATIONS})


def plain(schema: Any) -> Any:
    """The schema without the keywords that are ours."""
    return mapped(schema, lambda node: {k: v for k, v in node.items() if k[:2] != "x-"})


def mapped(schema: Any, change: Any) -> Any:
    """The schema with each part of it, from the inside to the outside, changed by a function."""
    if isinstance(schema, list):
        return [mapped(entry, change) for entry in schema]
    if not isinstance(schema, dict):
        return schema
    return change(
        {
            keyword: value
            if keyword in _VALUES
            else {name: mapped(entry, change) for name, entry in value.items()}
            if keyword in _MAPS_OF_SCHEMAS and isinstance(value, dict)
            else mapped(value, change)
            for keyword, value in schema.items()
        }
    )


class _Shown(GenerateJsonSchema):
    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {}


class _Truthful(GenerateJsonSchema):
    """What both directions have in common: every model has a schema, and checks are named."""

    ignored_warning_kinds = {"skipped-choice", "non-serializable-default"}  # noqa: RUF012

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> JsonSchemaValue:
        return {CHECKED: [f"{schema['type']}: no JSON is known to be one"]}

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        """What the code does. A schema written by hand counts only where the code says nothing."""
        metadata = schema.get("metadata", {})
        functions = metadata.get(_HAND_WRITTEN, ())
        ours = [function for function in functions if not _is_by_hand(function)]
        if "pydantic_js_extra" not in metadata and len(ours) == len(functions):
            return super().generate_inner(schema)
        by_code = {**metadata, "pydantic_js_extra": None, _HAND_WRITTEN: ours}
        shown = super().generate_inner({**schema, "metadata": by_code})
        if shown.keys() == {CHECKED}:
            with suppress(PydanticOmit):
                return super().generate_inner(schema)
        return shown

    def _update_class_schema(
        self, json_schema: JsonSchemaValue, cls: type[Any], config: ConfigDict
    ) -> None:
        """As pydantic does, without titles and without a schema written by hand."""
        if config.get("extra") in ("allow", "forbid"):
            json_schema.setdefault("additionalProperties", config.get("extra") == "allow")

    def decimal_schema(self, schema: core.DecimalSchema) -> JsonSchemaValue:
        bounds = {
            name: str(schema[name])  # type: ignore[literal-required]
            for name in (*_BOUNDS, "max_digits", "decimal_places")
            if schema.get(name) is not None
        }
        return {"type": "string", "pattern": self.build_decimal_pattern(schema), DECIMAL: bounds}

    def _more(self, shown: JsonSchemaValue, checks: list[str]) -> JsonSchemaValue:
        """With checks that the first edition left out."""
        return _marked(shown, checks)

    def str_schema(self, schema: core.StringSchema) -> JsonSchemaValue:
        engine = schema.get("regex_engine", self._config.regex_engine)
        is_python = engine == "python-re" and schema.get("pattern") is not None
        checks = [f"regex_engine {engine}"] if is_python else []  # its $ stands before a newline
        return self._more(super().str_schema(schema), checks)

    def bytes_schema(self, schema: core.BytesSchema) -> JsonSchemaValue:
        return self._more(super().bytes_schema(schema), _lengths(schema))

    def _non_finite(self, schema: core.FloatSchema) -> list[JsonSchemaValue]:
        """The texts that stand for infinity and NaN where the model is configured to write them."""
        allowed = schema.get("allow_inf_nan", self._config.allow_inf_nan)
        if allowed and self._config.ser_json_inf_nan == "strings":
            return [{"enum": ["Infinity", "-Infinity", "NaN"]}]
        return []

    def fraction_schema(self, schema: core.FractionSchema) -> JsonSchemaValue:
        bounds = [f"{name} {schema[name]}" for name in _BOUNDS if schema.get(name) is not None]  # type: ignore[literal-required]
        text = {"type": "string", "pattern": r"^-?[0-9]+(/[1-9][0-9]*)?$"}
        if self.mode == "serialization":
            return _marked(text, bounds)
        number = {"type": "string", "pattern": _FLOAT_TEXT}
        return _marked({"anyOf": [text, number, {"type": "number"}]}, bounds)

    def complex_schema(self, schema: core.ComplexSchema) -> JsonSchemaValue:
        return {"type": "string", CHECKED: ["complex"]}

    def _keys(self, schema: Any, json_schema: JsonSchemaValue) -> JsonSchemaValue:
        """With the texts that may stand for keys, which pydantic shows for some types only."""
        if "keys_schema" not in schema:
            return json_schema
        for values in json_schema.pop("patternProperties", {}).values():
            json_schema["additionalProperties"] = values
        json_schema.pop("propertyNames", None)
        names = self._names(schema["keys_schema"])
        if names:
            json_schema["propertyNames"] = names
        return json_schema

    def _names(self, keys: Any) -> dict[str, Any] | None:
        """The texts that may stand for keys, if they are not all texts; with bounds on numbers."""
        shown = self.resolve_ref_schema(self.generate_inner(keys))
        return _as_names(cast(dict[str, Any], mapped(shown, _with_all_ways)), bounded=True)

    def dict_schema(self, schema: core.DictSchema) -> JsonSchemaValue:
        return self._keys(schema, super().dict_schema(schema))


class _Written(_Truthful):
    """The schema of what is written."""

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        shown = super().generate_inner(schema)
        if schema.get("serialization", {}).get("type") != "any" or not shown:
            return shown
        return _marked(shown, [_ANY_CLASS])

    def field_is_required(self, field: Any, total: bool) -> bool:
        if field["type"] == "typed-dict-field":
            return bool(field.get("required", total))
        return field.get("serialization_exclude_if") is None

    def ser_schema(self, schema: Any) -> JsonSchemaValue | None:
        shown = super().ser_schema(schema)
        if schema["type"] in ("to-string", "format"):
            return _marked(shown or {}, [f"{schema['type']} {schema.get('formatting_string', '')}"])
        function = schema.get("function")
        if function is None or is_library(function):
            return shown
        return _checked(shown or {}, function)

    def float_schema(self, schema: core.FloatSchema) -> JsonSchemaValue:
        return self.get_flattened_anyof([super().float_schema(schema), *self._non_finite(schema)])

    def function_before_schema(self, schema: Any) -> JsonSchemaValue:
        return _checked(super().function_before_schema(schema), schema["function"]["function"])

    def function_after_schema(self, schema: Any) -> JsonSchemaValue:
        return _checked(super().function_after_schema(schema), schema["function"]["function"])

    def function_wrap_schema(self, schema: Any) -> JsonSchemaValue:
        return _checked(super().function_wrap_schema(schema), schema["function"]["function"])

    def function_plain_schema(self, schema: Any) -> JsonSchemaValue:
        return _checked({}, schema["function"]["function"], always=True)

    def model_schema(self, schema: core.ModelSchema) -> JsonSchemaValue:
        shown = super().model_schema(schema)
        return with_own_defaults(shown, schema["cls"], by_alias=self.by_alias)

    def enum_schema(self, schema: core.EnumSchema) -> JsonSchemaValue:
        if issubclass(schema["cls"], Flag):
            return _marked(*written_flags(schema["cls"]))
        return super().enum_schema(schema)

    def str_schema(self, schema: core.StringSchema) -> JsonSchemaValue:
        shown = super().str_schema(schema)
        parts = []
        if schema.get("strip_whitespace", self._config.str_strip_whitespace):
            parts.append(STRIPPED_TEXT)
        if schema.get("to_lower", self._config.str_to_lower):
            parts.append(r"^[^A-Z]*$")
        if schema.get("to_upper", self._config.str_to_upper):
            parts.append(r"^[^a-z]*$")
        for pattern in parts:
            if shown.setdefault("pattern", pattern) != pattern:
                shown.setdefault("allOf", []).append({"pattern": pattern})
        return shown

    def bytes_schema(self, schema: core.BytesSchema) -> JsonSchemaValue:
        way = self._config.ser_json_bytes
        if way == "utf8":
            return super().bytes_schema(schema)
        if way == "hex":
            return self._more({"type": "string", "pattern": "^([0-9a-f]{2})*$"}, _lengths(schema))
        return self._more({"type": "string", "format": "base64url"}, _lengths(schema))

    def _common_temporal_schema(self, format: str, temporal_format: Any) -> JsonSchemaValue:  # noqa: A002
        shown = super()._common_temporal_schema(format, temporal_format)
        if shown["type"] != "number":
            return shown
        scale = 1_000 if temporal_format == "milliseconds" else 1
        least, most = _SPANS[format]
        return {"type": "number", "minimum": least * scale, "maximum": most * scale} | (
            {"multipleOf": 86_400 * scale} if format == "date" else {}
        )

    def date_schema(self, schema: core.DateSchema) -> JsonSchemaValue:
        return _exactly(super().date_schema(schema), f"^{_DATE}$", _clocked(schema))

    def time_schema(self, schema: core.TimeSchema) -> JsonSchemaValue:
        pattern = f"^{_TIME}{_zone(schema)}$"
        return _exactly(super().time_schema(schema), pattern, _clocked(schema))

    def datetime_schema(self, schema: core.DatetimeSchema) -> JsonSchemaValue:
        pattern = f"^{_DATE}T{_TIME}{_zone(schema)}$"
        return _exactly(super().datetime_schema(schema), pattern, _clocked(schema))

    def timedelta_schema(self, schema: core.TimedeltaSchema) -> JsonSchemaValue:
        return _exactly(super().timedelta_schema(schema), _DURATION, _clocked(schema))

    def url_schema(self, schema: core.UrlSchema) -> JsonSchemaValue:
        return self._more(_with_schemes(super().url_schema(schema), schema), _hosts(schema))

    def multi_host_url_schema(self, schema: core.MultiHostUrlSchema) -> JsonSchemaValue:
        return self._more(
            _with_schemes(super().multi_host_url_schema(schema), schema), _hosts(schema)
        )

    def sort(self, value: JsonSchemaValue, parent_key: str | None = None) -> JsonSchemaValue:
        return cast(JsonSchemaValue, mapped(super().sort(value, parent_key), _as_written))

    def decimal_schema(self, schema: core.DecimalSchema) -> JsonSchemaValue:
        shown = super().decimal_schema(schema)
        for loose, exact in _EXPONENTS:
            shown["pattern"] = shown["pattern"].replace(loose, exact)
        return shown

    def uuid_schema(self, schema: core.UuidSchema) -> JsonSchemaValue:
        return {**super().uuid_schema(schema), "pattern": _UUID}


class _Read(_Truthful):
    """The schema of what is read: with pydantic's coercions, and all names of a field."""

    def _names(self, keys: Any) -> dict[str, Any] | None:
        if keys["type"] == "enum" and issubclass(keys["cls"], Flag) and not missing_of(keys["cls"]):
            return {"enum": [str(member.value) for member in keys["cls"].__members__.values()]}
        return super()._names(keys)

    def _strict(self, schema: Any) -> bool:
        return bool(schema.get("strict", self._config.strict))

    def int_schema(self, schema: core.IntSchema) -> JsonSchemaValue:
        shown = super().int_schema(schema)
        if self._strict(schema):
            return shown
        ways = [shown, {"type": "string", "pattern": _INT_TEXT}, *_truth_values(schema)]
        return self.get_flattened_anyof(ways)

    def float_schema(self, schema: core.FloatSchema) -> JsonSchemaValue:
        shown = super().float_schema(schema)
        if self._strict(schema):
            return shown
        text = {"type": "string", "pattern": _FLOAT_TEXT}
        ways = [shown, text, *_truth_values(schema), *self._non_finite(schema)]
        return self.get_flattened_anyof(ways)

    def bool_schema(self, schema: core.BoolSchema) -> JsonSchemaValue:
        shown = super().bool_schema(schema)
        if self._strict(schema):
            return shown
        return {"anyOf": [shown, {"enum": [0, 1]}, {"type": "string", "pattern": _BOOL_TEXT}]}

    def decimal_schema(self, schema: core.DecimalSchema) -> JsonSchemaValue:
        number: dict[str, Any] = {"type": "number"}
        for name, keyword in _BOUNDS.items():
            if schema.get(name) is not None:
                number[keyword] = float(schema[name])  # type: ignore[literal-required]
        places, digits = schema.get("decimal_places"), schema.get("max_digits")
        if places is not None and "multipleOf" not in number:
            number["multipleOf"] = float(f"1e-{places}") if places else 1
        if digits is not None:
            limit = 10 ** (digits - (places or 0))
            number.setdefault("exclusiveMaximum", limit)
            number.setdefault("exclusiveMinimum", -limit)
        return {"anyOf": [number, super().decimal_schema(schema)]}

    def str_schema(self, schema: core.StringSchema) -> JsonSchemaValue:
        shown = super().str_schema(schema)
        if schema.get("strip_whitespace", self._config.str_strip_whitespace) and len(shown) > 1:
            shown = {"type": "string", CHECKED: [STRIPPED]}
        if schema.get("coerce_numbers_to_str", self._config.coerce_numbers_to_str):
            return {"anyOf": [shown, {"type": "number"}]}
        return shown

    def bytes_schema(self, schema: core.BytesSchema) -> JsonSchemaValue:
        shown = super().bytes_schema(schema)
        way = self._config.val_json_bytes
        shown["format"] = {"base64": "base64url"}.get(way, "binary")
        if way == "hex":
            shown["pattern"] = "^([0-9a-fA-F]{2})*$"
        return shown

    def date_schema(self, schema: core.DateSchema) -> JsonSchemaValue:
        shown = super().date_schema(schema)
        if self._strict(schema):
            return _marked({**shown, "pattern": "^[^T]*$"}, _clocked(schema))
        return _marked({"anyOf": [shown, _DATESTAMP]}, _clocked(schema))

    def time_schema(self, schema: core.TimeSchema) -> JsonSchemaValue:
        shown = super().time_schema(schema)
        if schema.get("tz_constraint") is not None:
            shown["pattern"] = f"{_zone(schema)}$"
        elif not self._strict(schema):
            shown = {"anyOf": [shown, _SECONDS_OF_DAY]}
        return _marked(shown, _clocked(schema))

    def datetime_schema(self, schema: core.DatetimeSchema) -> JsonSchemaValue:
        shown = super().datetime_schema(schema)
        if schema.get("tz_constraint") is not None:
            shown["pattern"] = f"[0-9]T[^+Z-]*{_zone(schema)}$"
        if self._strict(schema):
            shown.setdefault("pattern", "[0-9]T[0-9]")
            return _marked(shown, _clocked(schema))
        return _marked({"anyOf": [shown, _TIMESTAMP]}, _clocked(schema))

    def timedelta_schema(self, schema: core.TimedeltaSchema) -> JsonSchemaValue:
        shown = super().timedelta_schema(schema)
        if not self._strict(schema):
            shown = {"anyOf": [shown, _SECONDS]}
        return _marked(shown, _clocked(schema))

    def literal_schema(self, schema: core.LiteralSchema) -> JsonSchemaValue:
        shown = super().literal_schema(schema)
        return {"enum": _with_truth_values(shown.get("enum", [shown.get("const")]))}

    def enum_schema(self, schema: core.EnumSchema) -> JsonSchemaValue:
        missing = missing_of(schema["cls"])
        if missing is not None:
            return _checked({}, missing, always=True)
        if issubclass(schema["cls"], Flag):
            return _marked(*read_flags(schema["cls"]))
        values = _with_truth_values(super().enum_schema(schema)["enum"])
        if schema.get("sub_type") in ("int", "float") and not self._strict(schema):
            values += [str(value) for value in values if not isinstance(value, bool)]
        return {"enum": values}

    def set_schema(self, schema: core.SetSchema) -> JsonSchemaValue:
        return _without_repetition(super().set_schema(schema))

    def frozenset_schema(self, schema: core.FrozenSetSchema) -> JsonSchemaValue:
        return _without_repetition(super().frozenset_schema(schema))

    def url_schema(self, schema: core.UrlSchema) -> JsonSchemaValue:
        return self._more(_of_schemes(super().url_schema(schema), schema), _hosts(schema))

    def multi_host_url_schema(self, schema: core.MultiHostUrlSchema) -> JsonSchemaValue:
        return self._more(
            _of_schemes(super().multi_host_url_schema(schema), schema), _hosts(schema)
        )

    def function_before_schema(self, schema: Any) -> JsonSchemaValue:
        return self._before(schema, super().function_before_schema)

    def function_wrap_schema(self, schema: Any) -> JsonSchemaValue:
        return self._before(schema, super().function_wrap_schema)

    def function_plain_schema(self, schema: Any) -> JsonSchemaValue:
        return _checked({}, schema["function"]["function"], always=True)

    def function_after_schema(self, schema: Any) -> JsonSchemaValue:
        return _checked(super().function_after_schema(schema), schema["function"]["function"])

    def _before(self, schema: Any, shown: Any) -> JsonSchemaValue:
        """Where a function of the user's comes first, any value may be read."""
        function = schema["function"]["function"]
        return shown(schema) if is_library(function) else _checked({}, function)

    def model_schema(self, schema: core.ModelSchema) -> JsonSchemaValue:
        shown = super().model_schema(schema)
        if CHECKED in shown and "type" not in shown:  # read by a function first
            return {CHECKED: shown[CHECKED]}
        return shown

    def model_fields_schema(self, schema: core.ModelFieldsSchema) -> JsonSchemaValue:
        return self._by_all_names(super().model_fields_schema(schema), schema["fields"].items())

    def typed_dict_schema(self, schema: core.TypedDictSchema) -> JsonSchemaValue:
        return self._by_all_names(super().typed_dict_schema(schema), schema["fields"].items())

    def dataclass_args_schema(self, schema: core.DataclassArgsSchema) -> JsonSchemaValue:
        fields = ((field["name"], field) for field in schema["fields"])
        return self._by_all_names(super().dataclass_args_schema(schema), fields)

    def _by_all_names(
        self, shown: JsonSchemaValue, fields: Iterable[tuple[str, Any]]
    ) -> JsonSchemaValue:
        """With every name and path under which a field is looked for, not only the first."""
        for name, field in fields:
            paths = self._paths(name, field)
            first = self._get_alias_name(field, name)
            node = shown["properties"].get(first)
            if node is None or paths == [[first]]:
                continue
            if [first] not in paths:
                del shown["properties"][first]
            for path in paths:
                if len(path) == 1:
                    shown["properties"].setdefault(path[0], node)
            if first in shown.get("required", ()):
                shown["required"].remove(first)
                shown.setdefault("allOf", []).append({"anyOf": [_found(p, node) for p in paths]})
        return shown

    def _paths(self, name: str, field: Any) -> list[list[str | int]]:
        alias = field.get("validation_alias")
        if alias is None:
            return [[name]]
        paths: list[list[str | int]] = []
        if self._config.validate_by_alias is not False:
            if isinstance(alias, str):
                paths = [[alias]]
            elif isinstance(alias[0], list):
                paths = [list(path) for path in alias]
            else:
                paths = [list(alias)]
        if (self._config.populate_by_name or self._config.validate_by_name) and [name] not in paths:
            paths.append([name])
        return paths


class _SecondEdition(_Truthful):
    """What the second edition of these schemas left out: see `TODAY`."""

    def _names(self, keys: Any) -> dict[str, Any] | None:
        return _as_names(self.resolve_ref_schema(self.generate_inner(keys)))


class _FirstEdition(_SecondEdition):
    """What the first edition of these schemas left out: see `TODAY`."""

    def generate_inner(self, schema: Any) -> JsonSchemaValue:
        return GenerateJsonSchema.generate_inner(self, schema)

    def _update_class_schema(
        self, json_schema: JsonSchemaValue, cls: type[Any], config: ConfigDict
    ) -> None:
        GenerateJsonSchema._update_class_schema(self, json_schema, cls, config)

    def _more(self, shown: JsonSchemaValue, checks: list[str]) -> JsonSchemaValue:
        return shown

    def _non_finite(self, schema: core.FloatSchema) -> list[JsonSchemaValue]:
        return []

    def time_schema(self, schema: Any) -> JsonSchemaValue:
        return super().time_schema(_unbounded(schema))

    def timedelta_schema(self, schema: Any) -> JsonSchemaValue:
        return super().timedelta_schema(_unbounded(schema))


class _WrittenInSecond(_SecondEdition, _Written):
    pass


class _ReadInSecond(_SecondEdition, _Read):
    pass


class _WrittenInFirst(_FirstEdition, _Written):
    pass


class _ReadInFirst(_FirstEdition, _Read):
    def date_schema(self, schema: Any) -> JsonSchemaValue:
        return super().date_schema(_unbounded(schema) if self._strict(schema) else schema)

    def datetime_schema(self, schema: Any) -> JsonSchemaValue:
        return super().datetime_schema(_unbounded(schema) if self._strict(schema) else schema)


_WRITTEN = {1: _WrittenInFirst, 2: _WrittenInSecond}
_READ = {1: _ReadInFirst, 2: _ReadInSecond}


def _unbounded(schema: Mapping[str, Any]) -> Any:
    return {name: value for name, value in schema.items() if name not in (*_BOUNDS, "now_op")}


def _with_units(node: dict[str, Any]) -> dict[str, Any]:
    return {**node, "pattern": _KNOWN_SIZE} if node.get("pattern") == _SIZE else node


def _with_all_ways(node: dict[str, Any]) -> dict[str, Any]:
    ways = node.get("anyOf")
    if not isinstance(ways, list):
        return node
    more = [_DATESTAMP_IN_MILLISECONDS] if _DATESTAMP in ways else []
    return {**node, "anyOf": [*(_with_bounds(way, ways) for way in ways), *more]}


def _with_bounds(text: Any, ways: list[Any]) -> Any:
    """The text of a number with the bounds of the number, which is another of these ways."""
    kind = _OF_TEXTS.get(str(text.get("pattern"))) if isinstance(text, dict) else None
    if kind is None or DECIMAL in text:
        return text
    numbers = [way for way in ways if isinstance(way, dict) and way.get("type") == kind]
    bounds = [*map(_bounds_of, numbers)]
    if not bounds or not all(bounds):
        return text
    texts = [{**text, DECIMAL: each} for each in bounds]
    return texts[0] if len(texts) == 1 else {"anyOf": texts}


def _is_by_hand(function: Any) -> bool:
    return isinstance(getattr(function, "__self__", None), _BY_HAND)


def _found(path: list[str | int], node: Any) -> JsonSchemaValue:
    """What has a value of this kind under this path."""
    head, rest = path[0], path[1:]
    inner = _found(rest, node) if rest else node
    if isinstance(head, int):
        if head < 0:
            return {"type": "array", "minItems": -head}
        return {"type": "array", "minItems": head + 1, "prefixItems": [{}] * head + [inner]}
    return {"type": "object", "required": [head], "properties": {head: inner}}


def _checked(shown: JsonSchemaValue, function: Any, *, always: bool = False) -> JsonSchemaValue:
    if is_library(function) and not always:
        return shown
    return _marked(shown, [fingerprint(function)])


def _marked(shown: JsonSchemaValue, checks: list[str]) -> JsonSchemaValue:
    if not checks:
        return shown
    if "$ref" in shown:
        shown = {"allOf": [shown]}
    return {**shown, CHECKED: [*shown.get(CHECKED, ()), *checks]}


def _clocked(schema: Mapping[str, Any]) -> list[str]:
    """Bounds on points and lengths of time, which no keyword says; the present is one."""
    names = ("now_op", "ge", "gt", "le", "lt")
    return [
        f"{name} {to_jsonable_python(bound) if isinstance(bound, timedelta) else bound}"
        for name in names
        if (bound := schema.get(name)) is not None
    ]


def _exactly(shown: JsonSchemaValue, pattern: str, checks: list[str]) -> JsonSchemaValue:
    return _marked({**shown, "pattern": pattern} if shown["type"] == "string" else shown, checks)


def _zone(schema: Mapping[str, Any]) -> str:
    match schema.get("tz_constraint"):
        case None:
            return f"{_ZONE}?"
        case "naive":
            return ""
        case _:
            return _ZONE


def _hosts(schema: Mapping[str, Any]) -> list[str]:
    return ["host_required"] if schema.get("host_required") else []


def _lengths(schema: Mapping[str, Any]) -> list[str]:
    """Lengths in bytes, of which a text in UTF-8 has more than characters."""
    names = ("min_length", "max_length")
    return [f"{name} {schema[name]}" for name in names if schema.get(name) is not None]


def _of_schemes(shown: JsonSchemaValue, schema: Mapping[str, Any]) -> JsonSchemaValue:
    """A URL that is read."""
    schemes = schema.get("allowed_schemes")
    if not schemes:
        return shown
    return {**shown, "pattern": f"^({'|'.join(map(re.escape, schemes))}):"}


def _as_written(node: dict[str, Any]) -> dict[str, Any]:
    """Texts of a format as pydantic writes them, which are fewer than it reads."""
    match node.get("format"):
        case "path":
            return {"minLength": 1, **node}
        case "ipv4":
            return {"pattern": r"^[0-9]{1,3}(\.[0-9]{1,3}){3}$", **node}
        case "password" if node.get("writeOnly"):
            return {**node, "enum": ["", "*" * 10]}
    return node


def _with_schemes(shown: JsonSchemaValue, schema: Mapping[str, Any]) -> JsonSchemaValue:
    """A URL that is written."""
    schemes = schema.get("allowed_schemes")
    if not schemes:
        return shown
    end = "/" if _ENDING_IN_A_SLASH.issuperset(schemes) else ""
    return {**shown, "pattern": f"^({'|'.join(map(re.escape, schemes))})://[^/]+{end}"}


def _truth_values(bounds: Mapping[str, Any]) -> list[JsonSchemaValue]:
    """True and false where they are read as 1 and 0."""
    number = TypeAdapter(Annotated[float, Field(**{n: bounds.get(n) for n in _BOUNDS})])
    taken = []
    for value in (True, False):
        with suppress(ValidationError):
            number.validate_python(value)
            taken.append(value)
    return [{"type": "boolean"}] if len(taken) == 2 else [{"enum": taken}] if taken else []


def _with_truth_values(values: list[Any]) -> list[Any]:
    """1 and 0 are read as true and false, and the other way round."""
    kinds = {(type(value), value) for value in values if isinstance(value, bool | int | float)}
    more: list[Any] = [bool(value) for kind, value in kinds if kind is not bool and value in (0, 1)]
    more += [int(value) for kind, value in kinds if kind is bool]
    return [*values, *(value for value in more if (type(value), value) not in kinds)]


def _without_repetition(shown: JsonSchemaValue) -> JsonSchemaValue:
    """Repeated entries are read as one; that counts only where a least number is asked for."""
    if shown.get("minItems", 0) < 2:
        del shown["uniqueItems"]
    return shown


def _as_names(schema: Mapping[str, Any], *, bounded: bool = False) -> dict[str, Any] | None:
    """The names that stand for values of this kind, if they are not all there are."""
    if "enum" in schema:
        return {"enum": [_name(value) for value in schema["enum"]]}
    if "anyOf" in schema:  # a name is a text, and is read as one
        texts = [way for way in schema["anyOf"] if way.get("type") == "string" or "enum" in way]
        ways = [_as_names(way, bounded=bounded) for way in texts or schema["anyOf"]]
        return None if None in ways else {"anyOf": ways}
    kind = schema.get("type")
    if kind in (*_NUMBER_KEYS, "number"):
        names = {"pattern": _NUMBER_KEYS.get(kind, _FLOAT_TEXT)}
        return _named(names, _bounds_of(schema)) if bounded else names
    kept = {k: v for k, v in schema.items() if k in ("pattern", "format", "minLength", "maxLength")}
    return _named(kept, schema.get(DECIMAL)) if kept and bounded else kept or None


def _named(names: dict[str, Any], bounds: Any) -> dict[str, Any]:
    return {**names, DECIMAL: bounds} if bounds else names


def _bounds_of(number: Mapping[str, Any]) -> dict[str, str]:
    return {name: str(number[keyword]) for name, keyword in _BOUNDS.items() if keyword in number}


def _name(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) or value is None else str(value)
