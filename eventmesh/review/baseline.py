"""Comparing the lock files with those of a git revision (`schema check --against main`).

A lock file says what was published. Whoever deletes one and freezes again, or edits one and its
hash, hides a breaking change from the check of the working tree; the revision still has the
original. Its lock files are read by `git ls-tree` and `git cat-file`: nothing is checked out, and
the repository is not changed.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from eventmesh.contracts.locks.lock_folder import Locks, locks_from
from eventmesh.contracts.problem import Place, Problem
from eventmesh.errors import UsageError
from eventmesh.review.json_files import parse_document, read_document

LOST = "EM034"
_GIT_TIMEOUT_SECONDS = 60
_LOCK = re.compile(r"[^/]+/(?:[^/]+/)+v[1-9]\d*(?:\.[1-9]\d*)?\.json")


@dataclass(frozen=True, slots=True)
class Baseline:
    """The lock files of a git revision, by path relative to the folder of frozen schemas."""

    revision: str
    files: Mapping[str, bytes]


def read_baseline(root: Path, revision: str) -> Baseline:
    """Read the lock files of a revision.

    UsageError when git, the repository or the revision does not exist, or the folder is not in it.
    """
    folder = _nearest_folder(root.absolute())
    top = Path(os.fsdecode(_git(folder, "rev-parse", "--show-toplevel").rstrip(b"\n")))
    if not top.is_absolute():
        raise UsageError(f"{folder} is in a git repository without a working tree.")
    commit = _commit(folder, revision)
    inside = root.resolve()
    if not inside.is_relative_to(top.resolve()):
        raise UsageError(
            f"The frozen schemas are in {inside}, which is outside the git repository {top}."
        )
    path = PurePosixPath(inside.relative_to(top.resolve()).as_posix())
    return Baseline(revision, dict(_contents(folder, list(_blobs(folder, commit, path)))))


def find_lost_locks(baseline: Baseline, root: Path) -> list[Problem]:
    """EM034 for each lock file of the revision that was deleted or replaced since.

    Only its status and its sunset may differ, and the file of a retired version may be deleted.
    """
    found = []
    for name, data in sorted(baseline.files.items()):
        path, then = root / name, _parse_lock(data, f"{name} at {baseline.revision}")
        if then is None:
            continue
        if not path.exists():
            if then["status"] == "retired":
                continue
            change = "was deleted"
        else:
            try:
                if _sealed(read_document(path)) == _sealed(then):
                    continue
                change = "was replaced"
            except UsageError as error:
                change = f"was damaged ({str(error).rstrip('.')})"
        # The lock file of a saga has its name and version inside the shape.
        shape = then.get("shape")
        named = shape if isinstance(shape, dict) else then
        at_risk = (
            "sagas of this shape may still be running"
            if named is shape
            else "messages as it describes them may still be in queues, streams and dead letters"
        )
        next_step = (
            "To change the saga, raise its version."
            if named is shape
            else "Then run `eventmesh schema freeze`: a compatible change of the message becomes "
            "the next revision, and any other change needs a new version."
        )
        found.append(
            Problem(
                LOST,
                "error",
                f"{named.get('name', name)} v{named.get('version', '?')}",
                f"The lock file {path} {change} since {baseline.revision}: {at_risk}.",
                f"Restore it: run the check with --against {baseline.revision} --fix, or `git "
                f"checkout {baseline.revision} -- {path}`. {next_step}",
                place=Place(str(path)),
                marks=(name,),
            )
        )
    return found


def locks_at(baseline: Baseline, root: Path) -> Locks:
    """The locks of the revision, to compare the current models with: deleting a lock file and
    freezing again does not hide a change."""
    return locks_from(root, baseline.files)


def restore(baseline: Baseline, name: str, root: Path) -> Path:
    """Write the lock file as it was at the revision, and return its path."""
    path = root / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(baseline.files[name])
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None
    return path


def _parse_lock(data: bytes, where: str) -> dict[str, Any] | None:
    """The lock file as it was; None if it was not a valid one then either."""
    try:
        content = parse_document(data, where)
    except UsageError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("hash"), str):
        return None
    return {"status": "active", **content}


def _sealed(content: Any) -> Any:
    """What may never change, as text: in Python 1, 1.0 and True are equal."""
    if isinstance(content, dict):
        content = {key: content[key] for key in content if key not in ("status", "sunset")}
    return json.dumps(content, sort_keys=True)


def path_in_repository(folder: Path) -> str:
    """The folder relative to the root of its git repository, such as `services/`.

    Empty for the root itself, and outside a repository.
    """
    try:
        return os.fsdecode(_git(folder, "rev-parse", "--show-prefix").rstrip(b"\n"))
    except UsageError:
        return ""


def _nearest_folder(path: Path) -> Path:
    """The folder, or its nearest parent that exists."""
    while not path.is_dir():
        path = path.parent
    return path


def _commit(folder: Path, revision: str) -> str:
    asked = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    try:
        commit = _git(folder, *asked).decode().strip()
        if not commit.startswith("^"):  # `^main` means everything that is not in main
            return commit
    except UsageError:
        pass
    except ValueError:  # for example a NUL, which cannot be passed to a process
        raise UsageError(f"{revision!r} is not a git revision.") from None
    shallow = _git(folder, "rev-parse", "--is-shallow-repository").strip() == b"true"
    advice = (
        "This clone is shallow. Fetch its history by `git fetch --unshallow`, or set `fetch-depth: "
        "0` in GitHub's checkout action."
        if shallow
        else "Name a branch, tag or commit that exists in this clone, such as origin/main. You may "
        "have to fetch it first."
    )
    raise UsageError(
        f"There is no revision {revision!r} in the git repository at {folder}. {advice}"
    )


def _blobs(folder: Path, commit: str, path: PurePosixPath) -> Iterator[tuple[str, str]]:
    """The lock files below the path: their names, and the ids of their contents."""
    within = [] if path == PurePosixPath(".") else ["--", f"{path}/"]
    listed = _git(folder, "ls-tree", "-r", "-z", "--full-tree", commit, *within)
    for entry in listed.split(b"\0"):
        about, _, name = entry.partition(b"\t")
        if not entry or not about.startswith(b"100"):  # a symbolic link or a submodule
            continue
        inner = PurePosixPath(os.fsdecode(name)).relative_to(path).as_posix()
        if _LOCK.fullmatch(inner):
            yield inner, about.split()[2].decode()


def _contents(folder: Path, blobs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
    """Each name with its content, read by one git process."""
    asked = "".join(f"{blob}\n" for _, blob in blobs).encode()
    answer = _git(folder, "cat-file", "--batch", given=asked) if blobs else b""
    at = 0
    for name, blob in blobs:
        end = answer.index(b"\n", at)
        head = answer[at:end].split()
        if len(head) != 3:
            raise UsageError(
                f"The git repository at {folder} lacks the content of {name} (object {blob}). "
                f"Fetch it first."
            )
        size = int(head[2])
        yield name, answer[end + 1 : end + 1 + size]
        at = end + 1 + size + 1


def _git(folder: Path, *arguments: str, given: bytes = b"") -> bytes:
    """The output of a git command; UsageError with git's message if it fails."""
    program = shutil.which("git")
    if program is None:
        raise UsageError(
            "Git was not found, and --against needs it to read the lock files of a revision. "
            "Install git."
        )
    try:
        done = subprocess.run(  # noqa: S603  # no shell, and user input follows --
            [program, "--no-replace-objects", "-C", str(folder), *arguments],
            input=given,
            capture_output=True,
            check=False,
            timeout=_GIT_TIMEOUT_SECONDS,
            env=_environment(),
        )
    except subprocess.TimeoutExpired:
        raise UsageError(
            f"Git did not answer within {_GIT_TIMEOUT_SECONDS} s in {folder}."
        ) from None
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").split()) or "no reason given"
        raise UsageError(f"git failed in {folder}: {said.rstrip('.')}.")
    return done.stdout


def _environment() -> dict[str, str]:
    """The environment without the variables that git sets for hooks, which would select another
    repository than the folder's, and with prompts for passwords disabled."""
    set_for_hooks = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}
    kept = {name: value for name, value in os.environ.items() if name not in set_for_hooks}
    return kept | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
