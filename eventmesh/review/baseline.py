"""Lock files as they were at a revision of git, to find that one was deleted, edited or made anew.

Git is asked for the names and the contents; nothing is checked out and nothing is written.
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
_PATIENCE = 60
_LOCK = re.compile(r"[^/]+/(?:[^/]+/)+v[1-9]\d*(?:\.[1-9]\d*)?\.json")


@dataclass(frozen=True, slots=True)
class Baseline:
    """What a revision holds below the folder of frozen schemas, by path relative to it."""

    revision: str
    files: Mapping[str, bytes]


def read_baseline(root: Path, revision: str) -> Baseline:
    """The lock files at the revision; UsageError when git, the repository, the revision or the
    folder in it is not there."""
    folder = _existing(root.absolute())
    top = Path(os.fsdecode(_git(folder, "rev-parse", "--show-toplevel").rstrip(b"\n")))
    if not top.is_absolute():
        raise UsageError(f"{folder} is in a git repository that has no files.")
    commit = _commit(folder, revision)
    inside = root.resolve()
    if not inside.is_relative_to(top.resolve()):
        raise UsageError(
            f"The frozen schemas are in {inside}, which is outside the git repository {top}."
        )
    path = PurePosixPath(inside.relative_to(top.resolve()).as_posix())
    return Baseline(revision, dict(_contents(folder, list(_blobs(folder, commit, path)))))


def lost(baseline: Baseline, root: Path) -> list[Problem]:
    """EM034 for each lock file of the revision that is gone, or is not the same any more.

    Only its status and its sunset may differ; the file of a version that was retired then may go.
    """
    found = []
    for name, data in sorted(baseline.files.items()):
        then = _frozen(data, f"{name} at {baseline.revision}")
        what = None if then is None else _difference(then, root / name)
        if what is not None and not (what == "is gone" and then and then["status"] == "retired"):
            found.append(_problem(baseline, root / name, name, then or {}, what))
    return found


def locks_then(baseline: Baseline, root: Path) -> Locks:
    """What the revision had frozen, so that the present models are compared with it: it does no
    good to delete a lock file and to freeze anew."""
    return locks_from(root, baseline.files)


def restore(baseline: Baseline, name: str, root: Path) -> Path:
    """Write the lock file as it was at the revision."""
    path = root / name
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(baseline.files[name])
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror}.") from None
    return path


def _frozen(data: bytes, where: str) -> dict[str, Any] | None:
    """The lock file as it was; None for what was none then either, which promised nothing."""
    try:
        content = parse_document(data, where)
    except UsageError:
        return None
    if not isinstance(content, dict) or not isinstance(content.get("hash"), str):
        return None
    return {"status": "active", **content}


def _difference(then: dict[str, Any], path: Path) -> str | None:
    if not path.exists():
        return "is gone"
    try:
        now = read_document(path)
    except UsageError as error:
        return f"cannot be read any more ({error})"
    return None if _sealed(now) == _sealed(then) else "is another one"


def _sealed(content: Any) -> Any:
    """What may never differ; as text, because to Python 1, 1.0 and true are equal."""
    if isinstance(content, dict):
        content = {key: content[key] for key in content if key not in ("status", "sunset")}
    return json.dumps(content, sort_keys=True)


def _problem(baseline: Baseline, path: Path, name: str, then: dict[str, Any], what: str) -> Problem:
    return Problem(
        LOST,
        "error",
        f"{then.get('name', name)} v{then.get('version', '?')}",
        f"The lock file {path} {what} since {baseline.revision}: what was promised with it may "
        f"still be in queues, streams and dead letters.",
        f"Restore it (check --against {baseline.revision} --fix does so, or git checkout "
        f"{baseline.revision} -- {path}); raise the version for what is to be different.",
        place=Place(str(path)),
        marks=(name,),
    )


def prefix(folder: Path) -> str:
    """Where the folder is in its repository, such as `services/`; empty when that is not known."""
    try:
        return os.fsdecode(_git(folder, "rev-parse", "--show-prefix").rstrip(b"\n"))
    except UsageError:
        return ""


def _existing(folder: Path) -> Path:
    """The folder, or the nearest one around it that is still there."""
    while not folder.is_dir():
        folder = folder.parent
    return folder


def _commit(folder: Path, revision: str) -> str:
    asked = ("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    try:
        commit = _git(folder, *asked).decode().strip()
        if not commit.startswith("^"):  # which would be all that it is not
            return commit
    except UsageError:
        pass
    except ValueError:  # such as a NUL in the name, which no process can be given
        raise UsageError(f"{revision!r} is no revision of git.") from None
    shallow = _git(folder, "rev-parse", "--is-shallow-repository").strip() == b"true"
    advice = (
        "This clone is shallow: fetch more of it, by `git fetch --unshallow`, or by `fetch-depth: "
        "0` in GitHub's checkout action."
        if shallow
        else "Name a branch, tag or commit that `git log` knows here, such as origin/main, and "
        "fetch it first."
    )
    raise UsageError(f"Git knows no revision {revision!r} in {folder}. {advice}")


def _blobs(folder: Path, commit: str, path: PurePosixPath) -> Iterator[tuple[str, str]]:
    """Names below the path and the ids of their contents, of what is a lock file."""
    within = [] if path == PurePosixPath(".") else ["--", f"{path}/"]
    listed = _git(folder, "ls-tree", "-r", "-z", "--full-tree", commit, *within)
    for entry in listed.split(b"\0"):
        about, _, name = entry.partition(b"\t")
        if not entry or not about.startswith(b"100"):  # a link or a submodule is no lock file
            continue
        inner = PurePosixPath(os.fsdecode(name)).relative_to(path).as_posix()
        if _LOCK.fullmatch(inner):
            yield inner, about.split()[2].decode()


def _contents(folder: Path, blobs: Sequence[tuple[str, str]]) -> Iterator[tuple[str, bytes]]:
    """Each name with its content, by one process for all."""
    asked = "".join(f"{blob}\n" for _, blob in blobs).encode()
    answer = _git(folder, "cat-file", "--batch", given=asked) if blobs else b""
    at = 0
    for name, blob in blobs:
        end = answer.index(b"\n", at)
        head = answer[at:end].split()
        if len(head) != 3:
            raise UsageError(
                f"Git has not the content of {name} (object {blob}) in {folder}: fetch it first."
            )
        size = int(head[2])
        yield name, answer[end + 1 : end + 1 + size]
        at = end + 1 + size + 1


def _git(folder: Path, *arguments: str, given: bytes = b"") -> bytes:
    """What git says; UsageError with its reason when it refuses."""
    program = shutil.which("git")
    if program is None:
        raise UsageError(
            "Git was not found, which --against asks for the lock files of a revision: install it."
        )
    try:
        done = subprocess.run(  # noqa: S603  # no shell, and what a user gave stands behind a --
            [program, "--no-replace-objects", "-C", str(folder), *arguments],
            input=given,
            capture_output=True,
            check=False,
            timeout=_PATIENCE,
            env=_environment(),
        )
    except subprocess.TimeoutExpired:
        raise UsageError(f"Git did not answer within {_PATIENCE} s in {folder}.") from None
    if done.returncode != 0:
        said = " ".join(done.stderr.decode(errors="replace").split()) or "it gave no reason"
        raise UsageError(f"Git cannot tell what was frozen, in {folder}: {said.rstrip('.')}.")
    return done.stdout


def _environment() -> dict[str, str]:
    """Git finds the repository by the folder, not by what a hook that runs this has been told; it
    asks nobody for a password."""
    told = {"GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX"}
    kept = {name: value for name, value in os.environ.items() if name not in told}
    return kept | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"}
