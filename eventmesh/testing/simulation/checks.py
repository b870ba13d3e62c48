"""What must hold at the end of any run, once every fault is over and nothing can happen any more.

    nothing lost     each message that the broker took has taken effect in every subscription that
                     was declared before, or is a dead letter; if there was none, in the first one;
                     no outbox holds any
    nothing doubled  no message has taken effect twice in a subscription
    published once   by relays that nothing has disturbed
    order in a key   messages of one key take effect in the order in which they were published, in
                     each subscription that promises it
    sagas end        none is open or parked
    no dead letters  the faults here cost no message an attempt, so a dead letter is a defect of the
                     code, unless the test expects some
    audit balances   the balance sheet of `eventmesh audit` shows no difference

What happened to messages is read from what the kit has seen itself, and not from EventMesh's own
tables.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator

from eventmesh.operations.audit import Difference, audit, sentence
from eventmesh.operations.reach import Reach
from eventmesh.persistence.counts import publisher_of
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.testing.mesh.predicates import Violation
from eventmesh.testing.mesh.virtual_mesh import VirtualMesh
from eventmesh.wire.envelope import Envelope

_OPEN_SAGAS = """
SELECT name, id, status, waiting_for, reason FROM eventmesh_saga
WHERE status IN ('running', 'undoing', 'parked')
"""
_ENDINGS = "SELECT name, status, count(*) FROM eventmesh_saga GROUP BY name, status"
_OUTBOX = "SELECT name, id, last_error FROM eventmesh_outbox"


async def check_end(
    mesh: VirtualMesh, disturbed: Collection[str], *, allows_dead_letters: bool, audits: bool
) -> None:
    """Violation, with all that does not hold. `disturbed` are the services whose processes met a
    fault."""
    found, cause = list[str](), None
    try:
        mesh.predicates.ask_at_end()
    except Violation as violation:
        found, cause = [str(violation)], violation.__cause__
    found += [*_lost(mesh), *_doubled(mesh), *_reordered(mesh, disturbed), *_left(mesh)]
    if not disturbed:
        found += [
            f"{mesh.record.label(envelope)} was published again, though nothing went wrong"
            for envelope in mesh.record.published.values()
            if mesh.record.times[envelope.id] > 1
        ]
    if cause is not None or not allows_dead_letters:  # which may be why a predicate does not hold
        found += [
            f"{letter.subscription} has a dead letter of {mesh.record.label(letter.envelope)}: "
            f"{letter.reason} {letter.error.strip().splitlines()[-1] if letter.error else ''}"
            for letter in mesh.dead_letters()
        ]
    if audits and not found:
        async with Reach(mesh.started, mesh.settings, mesh.clock, mesh.transport) as reach:
            sheet = await audit(reach)
        found += [
            f"the audit finds: {sentence(each)}"
            for each in sheet.differences
            if not _was_declared_late(each, mesh)
        ]
    if found:
        raise Violation("\n".join(found)) from cause


def endings(mesh: VirtualMesh) -> Counter[str]:
    """How many sagas stand how, as `orders.fulfil_order completed`."""
    found = Counter[str]()
    for _, (name, status, number) in mesh.look(_ENDINGS):
        found[f"{name} {status}"] += number
    return found


def _lost(mesh: VirtualMesh) -> Iterator[str]:
    dead = {(letter.subscription, letter.envelope.unique_id) for letter in mesh.dead_letters()}
    for service in mesh.started:
        for name, handler in service.handlers.items():
            if not handler.transactional:
                continue
            for envelope in mesh.record.published.values():
                effect = name, envelope.unique_id
                is_wanted = envelope.name in handler.models and effect in mesh.record.wanted
                if is_wanted and not (mesh.effects.times[effect] or effect in dead):
                    yield f"{mesh.record.label(envelope)} was lost: {name} has not handled it"


def _was_declared_late(difference: Difference, mesh: VirtualMesh) -> bool:
    """Whether a subscription lacks only messages that were published before it was declared. The
    audit goes by the time of both, which is the same where virtual time stands still."""
    earlier = sum(
        envelope.name == difference.name
        and publisher_of(envelope) == difference.source
        and (difference.where, envelope.unique_id) not in mesh.record.wanted
        for envelope in mesh.record.published.values()
    )
    return difference.equation == "delivery" and 0 < difference.missing <= earlier


def _doubled(mesh: VirtualMesh) -> Iterator[str]:
    by_id = {each.unique_id: each for each in mesh.record.published.values()}
    for name, message_id in mesh.effects.doubled:
        label = mesh.record.label(by_id[message_id]) if message_id in by_id else message_id
        yield f"{label} took effect {mesh.effects.times[name, message_id]} times in {name}"


def _reordered(mesh: VirtualMesh, disturbed: Collection[str]) -> Iterator[str]:
    published = {each.unique_id: each for each in mesh.record.published.values()}
    turns = {message_id: turn for turn, message_id in enumerate(published)}
    promising = {
        name
        for service in mesh.started
        for name in service.handlers
        if _promises_order(name, service, mesh, disturbed)
    }
    latest: dict[tuple[str, str], Envelope] = {}
    for name, message_id in mesh.effects.times:  # in the order in which they first took effect
        envelope = published.get(message_id)
        if name not in promising or envelope is None or envelope.key is None:
            continue
        before = latest.setdefault((name, envelope.key), envelope)
        if turns[before.unique_id] <= turns[message_id]:
            latest[name, envelope.key] = envelope
        else:
            yield (
                f"{mesh.record.label(before)} took effect in {name} before "
                f"{mesh.record.label(envelope)}, which has the same key and was published earlier"
            )


def _promises_order(
    subscription: str, service: Service, mesh: VirtualMesh, disturbed: Collection[str]
) -> bool:
    """Whether messages of one key must take effect in order: see docs/ordering.md."""
    processes = sum(process.service == service.name for process in mesh.processes)
    has_retried = subscription in mesh.record.retried
    return processes == 1 and service.name not in disturbed and not has_retried


def _left(mesh: VirtualMesh) -> Iterator[str]:
    for _, (name, saga, status, step, reason) in mesh.look(_OPEN_SAGAS):
        why = f": {reason}" if reason else ""
        yield f"the saga {name} {saga} is {status} and waits for {step or 'nothing'}{why}"
    for path, (name, message_id, error) in mesh.look(_OUTBOX):
        yield f"{name} {message_id} is left in the outbox of {path.stem}: {error or ''}"
