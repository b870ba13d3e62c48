# Annotations are not postponed here: handlers are defined inside tests, with local classes.
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Annotated, Any

import fastapi
import pytest
from fast_depends import Depends
from sqlalchemy.ext.asyncio import AsyncSession

from eventmesh.contracts.message import Command, Event, Message
from eventmesh.contracts.registry import Registry
from eventmesh.errors import UsageError
from eventmesh.persistence.transaction import Sender, Transaction
from eventmesh.runtime.declaring.handler import Handler, bind
from eventmesh.runtime.declaring.retry import Retry
from eventmesh.testing.clock import ManualClock
from eventmesh.wire.envelope import Envelope


class Paid(Event, name="payments.paid", version=1):
    amount: int = 1


class Declined(Event, name="payments.declined", version=1):
    pass


class Pay(Command, name="payments.pay", version=1):
    pass


ENVELOPE = Envelope({"id": "1"}, b"")


def bound(function: Any, *messages: type[Message], isolated: bool = False) -> Handler:
    return bind(function, messages, subscription="payments.h", retry=Retry(), isolated=isolated)


def transaction() -> Transaction:
    sender = Sender("payments", Registry("payments"), ManualClock(), 99)
    return Transaction(AsyncSession(), sender, keep=[].append)


# What a handler declares


def test_a_handler_subscribes_to_the_message_of_its_annotation() -> None:
    async def handle(event: Paid) -> None: ...

    handler = bound(handle)
    assert handler.subscription.name == "payments.h"
    assert handler.subscription.messages == ("payments.paid",)
    assert handler.models == {"payments.paid": Paid}


def test_a_union_subscribes_to_all_of_its_messages() -> None:
    async def handle(event: Paid | Declined) -> None: ...

    assert bound(handle).models == {"payments.paid": Paid, "payments.declined": Declined}


def test_the_decorator_may_narrow_a_union() -> None:
    async def handle(event: Paid | Declined) -> None: ...

    assert bound(handle, Declined).models == {"payments.declined": Declined}


def test_a_handler_without_session_transaction_or_result_is_not_transactional() -> None:
    async def handle(event: Paid, envelope: Envelope, times: int = 3) -> None: ...

    assert not bound(handle).transactional


async def with_transaction(event: Paid, tx: Transaction) -> None: ...
async def with_session(event: Paid, session: AsyncSession) -> None: ...
async def with_dependency(event: Paid, five: Annotated[int, Depends(lambda: 5)]) -> None: ...
async def with_result(event: Paid) -> Declined: ...


@pytest.mark.parametrize("function", [with_transaction, with_session, with_dependency, with_result])
def test_a_handler_with_effects_is_transactional(function: Any) -> None:
    assert bound(function).transactional


@pytest.mark.parametrize("optional", [Transaction | None, AsyncSession | None])
async def test_an_optional_transaction_or_session_is_always_provided(optional: Any) -> None:
    seen: list[Any] = []

    async def handle(event: Paid, value=None) -> None:
        seen.append(value)

    handle.__annotations__["value"] = optional
    handler, tx = bound(handle), transaction()
    assert handler.transactional
    await handler.call(Paid(), ENVELOPE, tx)
    assert seen == [tx if optional == Transaction | None else tx.session]


@pytest.mark.parametrize(
    ("annotation", "declared"),
    [
        (None, set()),
        (Paid, {Paid}),
        (Paid | None, {Paid}),
        (Paid | Declined, {Paid, Declined}),
        (list[Paid], {Paid}),
        (tuple[Paid, Declined], {Paid, Declined}),
        (tuple[Paid, ...], {Paid}),
        (Sequence[Paid | Declined] | None, {Paid, Declined}),
    ],
)
def test_the_return_annotation_declares_the_published_messages(
    annotation: Any, declared: set[type[Message]]
) -> None:
    async def handle(event: Pay): ...

    handle.__annotations__["return"] = annotation
    assert bound(handle).returns == declared


def test_a_handler_without_return_annotation_publishes_nothing() -> None:
    async def handle(event: Pay): ...

    assert bound(handle).returns == frozenset()


# Invalid handlers


def test_a_function_that_is_not_async_is_rejected() -> None:
    def handle(event: Paid) -> None: ...

    with pytest.raises(UsageError, match="is not a coroutine function: write `async def handle"):
        bound(handle)


def test_an_async_generator_is_rejected() -> None:
    async def handle(event: Paid) -> AsyncIterator[Paid]:
        yield event

    with pytest.raises(UsageError, match="is an async generator: return several messages as a"):
        bound(handle)


def test_the_error_names_a_parameter_without_annotation() -> None:
    async def handle(event: Paid, tx) -> None: ...

    with pytest.raises(UsageError, match="has no annotation on its parameter 'tx'"):
        bound(handle)


def test_the_error_names_a_parameter_of_an_unsupported_type() -> None:
    async def handle(event: Paid, times: int) -> None: ...

    with pytest.raises(UsageError, match="parameter 'times' of type int, which nothing can fill"):
        bound(handle)


def test_an_optional_message_is_not_a_message_parameter() -> None:
    async def handle(event: Paid | None) -> None: ...

    with pytest.raises(
        UsageError, match=r"parameter 'event' of type .*Paid \| None, which nothing can fill"
    ):
        bound(handle)


def test_a_handler_without_message_is_rejected() -> None:
    async def handle(tx: Transaction) -> None: ...

    with pytest.raises(UsageError, match=r"exactly one parameter annotated with a message.* has 0"):
        bound(handle)


def test_a_handler_with_two_messages_is_rejected() -> None:
    async def handle(one: Paid, two: Declined) -> None: ...

    with pytest.raises(UsageError, match=r"exactly one parameter annotated with a message.* has 2"):
        bound(handle)


def test_the_error_for_an_unresolved_annotation_says_where_to_import_it() -> None:
    async def handle(event: "Paid", tx: "Missing") -> None: ...  # noqa: F821

    with pytest.raises(UsageError, match=r"'Missing' is not defined.*not under TYPE_CHECKING"):
        bound(handle)


@pytest.mark.parametrize("annotation", ["pytest.Missing", "Paid[int]", "1 + None"])
def test_an_annotation_that_raises_when_it_is_resolved_is_rejected(annotation: str) -> None:
    async def handle(event) -> None: ...

    handle.__annotations__["event"] = annotation
    with pytest.raises(UsageError, match="has an annotation that cannot be resolved: "):
        bound(handle)


def test_two_models_of_the_same_message_are_rejected_and_the_error_names_both() -> None:
    class PaidBefore(Event, name="payments.paid", version=2):
        pass

    async def handle(event: Paid | PaidBefore) -> None: ...

    with pytest.raises(UsageError, match=r"two models of one message: Paid \| PaidBefore. Keep"):
        bound(handle)


def test_a_parameter_that_cannot_be_passed_by_keyword_is_rejected() -> None:
    async def positional(event: Paid, /) -> None: ...
    async def several(event: Paid, *more: int) -> None: ...
    async def named(event: Paid, **more: int) -> None: ...

    for function, name in ((positional, "event"), (several, "more"), (named, "more")):
        with pytest.raises(UsageError, match=rf"'{name}', which cannot be given by its name"):
            bound(function)


@pytest.mark.parametrize("make", [Depends, fastapi.Depends], ids=["ours", "FastAPI's"])
def test_a_dependency_as_a_default_is_rejected_and_the_error_says_how_to_write_it(
    make: Callable[..., Any],
) -> None:
    async def handle(event: Paid, five: int = make(lambda: 5)) -> None: ...

    with pytest.raises(UsageError, match=r"write five: Annotated\[int, Depends\(…\)\]"):
        bound(handle)


@pytest.mark.parametrize("name", ["message", "envelope", "transaction", "session"])
def test_a_dependency_with_a_name_that_stands_for_something_else_is_rejected(name: str) -> None:
    source = f"async def handle(event: Paid, {name}: Five) -> None: ..."
    scope = {"Paid": Paid, "Five": Annotated[int, Depends(lambda: 5)]}
    exec(source, scope)  # noqa: S102
    with pytest.raises(UsageError, match=f"parameter '{name}' of handle.* Rename the"):
        bound(scope["handle"])


def test_a_dependency_of_a_dependency_must_not_have_such_a_name_either() -> None:
    def shop(session: Annotated[int, Depends(lambda: 5)]) -> int:
        return session

    async def handle(event: Paid, five: Annotated[int, Depends(shop)]) -> None: ...

    with pytest.raises(UsageError, match=r"parameter 'session' of shop: .* Rename the parameter"):
        bound(handle)


def test_a_subscription_to_a_message_outside_the_annotation_is_rejected() -> None:
    async def handle(event: Paid | Declined) -> None: ...

    with pytest.raises(
        UsageError, match=r"subscribes to Pay, but its parameter 'event' is .* Paid \| Declined"
    ):
        bound(handle, Paid, Pay)


def test_a_message_without_name_is_rejected() -> None:
    class Nameless(Event):
        pass

    async def handle(event: Nameless) -> None: ...

    with pytest.raises(UsageError, match="Nameless has no name"):
        bound(handle)


@pytest.mark.parametrize("annotation", [int, list, dict[str, int], list[str], Paid | int, Any])
def test_a_return_annotation_that_is_not_a_message_is_rejected(annotation: Any) -> None:
    async def handle(event: Pay): ...

    handle.__annotations__["return"] = annotation
    with pytest.raises(UsageError, match=r"is annotated to return .*; a handler returns messages"):
        bound(handle)


def test_every_error_starts_with_the_name_of_the_handler() -> None:
    async def handle(event) -> None: ...

    with pytest.raises(UsageError, match=rf"^The handler {__name__}\..*handle has no annotation"):
        bound(handle)


# Calls


async def test_arguments_are_chosen_by_type_and_not_by_name() -> None:
    seen: list[Any] = []

    async def handle(
        e: Envelope, s: AsyncSession, m: Paid, t: Transaction, again: Transaction, more: int = 7
    ) -> None:
        seen.extend([e, s, m, t, again, more])

    tx, paid = transaction(), Paid()
    await bound(handle).call(paid, ENVELOPE, tx)
    assert seen == [ENVELOPE, tx.session, paid, tx, tx, 7]


async def test_a_bound_method_can_be_a_handler() -> None:
    class Till:
        total = 0

        async def handle(self, event: Paid) -> None:
            self.total += event.amount

    till = Till()
    await bound(till.handle).call(Paid(amount=3), ENVELOPE, None)
    assert till.total == 3


async def test_a_dependency_is_called_for_each_message() -> None:
    calls = iter(range(9))
    seen = []

    async def handle(event: Paid, number: Annotated[int, Depends(lambda: next(calls))]) -> None:
        seen.append(number)

    call = bound(handle).call
    for _ in range(3):
        await call(Paid(), ENVELOPE, transaction())
    assert seen == [0, 1, 2]


async def test_a_dependency_receives_message_envelope_transaction_and_session_by_name() -> None:
    seen = {}

    def dependency(
        message: Paid, envelope: Envelope, transaction: Transaction, session: AsyncSession
    ) -> str:
        seen.update(message=message, envelope=envelope, tx=transaction, session=session)
        return "result"

    async def handle(event: Paid, result: Annotated[str, Depends(dependency)]) -> None:
        seen.update(event=event, result=result)

    tx, paid = transaction(), Paid()
    await bound(handle).call(paid, ENVELOPE, tx)
    assert seen == {
        "message": paid,
        "envelope": ENVELOPE,
        "tx": tx,
        "session": tx.session,
        "event": paid,
        "result": "result",
    }


async def test_a_handler_with_a_dependency_also_receives_its_other_arguments() -> None:
    seen = []

    async def handle(
        event: Paid, tx: Transaction, e: Envelope, five: Annotated[int, Depends(lambda: 5)]
    ) -> Declined:
        seen.extend([event, tx, e, five])
        return Declined()

    tx, paid = transaction(), Paid()
    assert await bound(handle).call(paid, ENVELOPE, tx) == Declined()
    assert seen == [paid, tx, ENVELOPE, 5]


async def test_the_metadata_of_an_annotation_need_not_be_hashable() -> None:
    seen = []

    async def handle(event: Paid, times: Annotated[int, ["a note"]] = 3) -> None:
        seen.append(times)

    await bound(handle).call(Paid(), ENVELOPE, transaction())
    assert seen == [3]


async def test_dependencies_of_dependencies_are_resolved() -> None:
    async def inner(envelope: Envelope) -> str:
        return envelope.id

    def outer(inner: Annotated[str, Depends(inner)]) -> str:
        return f"<{inner}>"

    seen = []

    async def handle(event: Paid, text: Annotated[str, Depends(outer)]) -> None:
        seen.append(text)

    await bound(handle).call(Paid(), ENVELOPE, transaction())
    assert seen == ["<1>"]


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("is_async", [False, True])
async def test_a_generator_dependency_is_cleaned_up_after_the_handler(
    is_async: bool, fails: bool
) -> None:
    steps: list[str] = []

    def sync_resource() -> Iterator[int]:
        steps.append("open")
        try:
            yield 5
        finally:
            steps.append("close")

    async def async_resource() -> AsyncIterator[int]:
        steps.append("open")
        try:
            yield 5
        finally:
            steps.append("close")

    resource = async_resource if is_async else sync_resource

    async def handle(event: Paid, five: Annotated[int, Depends(resource)]) -> None:
        steps.append(f"handle {five}")
        if fails:
            raise LookupError("no")

    call = bound(handle).call
    if fails:
        with pytest.raises(LookupError):
            await call(Paid(), ENVELOPE, transaction())
    else:
        await call(Paid(), ENVELOPE, transaction())
    assert steps == ["open", "handle 5", "close"]


async def test_arguments_are_passed_on_without_validation() -> None:
    seen = []

    async def handle(event: Paid, five: Annotated[str, Depends(lambda: 5)]) -> None:
        seen.extend([event, five])

    paid = Paid()
    await bound(handle).call(paid, ENVELOPE, transaction())
    assert seen[0] is paid
    assert seen[1] == 5


# Batch handlers


async def test_a_handler_of_a_list_of_messages_receives_a_batch_with_its_envelopes() -> None:
    seen: list[Any] = []

    async def handle(
        events: list[Paid | Declined], tx: Transaction, envelopes: list[Envelope]
    ) -> list[Paid]:
        seen.extend([events, tx, envelopes])
        return []

    handler, tx, paid, declined = bound(handle), transaction(), Paid(), Declined()
    assert handler.models == {"payments.paid": Paid, "payments.declined": Declined}
    assert handler.returns == {Paid}
    assert handler.transactional
    assert handler.call_batch is not None
    await handler.call_batch((paid, declined), (ENVELOPE, ENVELOPE), tx)
    assert seen == [[paid, declined], tx, [ENVELOPE, ENVELOPE]]


async def test_a_batch_handler_receives_a_single_message_as_a_list_of_one() -> None:
    seen: list[Any] = []

    async def handle(events: list[Paid], envelopes: list[Envelope]) -> None:
        seen.extend([events, envelopes])

    handler, paid = bound(handle), Paid()
    assert not handler.transactional
    await handler.call(paid, ENVELOPE, None)
    assert seen == [[paid], [ENVELOPE]]


def test_a_handler_of_single_messages_is_not_a_batch_handler() -> None:
    async def handle(event: Paid) -> None: ...

    assert bound(handle).call_batch is None


async def test_a_dependency_of_a_batch_handler_receives_the_lists_by_name() -> None:
    seen = {}

    def dependency(messages: list[Paid], envelopes: list[Envelope]) -> int:
        seen.update(messages=messages, envelopes=envelopes)
        return len(messages)

    async def handle(events: list[Paid], count: Annotated[int, Depends(dependency)]) -> None:
        seen.update(count=count)

    call_batch = bound(handle).call_batch
    assert call_batch is not None
    paid = Paid()
    await call_batch([paid], [ENVELOPE], transaction())
    assert seen == {"messages": [paid], "envelopes": [ENVELOPE], "count": 1}


@pytest.mark.parametrize(
    ("annotation", "written"),
    [
        (Sequence[Paid], "list[Paid]"),
        (tuple[Paid, ...], "list[Paid]"),
        (set[Paid], "list[Paid]"),
        (list[Paid] | list[Declined], "list[Declined | Paid]"),
        (list[Paid] | None, "list[Paid]"),
    ],
)
def test_the_error_for_another_collection_of_messages_shows_the_list_to_write(
    annotation: Any, written: str
) -> None:
    async def handle(events) -> None: ...

    handle.__annotations__["events"] = annotation
    with pytest.raises(UsageError) as caught:
        bound(handle)
    assert "parameter 'events'" in str(caught.value)
    assert str(caught.value).endswith(f"takes several messages at once takes them as {written}.")


@pytest.mark.parametrize("annotation", [list, list[str], list[Paid | int], type[Paid]])
def test_a_list_of_other_values_is_an_unsupported_type(annotation: Any) -> None:
    async def handle(events) -> None: ...

    handle.__annotations__["events"] = annotation
    with pytest.raises(UsageError, match=r"parameter 'events' of type .*, which nothing can fill"):
        bound(handle)


def test_a_message_beside_a_list_of_messages_is_rejected() -> None:
    async def handle(event: Paid, more: list[Declined]) -> None: ...

    with pytest.raises(UsageError, match=r"exactly one parameter annotated with a message.* has 2"):
        bound(handle)


def test_envelopes_are_a_list_exactly_if_the_messages_are() -> None:
    async def one(event: Paid, envelopes: list[Envelope]) -> None: ...
    async def several(events: list[Paid], envelope: Envelope) -> None: ...

    with pytest.raises(UsageError, match=r"takes one message, so .*'envelopes' .* with Envelope\."):
        bound(one)
    with pytest.raises(UsageError, match=r"takes a list .*'envelope' .* with list\[Envelope\]\."):
        bound(several)
