"""`eventmesh saga`: what sagas do, where they stand, and what an operator decides."""

from eventmesh.cli.app import App
from eventmesh.cli.saga import acting, looking, verify

app = App(help="Sagas: where they stand, and what to do with those that cannot go on.")

app.command("list")(looking.list_sagas)
app.command()(looking.show)
app.command()(looking.graph)
app.command()(verify.verify)
app.command()(acting.retry)
app.command()(acting.skip)
app.command()(acting.undo)
app.command()(acting.cancel)
