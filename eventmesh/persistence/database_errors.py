"""What errors of a database say about it.

The question is always whom an error is about. If the connection or the server is lost, nobody's
statement was wrong: callers see Unreachable, the message keeps its attempts, and the work is done
again. Any other error belongs to the statement, and so to the handler which executed it.
"""

from __future__ import annotations

from ssl import SSLCertVerificationError

from sqlalchemy.exc import DBAPIError, InternalError, PendingRollbackError, SQLAlchemyError

from eventmesh.persistence.dialects.registry import sqlstate

# PostgreSQL's Appendix A. Classes: connection, authorization, unknown database.
_GONE_CLASSES = ("08", "28", "3D")
# Read-only after a failover, disk full, too many connections, shut down or starting.
_GONE = ("25006", "53100", "53300", "57P01", "57P02", "57P03", "57P05")
# "Not currently accepting connections"; of a statement, it says that the statement is wrong.
_NOT_ACCEPTING = "55000"
# SQLAlchemy's code for the use of a transaction whose connection it has invalidated.
_GIVEN_UP = "8s2b"
REPEATABLE = ("40001", "40P01", "55P03", "57014", "53200", "54000")
"""SQLSTATEs after which EventMesh simply executes its own statements again: serialization failure,
deadlock, lock not available, cancelled by a statement_timeout or an administrator, out of memory,
too many columns or levels."""
NO_RIGHT = "42501"
"""The SQLSTATE of a statement that the user of the database has no right to."""


def connection_lost(error: BaseException) -> bool:
    """Whether a statement failed because the database is gone, rather than because it is wrong."""
    if connection_cut(error):
        return True
    if not isinstance(error, DBAPIError):
        return False
    state = sqlstate(error)
    return (
        state[:2] in _GONE_CLASSES
        or state in _GONE
        or (error.statement is None and _prevents_connecting(error, state))
    )


def _prevents_connecting(error: DBAPIError, state: str) -> bool:
    """Whether an error of an attempt to connect may pass: the server says so, or the driver is
    confused, as asyncpg is where a connection ends right after the login."""
    return state == _NOT_ACCEPTING or isinstance(error, InternalError)


def comes_from_database(error: BaseException) -> bool:
    """Whether this is an error of a session or a statement, or was raised because of one."""
    seen: set[int] = set()
    links: list[BaseException | None] = [error]
    while links:
        link = links.pop()
        if isinstance(link, SQLAlchemyError):
            return True
        if link is not None and id(link) not in seen:
            seen.add(id(link))
            links += [link.__cause__, link.__context__]
    return False


def connection_cut(error: BaseException | None) -> bool:
    """Whether a statement failed because its connection was cut, either now or at an earlier
    statement whose error the handler caught."""
    if isinstance(error, PendingRollbackError):
        return error.code == _GIVEN_UP
    return isinstance(error, DBAPIError) and error.connection_invalidated


def is_of_certificate(error: BaseException | None) -> bool:
    """Whether the server's certificate was not accepted."""
    while error is not None and not isinstance(error, SSLCertVerificationError):
        error = error.__cause__ or error.__context__
    return error is not None


def first_line(error: BaseException) -> str:
    """The first line of what a driver says, for a sentence of our own."""
    cause = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(cause, TimeoutError) and not str(cause):
        return "it took too long"
    match getattr(cause, "args", ()):
        case int(), str(said):  # MariaDB's driver
            lines = said.splitlines()
        case _:
            lines = str(cause).splitlines()
    return (lines[0] if lines else type(cause).__name__).rstrip(".")
