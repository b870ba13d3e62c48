"""Everything that OpenTelemetry is told of one service, behind the port."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager

from eventmesh.clock import Clock
from eventmesh.tracing.otel.consuming import Consuming
from eventmesh.tracing.otel.producing import Producing
from eventmesh.tracing.otel.recorder import Recorder
from eventmesh.tracing.otel.signals import Providers
from eventmesh.tracing.place import KnowsPeers, Place
from eventmesh.tracing.port import Answer, ConsumerTracing
from eventmesh.wire.envelope import Envelope


class OpenTelemetryTracing:
    """Of one service. `parents` says for which messages the process span is below the create span:
    none, commands (and the answers to a saga's commands), or all."""

    def __init__(
        self, place: Place, clock: Clock, parents: str, providers: Providers, version: str
    ) -> None:
        self._recorder = Recorder(place, clock, parents, providers, version)
        self._producing = Producing(self._recorder)

    def over(self, transport: KnowsPeers) -> None:
        self._recorder.transport = transport

    def created(
        self, envelope: Envelope, *, delay: float = 0.0, cause: Envelope | None = None
    ) -> Envelope:
        return self._producing.created(envelope, delay=delay, cause=cause)

    def sending(
        self, envelopes: Sequence[Envelope]
    ) -> AbstractContextManager[Callable[[Answer], None]]:
        return self._producing.sending(envelopes)

    def consumer(
        self, subscription: str, messages: Collection[str], commands: Collection[str]
    ) -> ConsumerTracing:
        self._recorder.handles_commands(commands)
        return Consuming(self._recorder, subscription, messages)
