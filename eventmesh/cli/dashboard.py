"""`eventmesh dashboard`: serves the pages for operators."""

from __future__ import annotations

import importlib
import ipaddress
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from eventmesh.errors import UsageError

if TYPE_CHECKING:  # imported when the command runs; see `eventmesh.cli`
    from eventmesh.dashboard import Authenticate

Names = Annotated[
    list[str] | None, typer.Argument(help="Services; all if none is named.", metavar="SERVICE")
]


def dashboard(
    services: Names = None,
    host: Annotated[
        str, typer.Option(help="Address on which pages are served.", metavar="ADDRESS")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option(min=0, max=65_535, help="Port; 0 for any.", metavar="PORT")
    ] = 8088,
    role: Annotated[
        str, typer.Option(help="Without authentication: operator or viewer.", metavar="ROLE")
    ] = "operator",
    user_header: Annotated[
        str | None,
        typer.Option(
            help="Header in which a reverse proxy names the user; needs --proxy.", metavar="HEADER"
        ),
    ] = None,
    proxy: Annotated[
        list[str] | None,
        typer.Option(
            help="Address or network of the reverse proxy. May be repeated.", metavar="ADDRESS"
        ),
    ] = None,
    operator: Annotated[
        list[str] | None,
        typer.Option(
            help="A user of the reverse proxy who may act. May be repeated.", metavar="USER"
        ),
    ] = None,
    authenticate: Annotated[
        str | None,
        typer.Option(
            help="Function that tells who sends a request, such as web.auth:who.",
            metavar="MODULE:FUNCTION",
        ),
    ] = None,
    mask: Annotated[
        str | None,
        typer.Option(
            help="Function that hides parts of payloads, such as web.privacy:mask.",
            metavar="MODULE:FUNCTION",
        ),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            help="Address under which browsers know the pages, where a proxy changes the Host "
            "header. May be repeated.",
            metavar="URL",
        ),
    ] = None,
    interval: Annotated[
        float,
        typer.Option(min=0.5, max=3_600, help="Seconds between measurements.", metavar="SECONDS"),
    ] = 2.0,
) -> None:
    """Serve the pages for operators, until Ctrl-C.

    Without options, only this machine is served, without a password. On any other
    address, a reverse proxy or a function of yours has to tell who the user is.

    \b
    Examples:
      eventmesh dashboard
      eventmesh dashboard --host 0.0.0.0 --user-header X-Remote-User \\
          --proxy 10.0.0.7 --operator ada
      eventmesh dashboard --host 0.0.0.0 --authenticate web.auth:who
    """
    from eventmesh.cli.environment import settings_of_command
    from eventmesh.observability.logs import configure_logs
    from eventmesh.runtime.declaring.discovery import load_services

    if role not in ("operator", "viewer"):
        raise UsageError(f"{role!r} is not a role: choose operator or viewer.")
    who = _authentication(host, role, user_header, proxy or [], operator or [], authenticate)
    loaded = load_services(services or [], Path.cwd())
    settings = settings_of_command()
    configure_logs(settings)
    from eventmesh.dashboard import Dashboard

    for service in loaded:
        service.configure(settings)
    app = Dashboard(
        loaded,
        settings=settings,
        authenticate=who,
        mask=None if mask is None else _function(mask),
        origins=origin or (),
        interval=interval,
    )
    serve(app, host, port)


def serve(app: Any, host: str, port: int) -> None:
    """Serve an ASGI application until the process is asked to end, and print its address."""
    import uvicorn

    with listening(host, port) as listener:
        typer.echo(f"The dashboard is at {address(listener)}", err=True)
        config = uvicorn.Config(
            app,
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,  # the address of a connection is what authentication relies on
            server_header=False,
            timeout_graceful_shutdown=1,  # streams of events do not end by themselves
        )
        with suppress(KeyboardInterrupt):  # this is how it ends
            uvicorn.Server(config).run(sockets=[listener])


@contextmanager
def listening(host: str, port: int) -> Iterator[socket.socket]:
    """A socket that accepts connections there; UsageError where there can be none."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listener = socket.create_server((host, port), family=family)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"The dashboard cannot be served on {host} port {port}: {error}. Choose another --port "
            f"or --host."
        ) from None
    with listener:
        yield listener


def address(listener: socket.socket) -> str:
    """The URL of what this socket serves."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


def require_dashboard() -> None:
    """UsageError where what the pages are rendered with is not installed."""
    try:
        importlib.import_module("jinja2")
    except ModuleNotFoundError:
        raise UsageError(
            "The dashboard needs Jinja2: install it with `pip install 'eventmesh[dashboard]'`."
        ) from None


def _authentication(
    host: str,
    role: str,
    user_header: str | None,
    proxies: list[str],
    operators: list[str],
    authenticate: str | None,
) -> Authenticate:
    require_dashboard()
    from eventmesh.dashboard import OnLoopback, ProxyHeader, User
    from eventmesh.operations.action_log import operator_of_machine

    if authenticate is not None and user_header is not None:
        raise UsageError("Give either --authenticate or --user-header.")
    if user_header is None and (proxies or operators):
        raise UsageError("--proxy and --operator are for --user-header: name the header, too.")
    if authenticate is not None:
        found: Authenticate = _function(authenticate)
        return found
    if user_header is not None:
        return ProxyHeader(user_header, proxies=proxies, operators=operators)
    if not _is_loopback(host):
        raise UsageError(
            f"On {host}, others could reach the dashboard, so somebody has to tell who they are: "
            f"give --user-header and --proxy, or --authenticate."
        )
    known: Literal["operator", "viewer"] = "operator" if role == "operator" else "viewer"
    return OnLoopback(User(operator_of_machine(), known))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False  # a name may be resolved to anything


def _function(target: str) -> Any:
    """The function at MODULE:FUNCTION; UsageError."""
    module, _, name = target.partition(":")
    if str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(
            f"{target!r} was not found: {error}. Write it as MODULE:FUNCTION, such as web.auth:who."
        ) from None
    if not callable(found):
        raise UsageError(f"{target!r} is not a function.")
    return found
