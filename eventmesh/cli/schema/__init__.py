"""`eventmesh schema`: freezing, checking and comparing the schemas of messages."""

from __future__ import annotations

from eventmesh.cli.app import App
from eventmesh.cli.schema.check import check
from eventmesh.cli.schema.diff import diff
from eventmesh.cli.schema.importing import import_
from eventmesh.cli.schema.inventory import inventory, retire
from eventmesh.cli.schema.locks import deprecate, freeze, rules
from eventmesh.cli.schema.show import show

app = App(help="Message schemas: freeze, check, compare, retire.")
app.command()(freeze)
app.command()(check)
app.command()(diff)
app.command()(show)
app.command("import")(import_)
app.command()(deprecate)
app.command()(inventory)
app.command()(retire)
app.command()(rules)
