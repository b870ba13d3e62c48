from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from eventmesh import Event
from eventmesh.contracts.locks.drift import check
from eventmesh.contracts.locks.freezing import freeze
from eventmesh.contracts.locks.lock_folder import read_locks
from eventmesh.errors import UsageError
from eventmesh.review.baseline import (
    find_lost_locks,
    locks_at,
    path_in_repository,
    read_baseline,
    restore,
)

Git = Callable[..., str]


class Sold(Event, name="shop.sold", version=1, key="id"):
    id: str
    cents: int


FILE = "shop/sold/v1.json"


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """Git in an empty repository, deaf to the settings of whoever runs the tests."""
    for name in list(os.environ):
        if name.startswith("GIT_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", os.devnull)
    for who in ("AUTHOR", "COMMITTER"):
        monkeypatch.setenv(f"GIT_{who}_NAME", "test")
        monkeypatch.setenv(f"GIT_{who}_EMAIL", "test@example.org")

    def run(*arguments: str, folder: Path = tmp_path) -> str:
        done = subprocess.run(  # noqa: S603
            ["git", *arguments],  # noqa: S607
            cwd=folder, capture_output=True, text=True, check=True, timeout=30,
        )  # fmt: skip
        return done.stdout.strip()

    run("init", "-q", "-b", "main")
    return run


@pytest.fixture
def root(tmp_path: Path, git: Git) -> Path:
    """The folder of frozen schemas, with one message, committed."""
    root = tmp_path / "some project" / "schémas"
    freeze([Sold], root)
    (root / "shop" / "README.md").write_text("no lock file")
    commit(git)
    return root


def commit(git: Git) -> None:
    git("add", "-A")
    git("commit", "-q", "-m", "x")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rules(root: Path, revision: str = "HEAD") -> list[str]:
    return [problem.rule for problem in find_lost_locks(read_baseline(root, revision), root)]


def test_nothing_is_lost_where_nothing_changed(root: Path) -> None:
    baseline = read_baseline(root, "HEAD")
    assert baseline.files == {FILE: (root / FILE).read_bytes()}
    assert find_lost_locks(baseline, root) == []


def test_a_lock_file_that_is_gone_is_found_and_can_be_restored(root: Path) -> None:
    baseline, then = read_baseline(root, "HEAD"), (root / FILE).read_bytes()
    (root / FILE).unlink()
    [problem] = find_lost_locks(baseline, root)
    assert (problem.rule, problem.subject) == ("EM034", "shop.sold v1")
    assert restore(baseline, FILE, root).read_bytes() == then
    assert find_lost_locks(baseline, root) == []


def test_a_folder_that_is_gone_as_a_whole_is_found(root: Path) -> None:
    (root / FILE).unlink()
    (root / "shop/README.md").unlink()
    for folder in (root / "shop/sold", root / "shop", root):
        folder.rmdir()
    assert rules(root) == ["EM034"]


def test_a_lock_file_that_is_another_one_is_found(root: Path) -> None:
    edit(root / FILE, hash="sha256:00")
    assert rules(root) == ["EM034"]
    (root / FILE).write_text("{")
    assert rules(root) == ["EM034"]


def test_status_and_sunset_may_differ(root: Path) -> None:
    edit(root / FILE, status="deprecated", sunset="2026-12-31")
    assert rules(root) == []


def test_one_is_not_true(root: Path) -> None:
    edit(root / FILE, version=True)
    assert rules(root) == ["EM034"]


@pytest.mark.parametrize(("status", "found"), [("retired", []), ("deprecated", ["EM034"])])
def test_only_what_was_retired_then_may_go(
    root: Path, git: Git, status: str, found: list[str]
) -> None:
    edit(root / FILE, status=status)
    commit(git)
    (root / FILE).unlink()
    assert rules(root) == found


def test_what_is_retired_only_now_may_not_be_gone_since_then(root: Path, git: Git) -> None:
    edit(root / FILE, status="retired")
    commit(git)
    (root / FILE).unlink()
    assert rules(root, "HEAD~1") == ["EM034"]


def test_to_delete_the_lock_and_to_freeze_anew_does_no_good(root: Path) -> None:
    class Sold(Event, name="shop.sold", version=1, key="id"):
        id: str
        cents: int
        currency: str

    (root / FILE).unlink()
    freeze([Sold], root)
    [problem] = check([Sold], locks_at(read_baseline(root, "HEAD"), root))
    assert problem.rule == "EM031"
    assert check([Sold], read_locks(root)) == []


def test_a_branch_a_tag_and_a_commit_are_revisions(root: Path, git: Git) -> None:
    git("tag", "v1")
    for revision in ("main", "v1", git("rev-parse", "HEAD"), "HEAD^0", "main@{0}"):
        assert list(read_baseline(root, revision).files) == [FILE]


@pytest.mark.parametrize(
    "revision",
    ["nonsense", "--all", "-n", "", "HEAD~9", "a b", "HEAD:schemas", "x\0y", "ü", "^HEAD"],
)
def test_a_revision_that_is_none_is_told(root: Path, revision: str) -> None:
    with pytest.raises(UsageError, match=r"no revision|not a git revision"):
        read_baseline(root, revision)


def test_in_a_shallow_clone_the_way_to_fetch_more_is_told(
    root: Path, git: Git, tmp_path: Path
) -> None:
    commit_again = root / "shop" / "more.md"
    commit_again.write_text("more")
    commit(git)
    clone = tmp_path / "clone"
    git("clone", "-q", "--depth", "1", f"file://{tmp_path}", str(clone))
    with pytest.raises(UsageError, match="fetch-depth: 0"):
        read_baseline(clone / "some project" / "schémas", "HEAD~1")


def test_without_a_repository_that_is_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a git repository"):
        read_baseline(tmp_path / "schemas", "HEAD")
    assert path_in_repository(tmp_path) == ""


def test_without_git_that_is_told(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="Git was not found"):
        read_baseline(root, "HEAD")
    assert path_in_repository(root) == ""


def test_a_repository_without_a_commit_has_no_revision(tmp_path: Path, git: Git) -> None:
    with pytest.raises(UsageError, match="no revision"):
        read_baseline(tmp_path / "schemas", "HEAD")


def test_a_folder_that_the_revision_does_not_have_holds_nothing(tmp_path: Path, root: Path) -> None:
    assert read_baseline(tmp_path / "other", "HEAD").files == {}


def test_links_and_files_of_other_names_are_no_lock_files(root: Path, git: Git) -> None:
    (root / "shop/sold/v2.json").symlink_to("v1.json")
    (root / "shop/sold/notes.json").write_text("{}")
    (root / "shop/sold/v1.2.json").write_text("{}")
    (root / "shop/sold/new\nline").mkdir()
    (root / "shop/sold/new\nline/v1.json").write_text("{}")
    commit(git)
    assert set(read_baseline(root, "HEAD").files) == {
        FILE,
        "shop/sold/v1.2.json",
        "shop/sold/new\nline/v1.json",
    }


def test_what_was_no_lock_file_then_promises_nothing(root: Path, git: Git) -> None:
    (root / FILE).write_text("{")
    commit(git)
    (root / FILE).unlink()
    assert rules(root) == []


def test_a_hook_s_environment_does_not_mislead(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_WORK_TREE", "/nowhere")
    assert list(read_baseline(root, "HEAD").files) == [FILE]


def test_a_project_below_the_repository_knows_where_it_is(root: Path) -> None:
    assert path_in_repository(root.parent) == "some project/"
