"""Imports services by name, from the folder that a command is run in.

An error of a user's module is reported with its place in the user's files and without our frames.
"""

from __future__ import annotations

import importlib
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path

from eventmesh.errors import EventMeshError, UsageError
from eventmesh.redact import redact_text
from eventmesh.runtime.declaring.service import DeclaredService as Service
from eventmesh.runtime.declaring.targets import known_targets
from eventmesh.runtime.declaring.targets import service_targets as service_targets


def load_services(names: Sequence[str], root: Path) -> list[Service]:
    """These services, or all when none is named; UsageError saying which one is wrong and why."""
    targets = known_targets(names, root)
    # Commands run in a project's folder, which is not otherwise on the path of an entry point.
    if str(root) not in sys.path:
        sys.path.insert(0, str(root))
    return [_load(name, targets[name], root) for name in dict.fromkeys(names or targets)]


def _place(error: BaseException, root: Path) -> str:
    """Where in the user's own files the import failed, if it got that far."""
    if isinstance(error, SyntaxError):
        return f" ({error.filename}, line {error.lineno})"
    frames = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if Path(frame.filename).is_relative_to(root) and "site-packages" not in frame.filename
    ]
    return f" ({frames[-1].filename}, line {frames[-1].lineno})" if frames else ""


def _load(name: str, target: str, root: Path) -> Service:
    module_name, _, attribute = target.partition(":")
    try:
        module = importlib.import_module(module_name)
    except UsageError as error:
        raise UsageError(f"{str(error).removesuffix('.')}{_place(error, root)}.") from error
    except EventMeshError:
        raise
    except (Exception, SystemExit) as error:
        # Any error of a user's module is the user's to see, with its place, and without our frames.
        said = redact_text("".join(traceback.format_exception_only(error)[-1]))
        text = " ".join(said.split())
        raise UsageError(
            f"Service {name!r} cannot be imported from {module_name}: {text}{_place(error, root)}."
        ) from error
    service = getattr(module, attribute or "service", None)
    if not isinstance(service, Service):
        raise UsageError(
            f"Service {name!r} should be {target}, but {module_name} has no Service of the name "
            f"{attribute or 'service'!r}."
        )
    if service.name != name:
        raise UsageError(f"{target} is named {service.name!r}, but was looked up as {name!r}.")
    return service
