from __future__ import annotations

import pytest

from eventmesh.errors import PublishError, Unreachable
from eventmesh.transports.base import ALL_CONFIRMED, PublishResult
from eventmesh.wire.envelope import Envelope

first, second, third = (Envelope({"id": id_}, b"") for id_ in ("first", "second", "third"))


def test_a_message_neither_rejected_nor_unanswered_is_confirmed() -> None:
    result = PublishResult.interrupted([third], Unreachable("lost"), rejected={"second": "full"})
    assert [result.is_confirmed(each) for each in (first, second, third)] == [True, False, False]
    assert ALL_CONFIRMED.is_confirmed(first)


def test_an_interrupted_batch_raises_its_error_even_if_messages_were_rejected() -> None:
    lost = Unreachable("lost")
    with pytest.raises(Unreachable) as caught:
        PublishResult.interrupted([third], lost, rejected={"second": "full"}).raise_for_failures()
    assert caught.value is lost


def test_rejected_messages_raise_a_publish_error_with_their_reasons() -> None:
    with pytest.raises(PublishError, match=r"rejected 1 message.*second: full") as caught:
        PublishResult({"second": "full"}).raise_for_failures()
    assert caught.value.rejected == {"second": "full"}


def test_a_confirmed_batch_raises_nothing() -> None:
    ALL_CONFIRMED.raise_for_failures()
