"""`eventmesh schema diff`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from eventmesh.cli.schema.common import AsJson, owned, say, say_json, services_of
from eventmesh.cli.schema.shapes import diff_shapes

_SIDE = "A frozen NAME@VERSION, the NAME of a message for its current code, or a JSON file."
First = Annotated[str, typer.Argument(help=_SIDE, metavar="A")]
Second = Annotated[str, typer.Argument(help="The same.", metavar="B")]


def diff(first: First, second: Second, as_json: AsJson = False) -> None:
    """Compare two versions of a message, in both directions, or of a saga.

    For each direction it says whether the reader accepts everything that the writer may send, with
    the differences and a document that fails. The upcasters of the current code are applied to the
    older versions that it reads; frozen versions and files are compared without upcasters. Of a
    saga, it says what has changed in its shape.
    """
    from eventmesh.contracts.locks.lock_folder import read_locks
    from eventmesh.review.formats.comparison import as_text, as_value
    from eventmesh.review.schema_lookup import look_up
    from eventmesh.runtime.declaring.settings import load_settings

    locks = read_locks(Path.cwd() / load_settings().schemas)
    if diff_shapes(locks.root, first, second, as_json=as_json):
        return
    one, two = (look_up(text, locks, lambda: owned(services_of(None))) for text in (first, second))
    comparisons = [two.compare_as_reader_of(one), one.compare_as_reader_of(two)]
    if as_json:
        say_json([as_value(comparison) for comparison in comparisons])
    else:
        say("\n".join(map(as_text, comparisons)))
