"""What the launchers share: where their jobs' results go, the lines about them, and how a job that failed is told."""

from __future__ import annotations

import contextlib
import secrets
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.errors import UserError, WorkerError, system_reason

_measured: frozenset[tuple[str, ...]] = frozenset()
_SHARED_WAIT_S = 15.0  # a shared folder may show a new file to other machines only after some seconds


@dataclass(slots=True)
class JobLog:
    """Jobs of one launch as they end: a line for each, and the first failure."""

    total: int
    show: bool
    ended: int = 0
    failures: list[BaseException] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A line for the user, unless progress=false."""
        if self.show:
            print(text, file=sys.stderr, flush=True)  # noqa: T201

    def finish(self, name: str, *, answer: Any = None, error: BaseException | None = None, place: str = "") -> None:
        """One job has ended: `answer` is its status, or `error` what it raised; `place` says where it ran."""
        self.ended += 1
        where = f" ({place})" if place else ""
        self.say(f"[{self.ended}/{self.total}] {name}: {answer if error is None else f'failed: {error}'}{where}")
        if error is not None:
            self.failures.append(error)

    def check(self) -> None:
        """Raise what went wrong, once all jobs have ended.

        Raises:
            WorkerError: jobs ended without a record; the sentence counts them and gives the first reason.
            BaseException: a job's own, where it is a programming error.
        """
        for failure in self.failures:
            if not isinstance(failure, UserError):
                raise failure
        if self.failures:
            raise WorkerError(
                f"{len(self.failures)} of {self.total} jobs left no record, the first one: {self.failures[0]}"
            )


@contextlib.contextmanager
def leaving_out(jobs: Iterable[Sequence[str]]) -> Iterator[None]:
    """Inside the block a sweep leaves these jobs out: their records are there, and to start one takes 0.1 s."""
    global _measured
    before, _measured = _measured, frozenset(map(tuple, jobs))
    try:
        yield
    finally:
        _measured = before


def still_to_run(jobs: Iterable[Sequence[str]]) -> list[list[str]]:
    """Jobs of a sweep without those that are left out."""
    return [list(job) for job in jobs if tuple(job) not in _measured]


def name_job(overrides: Sequence[str]) -> str:
    """A job by the settings that make it: ``variant=fp32 seed=1``."""
    return " ".join(part for part in overrides if not part.startswith("hydra")) or "the cell"


@contextlib.contextmanager
def shared_mark(folder: Path) -> Iterator[Path]:
    """A hidden file in the folder of the results: a worker that sees it writes into the same store."""
    mark = folder / f".launch-{secrets.token_hex(6)}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        mark.touch()
    except OSError as error:
        raise WorkerError(f"{folder} cannot be written ({system_reason(error)}): choose another output_dir.") from error
    try:
        yield mark
    finally:
        with contextlib.suppress(OSError):
            mark.unlink()


def check_shared(mark: Path, *, wait_s: float = _SHARED_WAIT_S) -> None:
    """Refuse to measure where the result would be lost.

    Raises:
        WorkerError: this machine does not see the folder that the run was started with.
    """
    deadline = time.monotonic() + wait_s
    while not mark.exists():
        if time.monotonic() > deadline:
            raise WorkerError(
                f"{mark.parent} on this machine is not the folder of the machine that started the run: "
                "give an output_dir that all machines share."
            )
        time.sleep(0.5)


def with_trace(task: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """A job's function whose programming errors keep their traceback on the way home: pickling drops it, not notes."""

    def call(config: Any) -> Any:
        try:
            return task(config)
        except UserError:
            raise
        except Exception as error:  # whatever the task raised goes on, with its traceback
            error.add_note(f"In the worker:\n{traceback.format_exc()}")
            raise

    return call
