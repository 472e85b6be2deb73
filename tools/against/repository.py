"""The git repository of a folder: the revision asked for, what the working tree has changed, a worktree for a while.

Git itself is asked, by its documented commands; nothing of the repository is changed but git's own list of worktrees.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from bench.errors import UserError
from bench.keys import DISTRIBUTION
from bench.printable import show_text
from bench.units import plural

WORKTREE_PREFIX = "metagrad-bench-against-"  # then the process's id: what a killed process left behind is found by it
WORKTREE_NAME = "revision"
_GIT_TIMEOUT_S = 300
# A hook runs with these set, and they would name another repository than the folder's.
_REPOSITORY_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_COMMON_DIR", "GIT_PREFIX")


class RepositoryError(UserError):
    """A repository or revision that cannot be measured."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repository:
    """A checkout that holds the package."""

    root: Path  # of the working tree
    package: Path  # folder of the package's pyproject.toml, relative to the root


@dataclass(frozen=True, slots=True, kw_only=True)
class Revision:
    """One commit."""

    name: str  # as the user wrote it
    commit: str  # 40 hex digits
    title: str  # first line of its message

    @property
    def short(self) -> str:
        """The commit in ten digits."""
        return self.commit[:10]


def open_repository(folder: Path) -> Repository:
    """Find the repository around a folder, and the package in it.

    Raises:
        RepositoryError: there is no repository, git refuses it, or it does not hold metagrad-bench.
    """
    done = _git(folder, "rev-parse", "--show-toplevel")
    if done.returncode != 0:
        if "dubious ownership" in done.stderr:
            raise RepositoryError(
                f"git refuses {folder} because another user owns it: run "
                f"`git config --global --add safe.directory {folder}`."
            )
        raise RepositoryError(
            f"{show_text(str(folder))} is in no git checkout: change into the one whose revisions are to be compared."
        )
    root = Path(done.stdout.rstrip("\n"))
    inside = folder.resolve()
    while True:
        project = inside / "pyproject.toml"
        if project.is_file() and _is_package(project.read_text(encoding="utf-8", errors="replace")):
            return Repository(root=root, package=inside.relative_to(root.resolve()))
        if inside == root.resolve() or inside == inside.parent:
            raise RepositoryError(
                f"The repository {show_text(str(root))} does not hold {DISTRIBUTION} (a pyproject.toml of that name): "
                "change into a checkout of it."
            )
        inside = inside.parent


def find_revision(repository: Repository, name: str) -> Revision:
    """Resolve a branch, tag or commit.

    Raises:
        RepositoryError: git does not know it, or the package was not in it yet.
    """
    root = repository.root
    done = _git(root, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}")
    if done.returncode != 0 or not name:
        shallow = _git(root, "rev-parse", "--is-shallow-repository").stdout.strip() == "true"
        hint = (
            "this clone is shallow: fetch it first (`git fetch --unshallow`, in CI a fetch depth of 0)."
            if shallow
            else "give a branch, tag or commit that `git log` shows, such as origin/main or HEAD~1."
        )
        raise RepositoryError(f"There is no revision {name!a} in {show_text(str(root))}: {hint}")
    commit = done.stdout.strip()
    project = (repository.package / "pyproject.toml").as_posix()
    content = _git(root, "show", f"{commit}:{project}")
    command_line = _git(root, "cat-file", "-e", f"{commit}:{(repository.package / 'tools' / 'cli.py').as_posix()}")
    if content.returncode != 0 or not _is_package(content.stdout) or command_line.returncode != 0:
        raise RepositoryError(
            f"Revision {name!a} ({commit[:10]}) does not hold {DISTRIBUTION}: give one in which {project} and "
            "tools/cli.py exist."
        )
    title = _git(root, "log", "-1", "--format=%s", commit).stdout.strip()
    return Revision(name=name, commit=commit, title=title)


def describe_working_tree(repository: Repository) -> str:
    """What is measured as the candidate: ``working tree of 0123456789``, and how many files differ from that commit."""
    head = _git(repository.root, "rev-parse", "--verify", "--quiet", "HEAD").stdout.strip()[:10] or "no commit"
    lines = _git(repository.root, "status", "--porcelain", "--untracked-files=no").stdout.splitlines()
    if not lines:
        return f"working tree at {head}"
    files = [line[3:] for line in lines]
    listed = ", ".join(show_text(name) for name in files[:3]) + (", ..." if len(files) > 3 else "")
    return f"working tree at {head} with {plural(len(files), 'uncommitted change')} ({listed})"


@contextmanager
def checked_out(repository: Repository, revision: Revision, folder: Path) -> Iterator[Path]:
    """A detached worktree of a revision in `folder`, taken away at the end; answers the package's folder in it.

    Args:
        repository: whose.
        revision: which.
        folder: empty, named by ``WORKTREE_PREFIX`` and this process's id.

    Raises:
        RepositoryError: git cannot check it out.
    """
    place = folder / WORKTREE_NAME
    # No hook of the repository may run: a post-checkout hook would install or build things.
    done = _git(
        repository.root, "-c", "core.hooksPath=/dev/null", "worktree", "add", "--detach", "--force", str(place),
        revision.commit,
    )  # fmt: skip
    try:
        if done.returncode != 0:
            raise RepositoryError(
                f"git cannot check out {revision.short} ({_last_line(done.stderr)}): free space, or set TMPDIR."
            )
        yield place / repository.package
    finally:
        _remove_worktree(repository.root, place)


def remove_abandoned(repository: Repository) -> list[Path]:
    """Take away the worktrees of earlier calls that were killed before they could do it themselves."""
    listed = _git(repository.root, "worktree", "list", "--porcelain").stdout
    removed = []
    for line in listed.splitlines():
        path = Path(line.removeprefix("worktree "))
        owner = re.fullmatch(re.escape(WORKTREE_PREFIX) + r"(\d+)-\w+", path.parent.name)
        if line.startswith("worktree ") and path.name == WORKTREE_NAME and owner:
            if psutil.pid_exists(int(owner[1])):
                continue
            _remove_worktree(repository.root, path)
            shutil.rmtree(path.parent, ignore_errors=True)
            removed.append(path)
    return removed


def _remove_worktree(root: Path, place: Path) -> None:
    _git(root, "worktree", "remove", "--force", "--force", str(place))
    shutil.rmtree(place, ignore_errors=True)  # where git no longer knew it
    if f"worktree {place}\n" in _git(root, "worktree", "list", "--porcelain").stdout:
        _git(root, "worktree", "prune", "--expire=now")


def _is_package(project: str) -> bool:
    try:
        return bool(tomllib.loads(project).get("project", {}).get("name") == DISTRIBUTION)
    except tomllib.TOMLDecodeError:
        return False


def _git(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key not in _REPOSITORY_VARIABLES}
    environment["LC_ALL"] = "C"
    try:
        return subprocess.run(
            ["git", "-C", str(folder), *arguments],
            capture_output=True, encoding="utf-8", errors="surrogateescape", timeout=_GIT_TIMEOUT_S, check=False,
            env=environment, start_new_session=True,  # Ctrl-C is ours: git must not die half-way through a worktree
        )  # fmt: skip
    except FileNotFoundError as error:
        raise RepositoryError("git is not installed: `gate --against` needs it to take the other revision.") from error
    except subprocess.TimeoutExpired as error:
        raise RepositoryError(f"git took longer than {_GIT_TIMEOUT_S} s (git {arguments[0]}): try again.") from error


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return show_text(lines[-1]) if lines else "no reason given"
