"""`eventmesh schema diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eventmesh.cli.schema.common import AsJson, owned, say, say_json, services_of

Side = Annotated[
    str,
    typer.Argument(help="name@version, a file, or the name of a message for what the code says."),
]


def diff(a: Side, b: Side, as_json: AsJson = False) -> None:
    """Compare two versions, both ways: what differs, and the document that breaks."""
    from eventmesh.contracts.locks.lock_folder import read_locks
    from eventmesh.review.formats.comparison import as_text, as_value
    from eventmesh.review.schema_lookup import resolve
    from eventmesh.runtime.declaring.settings import load_settings

    locks = read_locks(Path.cwd() / load_settings().schemas)
    first, second = (resolve(text, locks, lambda: owned(services_of(None))) for text in (a, b))
    verdicts = [
        (writer.label, reader.label, reader.reads(writer))
        for writer, reader in ((first, second), (second, first))
    ]
    if as_json:
        say_json([as_value(*verdict) for verdict in verdicts])
    else:
        say("\n".join(as_text(*verdict) for verdict in verdicts))
