"""What the spans of one service have in common."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from opentelemetry.trace import Span

from eventmesh.clock import Clock
from eventmesh.tracing import conventions as named
from eventmesh.tracing.otel.contexts import creation_of
from eventmesh.tracing.otel.signals import Providers, Signals
from eventmesh.tracing.place import KnowsPeers, Place
from eventmesh.wire.envelope import Envelope

ASK_EVERY = 1.0
"""Seconds after which it is looked up again whether the application has configured a provider."""


class Recorder:
    """Where a service's messages go, the providers that are told of them, and which messages
    continue the trace in which they were created: by `parents`, none, commands, or all."""

    def __init__(
        self, place: Place, clock: Clock, parents: str, providers: Providers, version: str
    ) -> None:
        self.place = place
        self.clock = clock
        self._parents = parents
        self._commands: set[str] = set()
        self.transport: KnowsPeers | None = None
        self._providers = providers
        self._version = version
        self._signals: Signals | None = None
        self._ask_again_at = float("-inf")

    @property
    def signals(self) -> Signals | None:
        """None while the application has configured no provider, which is looked up every second:
        for each message, that would take time."""
        if self._signals is None and self.clock.monotonic() >= self._ask_again_at:
            self._ask_again_at = self.clock.monotonic() + ASK_EVERY
            if self._providers.is_any_configured():
                self._signals = Signals(self._providers, self._version)
        return self._signals

    def tell_peer(self, span: Span, *, publishing: bool) -> None:
        """Say where the operation of this span, which is recorded, went to."""
        if self.transport is not None:
            span.set_attributes(named.of_peer(self.transport.peer(publishing=publishing)))

    def handles_commands(self, names: Collection[str]) -> None:
        """Messages of these names are commands."""
        self._commands.update(names)

    def continues(self, envelope: Envelope) -> bool:
        """Whether what follows from this message belongs into the trace of its creation."""
        if self._parents != "commands":
            return self._parents == "all"
        # The commands of sagas, and what answers them, have the attribute sagaid.
        return envelope.name in self._commands or "sagaid" in envelope.attributes

    def epoch(self) -> float:
        """The time at which the clock's monotonic time was zero, in seconds since 1970. It is asked
        for once a batch: asking for every span would take time, and the spans of a batch stay in
        order when the machine's time is set meanwhile."""
        return self.clock.now().timestamp() - self.clock.monotonic()


def nanoseconds(at: float, epoch: float) -> int:
    """The time since 1970 of this moment of the clock's monotonic time."""
    return int((epoch + at) * 1e9)


def describe(
    span: Span,
    messages: Sequence[tuple[Envelope, named.Attributes]],
    of_link: Callable[[str], named.Attributes],
) -> None:
    """Say which messages a span is about, and this of each: by links to their creation; and for a
    single one by the span's own attributes. `of_link` is asked about names where there are
    several."""
    if len(messages) == 1:
        [(envelope, told)] = messages
        span.set_attributes({**told, named.MESSAGE_ID: named.encodable(envelope.id)})
        if (origin := creation_of(envelope)).is_valid:
            span.add_link(origin)
        return
    span.set_attribute(named.BATCH_COUNT, len(messages))
    is_mixed = named.common_name([envelope for envelope, _ in messages]) is None
    for envelope, told in messages:
        if (origin := creation_of(envelope)).is_valid:
            where = of_link(envelope.name) if is_mixed else {}
            span.add_link(origin, {**told, **where, named.MESSAGE_ID: named.encodable(envelope.id)})
