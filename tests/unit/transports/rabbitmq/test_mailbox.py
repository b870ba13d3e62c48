"""What a worker may handle of the messages it holds, compared with a model that is a plain list."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from eventmesh.transports.rabbitmq.ordered.mailbox import Mail, Mailbox

KEYS = st.sampled_from(["a", "b", None])


@dataclass(eq=False)
class Model:
    """The messages in their order, those that come first before all others; and what is known of
    each key."""

    messages: list[Mail[int]] = field(default_factory=list)
    taken: list[Mail[int]] = field(default_factory=list)
    postponed_until: dict[str | None, float] = field(default_factory=dict)
    held_by: dict[str | None, set[str]] = field(default_factory=dict)

    def may_be_taken(self, now: float) -> list[Mail[int]]:
        busy = {mail.key for mail in self.taken}
        return [
            mail
            for mail in self.messages
            if mail.key not in busy
            and self.postponed_until.get(mail.key, now) <= now
            and (mail.comes_first or not self.held_by.get(mail.key))
        ]


class MailboxMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.mailbox = Mailbox[int]()
        self.model = Model()
        self.now = 0.0
        self.number = 0

    @rule(key=KEYS, comes_first=st.booleans())
    def put(self, key: str | None, comes_first: bool) -> None:
        self.number += 1
        mail = Mail(key, self.number, comes_first)
        self.mailbox.put(mail)
        place = sum(each.comes_first for each in self.model.messages)
        self.model.messages.insert(place if comes_first else len(self.model.messages), mail)

    @rule(limit=st.integers(1, 4))
    def take(self, limit: int) -> None:
        allowed = self.model.may_be_taken(self.now)
        taken = self.mailbox.take(limit, self.now)
        assert taken == allowed[:limit]
        for mail in taken:
            self.model.messages.remove(mail)
        self.model.taken += taken

    @precondition(lambda self: self.model.taken)
    @rule(choice=st.randoms(use_true_random=False))
    def done(self, choice: object) -> None:
        mail = choice.choice(self.model.taken)  # type: ignore[attr-defined]
        self.mailbox.done(mail)
        self.model.taken.remove(mail)

    @precondition(lambda self: self.model.taken)
    @rule(choice=st.randoms(use_true_random=False), itself=st.booleans(), delay=st.floats(0, 5))
    def take_back(self, choice: object, itself: bool, delay: float) -> None:
        failed = choice.choice(self.model.taken)  # type: ignore[attr-defined]
        place = self.model.taken.index(failed) + (not itself)
        expected = [mail for mail in self.model.taken[place:] if mail.key == failed.key]
        assert self.mailbox.take_back(failed, itself=itself) == expected
        for mail in expected:
            self.model.taken.remove(mail)
        self.model.messages += expected
        self.model.messages.sort(key=lambda mail: (not mail.comes_first, mail.message))
        if itself and delay:
            self.mailbox.postpone(failed.key, self.now + delay)
            self.model.postponed_until[failed.key] = self.now + delay

    @rule(key=KEYS, letter=st.sampled_from(["x", "y"]))
    def hold(self, key: str | None, letter: str) -> None:
        self.mailbox.hold(key, letter)
        self.model.held_by.setdefault(key, set()).add(letter)

    @rule(key=KEYS, letter=st.sampled_from(["x", "y"]))
    def release(self, key: str | None, letter: str) -> None:
        self.mailbox.release(key, letter)
        self.model.held_by.setdefault(key, set()).discard(letter)

    @rule(seconds=st.floats(0, 3))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @invariant()
    def it_knows_what_is_taken_and_when_to_look_again(self) -> None:
        assert self.mailbox.has_taken() == bool(self.model.taken)
        due = [until for until in self.model.postponed_until.values() if until > self.now]
        next_due = self.mailbox.next_due()
        assert not due or (next_due is not None and next_due <= min(due))


TestMailbox = MailboxMachine.TestCase
TestMailbox.settings = settings(max_examples=200, stateful_step_count=40)
