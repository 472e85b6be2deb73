from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tools.against.repository import (
    WORKTREE_NAME,
    WORKTREE_PREFIX,
    RepositoryError,
    checked_out,
    describe_working_tree,
    find_revision,
    open_repository,
    remove_abandoned,
)

from .conftest import StandIn


def test_a_folder_outside_any_checkout_is_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RepositoryError, match="is in no git checkout: change into the one"):
        open_repository(tmp_path)


def test_a_repository_of_something_else_is_refused(stand_in: StandIn) -> None:
    (stand_in.root / "pyproject.toml").write_text('[project]\nname = "other"\n')
    with pytest.raises(RepositoryError, match="does not hold metagrad-bench"):
        open_repository(stand_in.root)


def test_the_package_is_found_from_a_folder_inside_it_and_below_the_repositorys_root(stand_in: StandIn) -> None:
    inner = stand_in.root / "python" / "bench"
    inner.mkdir(parents=True)
    (stand_in.root / "pyproject.toml").rename(stand_in.root / "python" / "pyproject.toml")
    assert open_repository(inner).package == Path("python")


def test_an_unknown_revision_is_named_with_what_to_do(stand_in: StandIn) -> None:
    repository = open_repository(stand_in.root)
    for name in ("nowhere", "", "--all", "HEAD~99"):
        with pytest.raises(RepositoryError, match="There is no revision"):
            find_revision(repository, name)


def test_in_a_shallow_clone_an_unknown_revision_hints_at_its_depth(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.pace("new", 1.0)
    stand_in.commit("New")
    clone = tmp_path / "clone"
    stand_in.git("clone", "--quiet", "--depth=1", f"file://{stand_in.root}", str(clone))
    with pytest.raises(RepositoryError, match=r"shallow: fetch it first \(`git fetch --unshallow`"):
        find_revision(open_repository(clone), "HEAD~1")


def test_a_revision_before_the_package_came_is_refused(stand_in: StandIn) -> None:
    stand_in.git("checkout", "--quiet", "--orphan", "empty")
    stand_in.git("rm", "-r", "--quiet", "--force", ".")
    (stand_in.root / "readme").write_text("before")
    stand_in.commit("Before the package")
    stand_in.git("checkout", "--quiet", "main")
    with pytest.raises(RepositoryError, match=r"Revision 'empty' .* does not hold metagrad-bench"):
        find_revision(open_repository(stand_in.root), "empty")


def test_branches_tags_and_commits_resolve_to_one_commit(stand_in: StandIn) -> None:
    stand_in.git("tag", "v1")
    repository = open_repository(stand_in.root)
    commit = stand_in.git("rev-parse", "HEAD").strip()
    assert {find_revision(repository, name).commit for name in ("main", "v1", "HEAD", commit[:8])} == {commit}
    assert find_revision(repository, "v1").title == "Old pace"


def test_uncommitted_changes_are_named(stand_in: StandIn) -> None:
    repository = open_repository(stand_in.root)
    head = stand_in.git("rev-parse", "HEAD")[:10]
    assert describe_working_tree(repository) == f"working tree at {head}"
    stand_in.pace("dirty", 2.0)
    assert describe_working_tree(repository) == f"working tree at {head} with 1 uncommitted change (pace.json)"


def test_a_worktree_holds_the_revision_and_is_gone_afterwards(stand_in: StandIn, tmp_path: Path) -> None:
    stand_in.pace("new", 2.0)
    stand_in.commit("New pace")
    hook = stand_in.root / ".git" / "hooks" / "post-checkout"
    hook.write_text(f"#!/bin/sh\ntouch {tmp_path / 'hook-ran'}\n")
    hook.chmod(0o755)
    repository = open_repository(stand_in.root)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with checked_out(repository, find_revision(repository, "HEAD~1"), scratch) as source:
        assert '"old"' in (source / "pace.json").read_text()
        assert stand_in.worktrees() == 2
    assert stand_in.worktrees() == 1
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "hook-ran").exists()


def test_a_worktree_goes_also_when_what_ran_in_it_was_interrupted(stand_in: StandIn, tmp_path: Path) -> None:
    repository = open_repository(stand_in.root)
    revision = find_revision(repository, "HEAD")
    with pytest.raises(KeyboardInterrupt), checked_out(repository, revision, tmp_path):
        raise KeyboardInterrupt
    assert stand_in.worktrees() == 1


def test_what_a_killed_process_left_is_taken_away_by_the_next_and_a_living_ones_stays(
    stand_in: StandIn, tmp_path: Path
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    repository = open_repository(stand_in.root)
    abandoned = tmp_path / f"{WORKTREE_PREFIX}{ended.pid}-abc" / WORKTREE_NAME
    living = tmp_path / f"{WORKTREE_PREFIX}1-abc" / WORKTREE_NAME
    for place in (abandoned, living):
        place.parent.mkdir()
        stand_in.git("worktree", "add", "--quiet", "--detach", str(place))
    assert remove_abandoned(repository) == [abandoned]
    assert not abandoned.parent.exists()
    assert living.exists()
    assert stand_in.worktrees() == 2


def test_a_hooks_git_variables_do_not_name_another_repository(
    stand_in: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GIT_DIR", str(tmp_path / "elsewhere"))
    assert open_repository(stand_in.root).root == stand_in.root
