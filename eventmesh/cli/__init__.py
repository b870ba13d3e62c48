"""The command line: one module for each command group.

A module imports only what its help text needs; what a command runs is imported inside the
command. So `eventmesh --help` and shell completion answer at once, although some commands load
SQLAlchemy and a broker's client. Type annotations of such names are imported under TYPE_CHECKING
for the same reason; there is no cycle behind it.
"""
