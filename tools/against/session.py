"""One comparison of the working tree with another revision: environments, runs in turn, the entries to compare.

The other revision lies in a git worktree in the temporary folder while the session lasts; both are gone afterwards,
also after Ctrl-C, SIGTERM or a closed terminal. What stays is the folder of records.
"""

from __future__ import annotations

import datetime as dt
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench.errors import ConfigError, RecordError, system_reason
from bench.printable import show_path
from bench.records.entry import Entry
from tools.against.environment import make_environment
from tools.against.lifetime import ended_by_signal
from tools.against.merge import align, merged_entries, read_runs
from tools.against.repository import (
    WORKTREE_PREFIX,
    Repository,
    Revision,
    checked_out,
    describe_working_tree,
    find_revision,
    open_repository,
    remove_abandoned,
)
from tools.against.rounds import Rounds, Side, run_overrides
from tools.output import say

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The overrides that make one cell, and what the gate's rows call that cell."""

    cell: str
    overrides: tuple[str, ...]


@dataclass(slots=True, kw_only=True)
class Session:
    """Measures both sides, again where asked, and answers what to compare."""

    rounds: Rounds
    jobs: tuple[Job, ...]
    overrides: tuple[str, ...]
    flags: tuple[str, ...]
    notes: tuple[str, ...]

    def measure(self, repeats: int) -> None:
        """Run all cells, so many times on each side.

        Raises:
            UserError: a side refuses the command line, or its records cannot be written.
        """
        self.rounds.run(repeats, [(*self.flags, *self.overrides)])

    def measure_again(self, cells: Iterable[str], repeats: int) -> None:
        """Run the cells of these names again on both sides.

        Raises:
            UserError: as ``measure``.
        """
        wanted = set(cells)
        commands = [(*self.flags, *job.overrides) for job in self.jobs if job.cell in wanted]
        assert commands, f"no cell of the plan is called {sorted(wanted)}"
        self.rounds.total = self.rounds.done + 2 * repeats * len(commands)
        self.rounds.run(repeats, commands)

    def entries(self) -> tuple[tuple[Entry, ...], tuple[Entry, ...], tuple[str, ...]]:
        """Entries of base and head, one per cell with all its repeats, and notes on them.

        Raises:
            RecordError: a record cannot be read.
        """
        records = self.rounds.records
        base, head, notes = align(*(read_runs(records / side.name) for side in self.rounds.sides))
        versions = {record.code_version for side in (base, head) for run in side for record in run}
        same = (f"Both sides run the same measured code ({versions.pop()}).",) if len(versions) == 1 else ()
        place = f"Records of both sides: {show_path(records)}."
        return merged_entries(base), merged_entries(head), (*self.notes, *notes, *same, place)


@contextmanager
def open_session(
    revision: str, overrides: Sequence[str], *, repeats: int, config_dir: Path | None, output: Path | None, tell: Tell
) -> Iterator[Session]:
    """Check everything that can be checked, then take the other revision into an environment of its own.

    Args:
        revision: branch, tag or commit of the repository around the current folder.
        overrides: as ``metagrad-bench run`` takes them.
        repeats: runs of each side that are planned, for the progress.
        config_dir: folder with suites and variants of the user's.
        output: folder for the records; none: a new one under ``out/against``.
        tell: takes progress, a sentence each.

    Raises:
        UserError: no repository, no such revision, an override that cannot be run, no environment; each in one
            sentence, before anything is measured.
    """
    here = Path.cwd()
    repository = open_repository(here)
    other = find_revision(repository, revision)
    ours = run_overrides(overrides, here)
    jobs = plan_jobs(ours, config_dir)
    records = make_records_folder(output, other)
    remove_abandoned(repository)
    head_name, base_name = describe_working_tree(repository), f"{revision} ({other.short})"
    tell(f"base is {base_name}: {other.title}" if other.title else f"base is {base_name}")
    tell(f"head is the {head_name}")
    try:
        with ended_by_signal(), _temporary_folder() as scratch, checked_out(repository, other, scratch) as source:
            base_folder = _same_place(here, repository, source)
            base = make_environment(scratch / "base", source, tell=lambda text: tell(f"base: {text}"))
            head = make_environment(
                scratch / "head", repository.root / repository.package, tell=lambda text: tell(f"head: {text}")
            )
            sides = (
                Side(name="base", label=base_name, python=base, folder=base_folder),
                Side(name="head", label=head_name, python=head, folder=here),
            )
            yield Session(
                rounds=Rounds(sides=sides, records=records, total=2 * repeats, tell=tell),
                jobs=jobs,
                overrides=tuple(ours),
                flags=_flags(config_dir, base_folder),
                notes=(f"base: {base_name}", f"head: {head_name}"),
            )
    finally:
        with_nothing = [records / "base", records / "head", records]
        for folder in with_nothing:
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()


def plan_jobs(overrides: Sequence[str], config_dir: Path | None) -> tuple[Job, ...]:
    """Compose every cell of a command line here, so that a mistake in it is found at once.

    Raises:
        ConfigError: a cell that cannot be run.
    """
    from bench.app import parse_arguments, plan_cells  # Hydra and torch, only where they are needed
    from bench.precheck import check_cells

    flags = [] if config_dir is None else ["--config-dir", str(config_dir)]
    plan = plan_cells(parse_arguments(["--multirun", *flags, *overrides]))
    for notice in plan.notices:
        say(notice)
    check_cells(plan.cells)
    if any(override.partition("=")[0].lstrip("+") in ("output_dir", "fresh") for override in overrides):
        raise ConfigError("output_dir= and fresh= are the gate's own with --against: use --output DIR.")
    names = [
        f"{cell.suite_name}/{cell.variant_name} {cell.model.name} {cell.data.name} seed {cell.seed}"
        for cell in plan.cells
    ]
    return tuple(Job(cell=name, overrides=job) for name, job in zip(names, plan.jobs, strict=True))


def make_records_folder(output: Path | None, revision: Revision) -> Path:
    """The folder for the records of both sides: a new or an empty one.

    Raises:
        RecordError: it holds something, or cannot be made.
    """
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S")
    folder = (output or Path("out", "against", f"{stamp}-{revision.short}")).absolute()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = any(folder.iterdir())
    except OSError as error:
        raise RecordError(
            f"{show_path(folder)} cannot be made ({system_reason(error)}): choose another --output."
        ) from error
    if taken:
        raise RecordError(f"{show_path(folder)} is not empty: give a new folder, so that no older run is compared.")
    return folder


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    try:
        folder = tempfile.TemporaryDirectory(prefix=f"{WORKTREE_PREFIX}{os.getpid()}-", ignore_cleanup_errors=True)
    except OSError as error:
        raise RecordError(
            f"No temporary folder can be made ({system_reason(error)}): free space, or set TMPDIR."
        ) from error
    with folder as path:
        yield Path(path).resolve()


def _same_place(here: Path, repository: Repository, source: Path) -> Path:
    """The folder in the worktree that corresponds to the current one; the package's, where it is not there."""
    root = source
    for _ in repository.package.parts:
        root = root.parent
    inside = here.resolve()
    top = repository.root.resolve()
    place = root / inside.relative_to(top) if inside.is_relative_to(top) else source
    return place if place.is_dir() else source


def _flags(config_dir: Path | None, base_folder: Path) -> tuple[str, ...]:
    """Hydra's flags for both sides: the other revision's own folder of suites where it has one."""
    if config_dir is None:
        return ("--multirun",)
    in_both = not config_dir.is_absolute() and (base_folder / config_dir).is_dir()
    return ("--multirun", "--config-dir", str(config_dir if in_both else config_dir.absolute()))
