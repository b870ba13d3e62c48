"""The dashboard: an ASGI application that shows a running mesh and lets operators act on it.

    from eventmesh.dashboard import Dashboard, User

    async def who(connection: HTTPConnection) -> User | None:
        session = await my_sessions.find(connection.cookies.get("session"))
        return None if session is None else User(session.email, "operator")

    app.mount("/mesh", Dashboard([orders, payments], authenticate=who))

Pages are rendered here and need no other server: one stylesheet and one script are part of the
package. Without `authenticate`, only this machine is served. It needs the extra `dashboard`.
"""

from eventmesh.dashboard.access import Authenticate, Denied, OnLoopback, ProxyHeader, Role, User
from eventmesh.dashboard.app import Dashboard
from eventmesh.dashboard.masking import Mask

__all__ = [
    "Authenticate",
    "Dashboard",
    "Denied",
    "Mask",
    "OnLoopback",
    "ProxyHeader",
    "Role",
    "User",
]
