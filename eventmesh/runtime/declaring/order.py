"""What a handler says of the order of its messages, checked when it is declared."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, get_args

from eventmesh.contracts.message import Message, identity_of
from eventmesh.errors import UsageError
from eventmesh.transports.base import MOST_PARTITIONS, AfterDead, Order

WithoutKey = Literal["refuse", "together"]
"""What an ordered handler does with messages that are declared without a key: it cannot be
declared, or they are in order among themselves."""


def order_of(
    where: str,
    models: Iterable[type[Message]],
    *,
    ordered: bool,
    partitions: int | None,
    after_dead: AfterDead | None,
    without_key: WithoutKey | None,
) -> Order | None:
    """The order that these parameters of a handler ask for; UsageError for what cannot be."""
    if not isinstance(ordered, bool):
        raise UsageError(f"{where} has ordered={ordered!r}: write True or False.")
    given = {"partitions": partitions, "after_dead": after_dead, "without_key": without_key}
    if not ordered:
        unused = [name for name, value in given.items() if value is not None]
        if unused:
            raise UsageError(f"{where} has {unused[0]}= without ordered=True, which it belongs to.")
        return None
    if partitions is not None and not 1 <= partitions <= MOST_PARTITIONS:
        raise UsageError(
            f"{where} has partitions={partitions}: give a number from 1 to {MOST_PARTITIONS}."
        )
    for name, choices in (("after_dead", AfterDead), ("without_key", WithoutKey)):
        if given[name] is not None and given[name] not in get_args(choices):
            raise UsageError(
                f"{where} has {name}={given[name]!r}: write "
                f"{' or '.join(map(repr, get_args(choices)))}."
            )
    for model in models:
        if identity_of(model).key is None and without_key != "together":
            raise UsageError(
                f"{where} is ordered, and its {model.__name__} has no key that says which "
                f"messages belong together. Write class {model.__name__}(…, key=…), or "
                f'without_key="together" to have all of them in one order, one at a time.'
            )
    default = Order()
    return Order(after_dead or default.after_dead, partitions or default.partitions)
