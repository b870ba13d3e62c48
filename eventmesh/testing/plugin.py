"""The pytest plugin: the fixtures `mesh` and `mesh_servers`. Found by its entry point.

An async test that takes `mesh` runs on a loop of its own, whether pytest-asyncio is installed or
not, and needs no marker. If it fails, its report shows what happened in the mesh. Nothing is
imported here for tests that take neither.

The loop owns the time, unless real servers are asked for, by `--mesh-broker`, `--mesh-database` or
`@pytest.mark.mesh(database="postgresql")`: then the same test runs on these, in real time. A server
that was asked for on the command line and is missing fails the tests; one that only a marker names
skips them.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Generator, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # see the module's docstring
    from eventmesh.testing.mesh import Mesh, MeshServers
    from eventmesh.testing.mesh.databases import Workshop
    from eventmesh.testing.mesh.real_mesh import RealMesh
    from eventmesh.testing.mesh.real_servers import RunningServers, Wanted
    from eventmesh.testing.mesh.virtual_mesh import VirtualMesh
    from eventmesh.testing.simulation.search import Body, Options

_WRITTEN = pytest.StashKey[Callable[..., Awaitable[None]]]()
"""The function of a test that takes `mesh`, with all its decorators, as it is in its module or
class. When a test is called, pytest-asyncio has put a function around it that runs another loop."""


@pytest.fixture(scope="session")
def _mesh_workshop() -> Iterator[Workshop]:
    from eventmesh.testing.mesh.databases import temporary_workshop

    with temporary_workshop() as workshop:
        yield workshop


@pytest.fixture
def mesh(request: pytest.FixtureRequest) -> Iterator[Mesh]:
    """A mesh of services for one async test: in memory and in virtual time, or on real servers."""
    try:
        from eventmesh.testing.mesh.real_mesh import RealMesh
        from eventmesh.testing.mesh.running import make_mesh
    except ModuleNotFoundError as error:
        raise pytest.UsageError(
            f"The fixture `mesh` needs {error.name}: pip install 'eventmesh[testing]'."
        ) from None

    if getattr(request.function, "is_hypothesis_test", False):
        raise pytest.UsageError(
            f"{request.node.nodeid} has @given, and all examples would share one `mesh`: take it "
            f"in a test without @given, such as one with @pytest.mark.parametrize."
        )
    request.node.stash[_WRITTEN] = request.function
    if not _wanted(request.node).is_virtual:
        yield RealMesh(request.getfixturevalue("mesh_servers"))
        return
    made = make_mesh(request.getfixturevalue("_mesh_workshop"))
    yield made
    made.loop.close()


@pytest.fixture(scope="session")
def _mesh_running_servers() -> Iterator[RunningServers]:
    from eventmesh.testing.mesh.real_servers import RunningServers

    running = RunningServers()
    yield running
    running.close()


@pytest.fixture
def mesh_servers(
    request: pytest.FixtureRequest, _mesh_running_servers: RunningServers, tmp_path: Path
) -> Iterator[MeshServers]:
    """The broker and new databases for a test that starts its own things on them; SQLite files
    where nothing else is asked for."""
    from eventmesh.testing.mesh.real_servers import MeshServers, Wanted
    from eventmesh.testing.servers import ServerMissing, required

    wanted = _wanted(request.node)
    if wanted.is_virtual:
        wanted = Wanted("sqlite")
    try:
        servers = MeshServers(wanted, _mesh_running_servers, tmp_path)
    except ServerMissing as missing:
        options = (
            request.config.getoption("--mesh-broker"),
            request.config.getoption("--mesh-database"),
        )
        if any(options) or required(missing.kind):
            pytest.fail(str(missing), pytrace=False)
        pytest.skip(str(missing))
    yield servers
    servers.close()


def _wanted(item: pytest.Item) -> Wanted:
    """What a test is to run on: as its marker says, else as the command line does."""
    from eventmesh.errors import UsageError
    from eventmesh.testing.mesh.real_servers import Wanted

    marker = item.get_closest_marker("mesh")
    asked = {
        name: value
        for name in ("broker", "database")
        if (
            value := (marker.kwargs.get(name) if marker else None)
            or item.config.getoption(f"--mesh-{name}")
        )
    }
    try:
        return Wanted(**asked)
    except UsageError as error:
        raise pytest.UsageError(str(error)) from None


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("mesh", "simulation of services (EventMesh)")
    group.addoption(
        "--mesh-seeds", type=int, help="run simulations with so many seeds, whatever they ask for"
    )
    group.addoption(
        "--mesh-broker",
        metavar="memory|sqlite|redis|rabbitmq|URL",
        help="run tests with `mesh` in real time on this broker",
    )
    group.addoption(
        "--mesh-database",
        metavar="sqlite|postgresql|mariadb|URL",
        help="run tests with `mesh` in real time, each service with a new database there",
    )
    group.addoption("--mesh-replay", metavar="PLAN", help="run simulations with this plan only")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        "mesh(seeds=100, seconds=None, dead_letters=False, broker=None, database=None): run the "
        "test so often, each time with other faults and another order of events, for so many "
        "seconds at most; with dead_letters, there may be some at the end. With a broker or a "
        "database, run it once, in real time on these servers",
    )


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> Generator[None, Any, Any]:
    """Run an async test that takes `mesh` on the mesh's own loop: pytest, and the plugins that have
    loops too, call an ordinary function in its place."""
    found, written = _mesh_of(pyfuncitem), pyfuncitem.stash.get(_WRITTEN, None)
    if found is None or written is None or not _is_async(written):
        return (yield)
    before, pyfuncitem.obj = pyfuncitem.obj, partial(_run_test, pyfuncitem, found, written)
    try:
        return (yield)
    finally:
        pyfuncitem.obj = before


def _is_async(function: Callable[..., Any]) -> bool:
    """Whether it is a coroutine function, or one that is decorated with a plain function."""
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(
        inspect.unwrap(function)
    )


def _run_test(
    item: pytest.Function,
    found: Mesh,
    function: Callable[..., Awaitable[None]],
    /,  # the test may have arguments of these names
    **arguments: Any,
) -> None:
    """Run the test once, or as often as its marker says."""
    from eventmesh.testing.mesh.real_mesh import RealMesh
    from eventmesh.testing.mesh.running import run
    from eventmesh.testing.mesh.virtual_mesh import VirtualMesh

    marker = _simulation_of(item)
    if isinstance(found, RealMesh):
        _run_on_servers(item, lambda: function(**arguments), found, marker)
        return
    assert isinstance(found, VirtualMesh)  # noqa: S101  # there are these two
    if marker is None:
        run(found, lambda: function(**arguments))
    else:
        _simulate(item, lambda mesh: function(**arguments | {"mesh": mesh}), found, marker)


def _simulation_of(item: pytest.Item) -> pytest.Mark | None:
    """The marker of a simulation; None for one that only says on which servers a test runs."""
    marker = item.get_closest_marker("mesh")
    if marker is None or (marker.kwargs and {*marker.kwargs} <= {"broker", "database"}):
        return None
    return marker


def _run_on_servers(
    item: pytest.Function,
    body: Callable[[], Awaitable[None]],
    mesh: RealMesh,
    marker: pytest.Mark | None,
) -> None:
    """Run the test once. Where it is a simulation, what must hold in the end is asked, too."""
    from eventmesh.testing.mesh.real_mesh import NeedsVirtualTime
    from eventmesh.testing.mesh.running import run_on_servers

    options = None if marker is None else _options(item, marker)

    async def whole() -> None:
        await body()
        if options is not None:
            await mesh.check_end(allows_dead_letters=options.allows_dead_letters)

    try:
        run_on_servers(mesh, whole)
    except NeedsVirtualTime as reason:
        pytest.skip(f"needs virtual time: the test {reason}")


def _options(item: pytest.Function, marker: pytest.Mark) -> Options:
    """What the marker of a simulation says, and the command line."""
    from eventmesh.testing.simulation.search import Options

    given = {
        name: value for name, value in marker.kwargs.items() if name not in ("broker", "database")
    }
    options = Options(
        seeds=item.config.getoption("--mesh-seeds") or given.pop("seeds", 100),
        seconds=given.pop("seconds", None),
        allows_dead_letters=given.pop("dead_letters", False),
    )
    given.pop("seeds", None)
    if marker.args or given:
        raise pytest.UsageError(
            f"@pytest.mark.mesh of {item.nodeid} has {marker.args or list(given)}: it takes seeds, "
            f"seconds, dead_letters, broker and database."
        )
    return options


def _simulate(item: pytest.Function, body: Body, first: VirtualMesh, marker: pytest.Mark) -> None:
    from eventmesh.testing.mesh.running import make_mesh
    from eventmesh.testing.simulation.plan import Plan
    from eventmesh.testing.simulation.report import describe
    from eventmesh.testing.simulation.search import replay, simulate

    options = _options(item, marker)

    def make() -> VirtualMesh:
        return make_mesh(first.workshop, first.settings)

    plan = item.config.getoption("--mesh-replay")
    if plan is not None:
        failure = replay(body, make, Plan.parse(plan), options)
    else:
        failure = simulate(body, make, options).failure
    if failure is not None:
        command = f"pytest '{item.nodeid}' --mesh-replay='{failure.plan}'"
        raise SimulationFailed(describe(failure, command)) from failure.error


class SimulationFailed(AssertionError):
    """A seed was found with which the test fails."""


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show the story of a mesh in which a test failed. A simulation has a mesh for each run: its
    error tells the story of the run that failed."""
    report = yield
    if report.when == "call" and report.failed and (found := _mesh_of(item)) is not None:
        from eventmesh.testing.mesh.virtual_mesh import VirtualMesh

        if isinstance(found, VirtualMesh) and _simulation_of(item) is not None:
            return report
        report.sections.append(("what happened in the mesh", found.story()))
    return report


def _mesh_of(item: pytest.Item) -> Mesh | None:
    """What the fixture above has made for a test; None where it has another `mesh`, or none."""
    found: Any = getattr(item, "funcargs", {}).get("mesh")
    if found is None:
        return None
    from eventmesh.testing.mesh import Mesh

    return found if isinstance(found, Mesh) else None
