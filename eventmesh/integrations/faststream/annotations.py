"""What a FastStream handler of a mesh can declare as parameters, like `faststream.annotations`."""

from __future__ import annotations

from typing import Annotated

from faststream import Context

from eventmesh.integrations.faststream.unit import UNIT
from eventmesh.persistence.database import AsyncSession
from eventmesh.persistence.transaction import Transaction as _Transaction
from eventmesh.wire.envelope import Envelope as _Envelope

Transaction = Annotated[_Transaction, Context(f"{UNIT}.transaction")]
"""The transaction of this message, with its `session`, and `publish` and `send` for the outbox."""

Session = Annotated[AsyncSession, Context(f"{UNIT}.session")]
"""The SQLAlchemy session of that transaction."""

Envelope = Annotated[_Envelope, Context(f"{UNIT}.envelope")]
"""The CloudEvents attributes of the message, and its data as bytes."""
