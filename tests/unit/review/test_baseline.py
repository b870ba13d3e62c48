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
    """Runs git in an empty repository, without the settings of the user who runs the tests."""
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
            cwd=folder, capture_output=True, text=True, check=True, timeout=120,
        )  # fmt: skip
        return done.stdout.strip()

    run("init", "-q", "-b", "main")
    return run


@pytest.fixture
def root(tmp_path: Path, git: Git) -> Path:
    """The folder of frozen schemas, with one message, committed."""
    root = tmp_path / "some project" / "schémas"
    freeze([Sold], root)
    (root / "shop" / "README.md").write_text("not a lock file")
    commit(git)
    return root


def commit(git: Git) -> None:
    git("add", "-A")
    git("commit", "-q", "-m", "x")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def rules(root: Path, revision: str = "HEAD") -> list[str]:
    return [problem.rule for problem in find_lost_locks(read_baseline(root, revision), root)]


def test_an_unchanged_folder_has_lost_no_locks(root: Path) -> None:
    baseline = read_baseline(root, "HEAD")
    assert baseline.files == {FILE: (root / FILE).read_bytes()}
    assert find_lost_locks(baseline, root) == []


def test_a_deleted_lock_file_is_found_and_can_be_restored(root: Path) -> None:
    baseline, content = read_baseline(root, "HEAD"), (root / FILE).read_bytes()
    (root / FILE).unlink()
    [problem] = find_lost_locks(baseline, root)
    assert (problem.rule, problem.subject) == ("EM034", "shop.sold v1")
    assert restore(baseline, FILE, root).read_bytes() == content
    assert find_lost_locks(baseline, root) == []


def test_the_locks_of_a_deleted_folder_are_found(root: Path) -> None:
    (root / FILE).unlink()
    (root / "shop/README.md").unlink()
    for folder in (root / "shop/sold", root / "shop", root):
        folder.rmdir()
    assert rules(root) == ["EM034"]


def test_a_replaced_lock_file_is_found(root: Path) -> None:
    edit(root / FILE, hash="sha256:00")
    assert rules(root) == ["EM034"]
    (root / FILE).write_text("{")
    assert rules(root) == ["EM034"]


def test_two_branches_that_froze_the_same_revision_go_on_with_the_next_one(
    root: Path, git: Git
) -> None:
    class Noted(Event, name="shop.sold", version=1, key="id"):
        id: str
        cents: int
        note: str = ""

    class Both(Event, name="shop.sold", version=1, key="id"):
        id: str
        cents: int
        note: str = ""
        gift: bool = False

    [theirs] = freeze([Noted], root)
    commit(git)
    theirs.path.unlink()
    [ours] = freeze([Both], root)  # as it looks after the merge
    assert ours.path == theirs.path
    baseline = read_baseline(root, "HEAD")
    [problem] = find_lost_locks(baseline, root)
    assert "Then run `eventmesh schema freeze`" in problem.fix
    restore(baseline, "shop/sold/v1.2.json", root)
    assert [lock.path.name for lock in freeze([Both], root)] == ["v1.3.json"]
    assert rules(root) == []


def test_status_and_sunset_may_change(root: Path) -> None:
    edit(root / FILE, status="deprecated", sunset="2026-12-31")
    assert rules(root) == []


def test_a_version_of_true_is_not_version_1(root: Path) -> None:
    edit(root / FILE, version=True)
    assert rules(root) == ["EM034"]


@pytest.mark.parametrize(("status", "found"), [("retired", []), ("deprecated", ["EM034"])])
def test_only_a_lock_that_was_retired_in_the_baseline_may_be_deleted(
    root: Path, git: Git, status: str, found: list[str]
) -> None:
    edit(root / FILE, status=status)
    commit(git)
    (root / FILE).unlink()
    assert rules(root) == found


def test_a_lock_retired_after_the_baseline_may_not_be_deleted(root: Path, git: Git) -> None:
    edit(root / FILE, status="retired")
    commit(git)
    (root / FILE).unlink()
    assert rules(root, "HEAD~1") == ["EM034"]


def test_deleting_a_lock_and_freezing_again_does_not_hide_a_breaking_change(root: Path) -> None:
    class Sold(Event, name="shop.sold", version=1, key="id"):
        id: str
        cents: int
        currency: str

    (root / FILE).unlink()
    freeze([Sold], root)
    [problem] = check([Sold], locks_at(read_baseline(root, "HEAD"), root))
    assert problem.rule == "EM031"
    assert check([Sold], read_locks(root)) == []


def test_a_revision_may_be_a_branch_a_tag_or_a_commit(root: Path, git: Git) -> None:
    git("tag", "v1")
    for revision in ("main", "v1", git("rev-parse", "HEAD"), "HEAD^0", "main@{0}"):
        assert list(read_baseline(root, revision).files) == [FILE]


@pytest.mark.parametrize(
    "revision",
    ["nonsense", "--all", "-n", "", "HEAD~9", "a b", "HEAD:schemas", "x\0y", "ü", "^HEAD"],
)
def test_an_invalid_revision_is_rejected(root: Path, revision: str) -> None:
    with pytest.raises(UsageError, match=r"no revision|not a git revision"):
        read_baseline(root, revision)


def test_the_error_in_a_shallow_clone_says_how_to_fetch_more(
    root: Path, git: Git, tmp_path: Path
) -> None:
    another_file = root / "shop" / "more.md"
    another_file.write_text("more")
    commit(git)
    clone = tmp_path / "clone"
    git("clone", "-q", "--depth", "1", f"file://{tmp_path}", str(clone))
    with pytest.raises(UsageError, match="fetch-depth: 0"):
        read_baseline(clone / "some project" / "schémas", "HEAD~1")


def test_a_folder_outside_any_repository_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a git repository"):
        read_baseline(tmp_path / "schemas", "HEAD")
    assert path_in_repository(tmp_path) == ""


def test_a_missing_git_command_is_reported(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UsageError, match="Git was not found"):
        read_baseline(root, "HEAD")
    assert path_in_repository(root) == ""


def test_a_repository_without_a_commit_has_no_revision(tmp_path: Path, git: Git) -> None:
    with pytest.raises(UsageError, match="no revision"):
        read_baseline(tmp_path / "schemas", "HEAD")


def test_a_folder_that_is_not_in_the_revision_has_no_locks(tmp_path: Path, root: Path) -> None:
    assert read_baseline(tmp_path / "other", "HEAD").files == {}


def test_symbolic_links_and_other_file_names_are_ignored(root: Path, git: Git) -> None:
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


def test_a_file_that_was_invalid_in_the_baseline_may_be_deleted(root: Path, git: Git) -> None:
    (root / FILE).write_text("{")
    commit(git)
    (root / FILE).unlink()
    assert rules(root) == []


def test_git_variables_of_a_hook_are_ignored(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    monkeypatch.setenv("GIT_WORK_TREE", "/nowhere")
    assert list(read_baseline(root, "HEAD").files) == [FILE]


def test_a_project_in_a_subfolder_has_its_path_in_the_repository(root: Path) -> None:
    assert path_in_repository(root.parent) == "some project/"
