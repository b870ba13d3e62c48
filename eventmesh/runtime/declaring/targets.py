"""Where services are, by name, without importing them.

By convention a service is `services.<name>.service:service`; `[tool.eventmesh.services]` in
pyproject.toml names others, or names one elsewhere.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from eventmesh.errors import UsageError


def service_targets(root: Path) -> dict[str, str]:
    """Where each service is, as `module:attribute`, by its name."""
    found = {
        path.parent.name: f"services.{path.parent.name}.service:service"
        for path in sorted(root.glob("services/*/service.py"))
    }
    return found | _configured(root / "pyproject.toml")


def known_targets(names: Sequence[str], root: Path) -> dict[str, str]:
    """Where each service is; UsageError when there are none, or when one of `names` is unknown."""
    targets = service_targets(root)
    if not targets:
        if (project := _project_above(root)) is not None:
            raise UsageError(f"No service was found in {root}. Run the command in {project}.")
        raise UsageError(
            f"No service was found in {root}: put one into services/<name>/service.py as "
            f"`service`, or name it in pyproject.toml under [tool.eventmesh.services] as "
            f'<name> = "module:attribute".'
        )
    unknown = [name for name in names if name not in targets]
    if unknown:
        raise UsageError(
            f"There is no service {unknown[0]!r} in {root}. Known are: {', '.join(targets)}."
        )
    return targets


def _project_above(root: Path) -> Path | None:
    """The nearest folder above that has services."""
    for folder in root.parents:
        with suppress(UsageError, OSError):  # a folder above may belong to another project
            if service_targets(folder):
                return folder
    return None


def _configured(path: Path) -> dict[str, str]:
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read: {error}.") from None
    tools = content.get("tool", {})
    ours = tools.get("eventmesh", {}) if isinstance(tools, dict) else tools
    if isinstance(ours, dict) and (unknown := sorted(ours.keys() - {"services", "waivers"})):
        raise UsageError(
            f"{path}: tool.eventmesh.{unknown[0]} is not known. Write [tool.eventmesh.services] or "
            f"[[tool.eventmesh.waivers]]; all else is set by EVENTMESH_… variables."
        )
    services = ours.get("services", {}) if isinstance(ours, dict) else ours
    if not isinstance(services, dict) or not all(isinstance(v, str) for v in services.values()):
        raise UsageError(f'{path}: [tool.eventmesh.services] takes lines of name = "module:attr".')
    return dict(services)
