"""Finding imports of another service's code (EM055), by reading files and not importing them.

Services share messages by name and version, not by code: an import would couple their deployments.
The code of a service is the package of its target's module, or the module alone if several services
live in one package. Every import in these files counts, also one inside a function, under
TYPE_CHECKING, or made by `importlib.import_module("…")`.

Code that belongs to no service may be imported, unless it imports another service's code in turn.
So `orders` importing `shared.money` is fine, but not if `shared/money.py` imports `payments`.
"""

from __future__ import annotations

import sys
from collections import Counter, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from eventmesh.contracts.problem import Place, Problem
from eventmesh.review.python_sources import Sources, python_files

RULE = "EM055"


@dataclass(frozen=True, slots=True)
class Home:
    """Where the code of one service is."""

    service: str
    module: str
    """The package or module that contains all its code."""
    path: Path
    """Its folder, or its one file."""
    base: Path
    """The folder that modules are imported from."""


def homes(targets: Mapping[str, str], root: Path) -> dict[str, Home]:
    """Where the code of each service is, by name; services without files are left out."""
    modules = {service: target.partition(":")[0] for service, target in targets.items()}
    located = {service: _locate(module, root) for service, module in modules.items()}
    packages = {
        service: modules[service] if at[0].is_dir() else _parent(modules[service])
        for service, at in located.items()
        if at is not None
    }
    inhabitants = Counter(packages.values())
    found = {}
    for service, package in packages.items():
        path, base = located[service] or (root, root)
        if package and inhabitants[package] == 1:
            found[service] = Home(service, package, base.joinpath(*package.split(".")), base)
        else:
            found[service] = Home(service, modules[service], path, base)
    return found


def foreign_imports(
    targets: Mapping[str, str], sources: Sources, *, of: set[str] | None = None
) -> list[Problem]:
    """EM055 for every import of another service's code, and for every file that cannot be read.

    `targets` are those of `service_targets`. `of` are the services to check, by default all.
    """
    code = _Code(homes(targets, sources.root), sources)
    return [
        problem
        for service in sorted(targets if of is None else targets.keys() & of)
        for problem in code.problems(service)
    ]


@dataclass(frozen=True, slots=True)
class _Run:
    """A module that an import runs."""

    module: str
    file: Path
    wanted: str | None = None
    """The only name whose origin matters, for a package that contains the service itself: its other
    imports do not concern this import. None if all imports of the module count."""


class _Code:
    """The code of all services, and the code between them that belongs to none."""

    def __init__(self, found: Mapping[str, Home], sources: Sources) -> None:
        self._homes = found
        self._sources = sources
        self._bases = {home.base for home in found.values()}
        self._owners = {home.module: home.service for home in found.values()}
        self._real = {home.service: home.path.resolve() for home in found.values()}
        self._located: dict[str, Path | None] = {}
        self._harmless: dict[str, set[_Run]] = {service: set() for service in found}

    def problems(self, service: str) -> Iterator[Problem]:
        home = self._homes.get(service)
        if home is None:
            return  # a service without files, for example declared in a test
        trouble: list[tuple[Path, str]] = []
        files = python_files(home.path, trouble) if home.path.is_dir() else [home.path]
        told = set()
        for file in files:
            if self._owner(module_at(file, home.base)) != service:
                continue  # the folder of another service is inside this one's
            for problem in self._problems_in(file, home):
                if problem.fingerprint not in told:
                    told.add(problem.fingerprint)
                    yield problem
        for path, reason in trouble:
            yield self._unread(path, service, f"it cannot be read ({reason})")

    def _problems_in(self, file: Path, home: Home) -> Iterator[Problem]:
        other = self._linked(file, home)
        if other is not None:
            place = self._sources.place(_outermost_link(file, home))
            what = f"{place.file} is a symbolic link to code of service {other}."
            yield self._foreign(home.service, (other,), place, "", what)
            return
        source = self._sources.read(file)
        if source.trouble:
            yield self._unread(file, home.service, source.trouble)
        package = module_at(file.parent, home.base)
        for each in source.imports:
            place = self._sources.place(file, each.line)
            where = f"Line {place.line} of {place.file}"
            indirect: dict[str, tuple[str, ...]] = {}
            direct: dict[str, str] = {}
            for target in each.targets(package):
                for other, way in self._reached(target, home):
                    if way:
                        indirect.setdefault(other, (target, *way))
                    else:
                        direct.setdefault(other, target)
            module = each.from_module(package)
            for other, target in direct.items():
                # Name the module rather than the name imported from it, if the module is foreign.
                name = module if self._owner(module) == other else target
                what = f"{where} imports {name}, which is code of service {other}."
                yield self._foreign(home.service, (other,), place, name, what)
            if others := sorted(indirect.keys() - direct.keys()):
                target, *modules = indirect[others[0]]
                by = " and ".join(name for name in modules if name != target)
                through = f" through {by}" if by else ""
                what = (
                    f"{where} imports {target}, which imports code of {_listed(others)}{through}."
                )
                yield self._foreign(home.service, tuple(others), place, target, what)

    def _owner(self, module: str) -> str | None:
        """The service that the module belongs to, whether it exists or not."""
        while module:
            if module in self._owners:
                return self._owners[module]
            module = _parent(module)
        return None

    def _reached(self, target: str, home: Home) -> list[tuple[str, tuple[str, ...]]]:
        """The other services whose code this import reaches, each with the modules between."""
        harmless = self._harmless[home.service]  # modules known to reach no other service
        seen: set[_Run] = set()
        found = []
        pending: deque[tuple[str, tuple[str, ...]]] = deque([(target, ())])
        while pending:
            name, way = pending.popleft()
            other = self._owner(name)
            if other is not None:
                found += [(other, way)] if other != home.service else []
                continue
            for run in self._runs(name, home):
                if run in seen or run in harmless:
                    continue
                seen.add(run)
                package = run.module if run.file.name == "__init__.py" else _parent(run.module)
                pending += (
                    (further, (*way, run.module))
                    for each in self._sources.read(run.file).imports
                    if run.wanted is None or each.gives(run.wanted)
                    for further in each.targets(package)
                )
        if not found:
            harmless |= seen
        return found

    def _runs(self, name: str, home: Home) -> Iterator[_Run]:
        """The modules outside all services that run when this name is imported."""
        parts = name.split(".")
        for count in range(1, len(parts) + 1):
            module = ".".join(parts[:count])
            if module not in self._located:
                places = (_at(base, module) for base in self._bases)
                self._located[module] = next(filter(None, places), None)
            located = self._located[module]
            if located is None:
                return
            file = located / "__init__.py" if located.is_dir() else located
            if not file.is_file():
                continue  # a namespace package
            if not home.module.startswith(f"{module}."):
                yield _Run(module, file)
            elif count < len(parts):
                yield _Run(module, file, parts[count])

    def _linked(self, file: Path, home: Home) -> str | None:
        """The other service to whose file this one is a symbolic link, directly or by a folder."""
        real, own = file.resolve(), self._real[home.service]
        holders = [each for each, path in self._real.items() if real.is_relative_to(path)]
        owner = max(holders, key=lambda each: len(self._real[each].parts), default=home.service)
        return None if self._real[owner] == own else owner

    def _foreign(
        self, service: str, others: tuple[str, ...], place: Place, name: str, summary: str
    ) -> Problem:
        return Problem(
            RULE,
            "error",
            f"service {service}",
            summary,
            f"Declare a model of its own in {service}, with the name and version of the message "
            f"and the fields that {service} uses. Move other shared code to a package of neither.",
            parties=(service, *others),
            place=place,
            marks=(place.file, name),
        )

    def _unread(self, file: Path, service: str, why: str) -> Problem:
        place = self._sources.place(file)
        return Problem(
            RULE,
            "error",
            f"service {service}",
            f"The imports of {place.file} could not be read: {why}.",
            "Fix the file, or move it out of the package of the service.",
            parties=(service,),
            place=place,
            marks=(place.file, "unread"),
        )


def place_of_service(service: str, home: Home | None, sources: Sources) -> Place | None:
    """The place of `Service("…")` with this name, or else the first file of the service."""
    if home is None:
        return None
    files = list(python_files(home.path, [])) if home.path.is_dir() else [home.path]
    for file in files:
        line = sources.read(file).services.get(service)
        if line is not None:
            return sources.place(file, line)
    return sources.place(files[0]) if files else None


def _outermost_link(file: Path, home: Home) -> Path:
    """The outermost symbolic link between the service's folder and the file."""
    way = [path for path in (file, *file.parents) if path.is_relative_to(home.path)]
    return next((path for path in reversed(way) if path.is_symlink()), file)


def _locate(module: str, root: Path) -> tuple[Path, Path] | None:
    """The file or folder of the module, and the folder from which it is imported."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    depth = module.count(".") + 1
    bases = [root, root / "src"]
    if loaded is not None:
        file = Path(loaded)
        parents = (file.parent if file.name == "__init__.py" else file).parents
        bases += parents[depth - 1 : depth]
    bases += [Path(entry or ".").resolve() for entry in sys.path]
    for base in bases:
        if (at := _at(base, module)) is not None:
            return at, base
    return None


def _listed(services: list[str]) -> str:
    return f"service{'s' if len(services) > 1 else ''} {', '.join(services)}"


def _parent(module: str) -> str:
    return module.rpartition(".")[0]


def _at(base: Path, module: str) -> Path | None:
    path = base.joinpath(*module.split("."))
    if path.is_dir():
        return path
    file = path.with_name(f"{path.name}.py")
    return file if file.is_file() else None


def module_at(file: Path, base: Path) -> str:
    """The name under which this file is imported from the folder `base`."""
    parts = file.relative_to(base).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
