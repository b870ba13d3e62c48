"""Messages as they may arrive: documents of the frozen schema, read by the model.

A document is drawn field by field, from the schema that is frozen of the message's version, or else
from the one that the model has now. Then it goes the way of a message: the model reads it, writes
it, and reads it again. What comes out is valid by the model and by the frozen schema, and arrives
as it was sent.

A schema cannot say all that a model checks, such as a validator's condition. The fields that the
model has refused are drawn again, and if it refuses everything, the error names them.
Hypothesis's own `st.from_type` knows no constraint that pydantic keeps in a `Field`, and
hypothesis-jsonschema, last released in 2024, neither pydantic's formats nor schemas that refer to
themselves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Generic, TypeVar

from hypothesis import reject
from hypothesis import strategies as st
from hypothesis.errors import FailedHealthCheck
from pydantic import BaseModel, ValidationError
from pydantic_core import PydanticSerializationError, from_json, to_json, to_jsonable_python

from eventmesh import compat
from eventmesh.compat.pydantic_models.schemas import plain, writer_schema
from eventmesh.compat.schema.pointers import resolve_reference
from eventmesh.contracts.locks.lock_file import Lock
from eventmesh.contracts.locks.lock_folder import read_locks
from eventmesh.contracts.message import Message, identity_of, key_of
from eventmesh.errors import UsageError
from eventmesh.runtime.declaring.settings import load_settings
from eventmesh.testing.workloads.documents import Documents, NoDocuments
from eventmesh.wire.envelope import MAX_ATTRIBUTE_BYTES

M = TypeVar("M", bound=BaseModel)
_Parts = Mapping[str, st.SearchStrategy[Any]]

_ROUNDS = 50
"""How often the refused parts of one document are drawn again."""
_REFUSED = 500
"""After so many refused documents, and none accepted, a strategy is not tried any longer."""


class CannotGenerate(UsageError, FailedHealthCheck):
    """A strategy has no values, or too few. Hypothesis ends a test at once that fails so, as it
    does where it finds by itself that too much is filtered out."""


def from_message(
    model: type[M], schemas: Path | None = None, /, **fields: st.SearchStrategy[Any]
) -> st.SearchStrategy[M]:
    """Instances of a message, or of another pydantic model, that are valid by the model and by the
    schema frozen in the folder `schemas`, by default that of the settings.

    `fields` are strategies to use for single fields instead:

        from_message(OrderPlaced, order_id=st.uuids(), address=from_message(Address, city=cities))

    The example that fails is made as small as possible. UsageError for an unknown field, for a
    field that has no finite value or a pattern that Python does not know, for a value of `fields`
    that the model refuses, and where the model refuses hundreds of documents of its schema.
    """
    for name, strategy in fields.items():
        if name not in model.model_fields:
            known = ", ".join(model.model_fields) or "none"
            raise UsageError(f"{model.__name__} has no field {name!r}; it has: {known}.")
        if not isinstance(strategy, st.SearchStrategy):
            raise UsageError(
                f"from_message({model.__name__}, {name}=…) was given {strategy!r}, which is not a "
                f"strategy: write {name}=st.just({strategy!r})."
            )
    return _instances(_Workload(model, schemas, fields))


def samples(model: type[M], schemas: Path | None = None, /) -> st.SearchStrategy[M]:
    """The example messages in the lock files of the message's version: messages that its model
    really wrote when it was frozen. UsageError where none is frozen, or the model cannot read
    one."""
    return st.deferred(lambda: _sampled(model, schemas))


def _sampled(model: type[M], schemas: Path | None) -> st.SearchStrategy[M]:
    locks, found = _frozen(model, schemas), []
    for lock in locks:
        for sample in lock.samples:
            try:
                found.append(model.model_validate_json(to_json(sample)))
            except ValidationError as error:
                raise UsageError(
                    f"{model.__name__} cannot read a sample in {lock.path}: "
                    f"{error.errors(include_url=False)[0]['msg']}. Run `eventmesh schema check`."
                ) from None
    if locks and not found:
        raise UsageError(
            f"The lock files of {model.__name__} have no samples: use from_message with strategies "
            f"of the fields whose values EventMesh could not find."
        )
    if not found:
        raise UsageError(
            f"No sample of {model.__name__} is frozen: run `eventmesh schema freeze`, or name the "
            f"folder of its schemas with EVENTMESH_SCHEMAS."
        )
    return st.sampled_from(found)


@st.composite
def _instances(draw: st.DrawFn, workload: _Workload[M]) -> M:
    """Draw a document, and what is refused in it again and again, until it is accepted."""
    parts = workload.parts
    document = workload.draw(draw, parts)
    for _ in range(_ROUNDS):
        outcome = workload.read(document)
        if not isinstance(outcome, _Refusals):
            workload.accepted += 1
            return outcome
        workload.refuse(outcome)
        blamed = outcome.reasons.keys()
        again = parts if None in blamed else [part for part in parts if part in blamed]
        document |= workload.draw(draw, again)
    return reject()


@dataclass(frozen=True, slots=True)
class _Refusals:
    """Why a document is not used: the parts of it that are to blame, None for the whole."""

    reasons: Mapping[str | None, str]


class _Workload(Generic[M]):
    """What is needed to generate one model. Schemas are read when the first instance is drawn.

    Parts of a document go by the names that are written, and fields by those in Python.
    """

    def __init__(
        self, model: type[M], schemas: Path | None, fields: Mapping[str, st.SearchStrategy[Any]]
    ) -> None:
        self.accepted = 0
        """How many documents were accepted, since the strategy was made."""
        self._refused: list[_Refusals] = []
        self._model = model
        self._schemas = schemas
        self._written = {
            name: info.serialization_alias or name for name, info in model.model_fields.items()
        }
        self._field_of = {written: name for name, written in self._written.items()}
        self._given = {self._written[name]: strategy for name, strategy in fields.items()}

    def __repr__(self) -> str:
        fields = ", ".join(f"{self._field_of[part]}=…" for part in self._given)
        return f"from_message({', '.join(filter(None, [self._model.__name__, fields]))})"

    @cached_property
    def schema(self) -> dict[str, Any]:
        """What may be sent."""
        locks = _frozen(self._model, self._schemas)
        return locks[-1].writer if locks else writer_schema(self._model)

    @cached_property
    def parts(self) -> _Parts:
        """A strategy for each part of a document that the model reads. UsageError."""
        try:
            documents = Documents(self.schema)
        except NoDocuments as error:
            raise CannotGenerate(f"{self._model.__name__} cannot be generated: {error}.") from None
        made: dict[str, st.SearchStrategy[Any]] = {}
        for part, schema in self._properties.items():
            if part not in self._field_of:
                continue
            try:
                given = self._given.get(part)
                made[part] = documents.of(schema) if given is None else given
            except NoDocuments as error:
                raise CannotGenerate(
                    f"The field {self._field_of[part]!r} of {self._model.__name__} cannot be "
                    f"generated: {error}. Give a strategy of its values: {self._call(part)}."
                ) from None
        return made | {part: given for part, given in self._given.items() if part not in made}

    def draw(self, draw: st.DrawFn, parts: Iterable[str]) -> dict[str, Any]:
        """Values of these parts; of one that need not be there, perhaps none."""
        drawn: dict[str, Any] = {}
        for part in parts:
            if part in self._given:
                drawn[part] = self._as_json(part, draw(self.parts[part]))
            elif part in self._required or draw(st.booleans()):
                drawn[part] = draw(self.parts[part])
        return drawn

    def read(self, document: Mapping[str, Any]) -> M | _Refusals:
        """The instance that arrives when a document is sent, or why the document is not used."""
        read = self._model.model_validate_json
        try:
            arrived = read(_written(read(to_json(document))))
            text = _written(arrived)
            is_stable = read(text) == arrived
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
            return _Refusals({self._part_of(each["loc"]): each["msg"] for each in found})
        except Exception as error:  # noqa: BLE001  # a user's validator may raise anything
            return _Refusals({None: repr(error)})
        if not is_stable:
            return _Refusals({None: "what is read differs from what was written"})
        refusals = self._refused_by_schema(from_json(text)) | self._refused_key(arrived)
        return _Refusals(refusals) if refusals else arrived

    def refuse(self, refusals: _Refusals) -> None:
        """Count a refused document. CannotGenerate if values that were given are to blame, or the
        model refuses everything, or needs what no document has."""
        for part, reason in refusals.reasons.items():
            if part in self._given:
                raise CannotGenerate(
                    f"The strategy given for the field {self._field_of[part]!r} of "
                    f"{self._model.__name__} has values that cannot be used: {reason}."
                )
            if part is not None and part not in self.parts:
                raise CannotGenerate(
                    f"The field {self._field_of[part]!r} of {self._model.__name__} is not in its "
                    f"frozen schema: {reason}. Run `eventmesh schema check`."
                )
        if self.accepted:
            return
        self._refused.append(refusals)
        if len(self._refused) < _REFUSED:
            return
        blamed = Counter(part for each in self._refused for part in each.reasons)
        [(part, _)] = blamed.most_common(1)
        reasons = (each.reasons.get(part) for each in self._refused)
        where = "the whole" if part is None else f"its field {self._field_of[part]!r}"
        raise CannotGenerate(
            f"{self._model.__name__} refuses each of {_REFUSED} documents of its schema, mostly "
            f"for {where}: {next(filter(None, reasons))}. Give a strategy of values that it "
            f"accepts: {self._call(part)}."
        )

    @cached_property
    def _object(self) -> Mapping[str, Any]:
        """The part of the schema that describes the object itself."""
        found = self.schema
        while "$ref" in found:
            found = resolve_reference(self.schema, found["$ref"])
        return found

    @property
    def _properties(self) -> Mapping[str, Any]:
        properties: Mapping[str, Any] = self._object.get("properties", {})
        return properties

    @cached_property
    def _required(self) -> frozenset[str]:
        return frozenset(self._object.get("required", ()))

    @cached_property
    def _accepts(self) -> Mapping[str | None, Callable[[Any], bool]]:
        """Whether the schema accepts a value: for each part, and for the whole."""
        definitions = {"$defs": self.schema["$defs"]} if "$defs" in self.schema else {}
        checks: dict[str | None, Callable[[Any], bool]] = {
            part: compat.accepts(plain({**definitions, **schema}))
            for part, schema in self._properties.items()
            if isinstance(schema, Mapping)
        }
        return checks | {None: compat.accepts(plain(self.schema))}

    def _refused_by_schema(self, written: Mapping[str, Any]) -> dict[str | None, str]:
        """What the schema refuses in what the model writes."""
        reason = "the schema does not allow what the model writes"
        checks = self._accepts
        refused: dict[str | None, str] = {
            part: reason
            for part, value in written.items()
            if part in checks and not checks[part](value)
        }
        # A model of another service's message may have a few of its fields only.
        if not refused and self._required <= written.keys() and not checks[None](written):
            refused[None] = reason
        return refused

    def _refused_key(self, instance: M) -> dict[str | None, str]:
        """What no broker could store as a key."""
        if not isinstance(instance, Message) or not hasattr(instance, "__identity__"):
            return {}
        key = key_of(instance)
        if key is None or len(key.encode()) <= MAX_ATTRIBUTE_BYTES:
            return {}
        part = self._written[instance.__identity__.key or ""]
        return {part: f"as a key it may have at most {MAX_ATTRIBUTE_BYTES} bytes"}

    def _as_json(self, part: str, value: Any) -> Any:
        try:
            return to_jsonable_python(value, by_alias=True)
        except PydanticSerializationError as error:
            raise CannotGenerate(
                f"The strategy given for the field {self._field_of[part]!r} of "
                f"{self._model.__name__} has a value that is not JSON: {error}."
            ) from None

    def _part_of(self, location: Sequence[str | int]) -> str | None:
        """The part of a document that an error is about."""
        for name, info in self._model.model_fields.items():
            if location and location[0] in (name, self._written[name], info.validation_alias):
                return self._written[name]
        return None

    def _call(self, part: str | None) -> str:
        """How to give a strategy for a part."""
        return f"from_message({self._model.__name__}, {self._field_of.get(part or '', '…')}=…)"


def _written(message: BaseModel) -> str:
    return message.model_dump_json(by_alias=True)


def _frozen(model: type[BaseModel], schemas: Path | None) -> Sequence[Lock]:
    """The lock files of a message's version, oldest first. UsageError for a broken one."""
    if not issubclass(model, Message) or not hasattr(model, "__identity__"):
        return ()
    identity = identity_of(model)
    locks = read_locks(schemas or load_settings().schemas)
    for problem in locks.problems_of(identity.name):
        if problem.severity == "error":
            raise CannotGenerate(f"{problem.subject}: {problem.summary}. {problem.fix}")
    return locks.of(identity.name).get(identity.version, ())
