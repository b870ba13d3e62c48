"""Updates that happen only while a condition holds, as the shop's services use them."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import CursorResult, Update

from eventmesh import Transaction


async def changes_a_row(tx: Transaction, update: Update) -> bool:
    """Whether the update has found a row. MariaDB has no UPDATE … RETURNING, but counts."""
    done = await tx.session.execute(update.execution_options(synchronize_session=False))
    return cast(CursorResult[Any], done).rowcount > 0
