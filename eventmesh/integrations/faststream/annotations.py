"""What a FastStream handler of a mesh can ask for, in the manner of `faststream.annotations`."""

from __future__ import annotations

from typing import Annotated

from faststream import Context

from eventmesh.integrations.faststream.unit import UNIT
from eventmesh.persistence.database import AsyncSession
from eventmesh.persistence.transaction import Transaction as _Transaction
from eventmesh.wire.envelope import Envelope as _Envelope

Transaction = Annotated[_Transaction, Context(f"{UNIT}.transaction")]
"""The transaction of this message: its `session`, and `publish` and `send` into the outbox."""

Session = Annotated[AsyncSession, Context(f"{UNIT}.session")]
"""The SQLAlchemy session of that transaction."""

Envelope = Annotated[_Envelope, Context(f"{UNIT}.envelope")]
"""The CloudEvents attributes with which the message came, and its data as bytes."""
