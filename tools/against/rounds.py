"""Runs of two sides in turn, A B B A A B B A: each a ``metagrad-bench run`` of its own, in the side's own environment.

What drifts over minutes (heat, other work on a shared runner) then meets both sides alike. Every run times one fresh
process per cell, so a repeat of one side has a neighbour of the other.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.errors import ConfigError, ExitCode, RecordError, system_reason
from bench.printable import show_text
from bench.records.write import RECORD_FILE
from bench.units import format_duration
from tools.against.environment import clean_variables
from tools.against.lifetime import ending_with_parent

SIDES = ("base", "head")
PASSES = "protocol.passes=[timing,memory]"
WEIGHTS = "pretrained"
_STOP_GRACE_S = 15.0  # for a run to end its children and leave what it has


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One of the two that take turns."""

    name: str  # base or head
    label: str  # for a reader: "main (0123456789)"
    python: Path
    folder: Path  # where it runs: relative paths of a command line and a user's own networks are looked for here


@dataclass(slots=True, kw_only=True)
class Rounds:
    """Runs sides in turn and keeps every run's records."""

    sides: tuple[Side, Side]
    records: Path  # <records>/<side>/run-<n>/<suite>/<cell>/record.json
    total: int  # runs that are planned, for the progress
    tell: Callable[[str], None]
    done: int = 0
    seconds: float = 0.0
    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(SIDES, 0))

    def run(self, rounds: int, commands: Sequence[Sequence[str]]) -> None:
        """Run both sides so many times each.

        Args:
            rounds: runs of each side.
            commands: the overrides of one ``metagrad-bench run`` each; together they are one run.

        Raises:
            ConfigError: a side refuses the command; the message says which side and why.
            RecordError: a side's records cannot be written.
        """
        for _ in range(rounds):
            # The side that was last goes first: A B B A leaves a steady drift no side to favour.
            first = sum(self.counts.values()) // 2 % 2
            for side in (self.sides[first], self.sides[1 - first]):
                self.counts[side.name] += 1
                for overrides in commands:
                    self._run_side(side, overrides)

    def _run_side(self, side: Side, overrides: Sequence[str]) -> None:
        number = self.counts[side.name]
        output = self.records / side.name / f"run-{number}"
        share_weights(self.records, output)
        self.done += 1
        self.total = max(self.total, self.done)
        left = self.seconds / (self.done - 1) * (self.total - self.done + 1) if self.done > 1 else None
        hint = f", about {format_duration(left)} left" if left is not None else ""
        self.tell(f"[{self.done}/{self.total}] {side.name} run {number}: {side.label}{hint}")
        started = time.monotonic()
        command = [str(side.python), "-P", "-m", "tools.cli", "run", *overrides, f"output_dir={quoted(str(output))}"]
        code, complaint = run_command(command, cwd=side.folder, log=output / "log.txt", show=self._show)
        self.seconds += time.monotonic() - started
        if code == ExitCode.INTERRUPTED:
            raise KeyboardInterrupt
        # A cell that failed has a record, which is compared; code that does not even start leaves none.
        if code not in (ExitCode.OK, ExitCode.FAILED) or not any(output.glob(f"*/*/{RECORD_FILE}")):
            raise ConfigError(f"{side.label} cannot run this: {complaint} (exit code {code}, {output / 'log.txt'})")

    def _show(self, line: str) -> None:
        """Hand on what a run says of its progress."""
        if "%" in line[:6]:
            self.tell(f"       {line}")


def run_overrides(overrides: Sequence[str], working_folder: Path) -> list[str]:
    """A user's overrides with what a run of the gate adds where they leave it open.

    One timing process a run; no accuracy, which takes a training and does not depend on the moment; absolute data
    folders, since the other side runs in a folder of its own.
    """
    ours = [_absolute(override, working_folder) for override in overrides]
    chosen = {override.lstrip("+").split("=", 1)[0] for override in ours}
    added = {"protocol.timing_processes": "protocol.timing_processes=1", "protocol.passes": PASSES}
    return [*ours, *(value for key, value in added.items() if key not in chosen)]


def share_weights(records: Path, output: Path) -> None:
    """Let every run find the FP32 weights that an earlier one trained; a file's name says of which code it is.

    Raises:
        RecordError: the folders cannot be made.
    """
    weights = records / WEIGHTS
    try:
        weights.mkdir(parents=True, exist_ok=True)
        output.mkdir(parents=True, exist_ok=True)
        if not (output / WEIGHTS).is_symlink():
            (output / WEIGHTS).symlink_to(os.path.relpath(weights, output), target_is_directory=True)
    except OSError as error:
        raise RecordError(f"{output} cannot be made ({system_reason(error)}): choose another --output.") from error


def run_command(command: Sequence[str], *, cwd: Path, log: Path, show: Callable[[str], None]) -> tuple[int, str]:
    """Run a command to its end, its output in a log; it never outlives this call.

    Args:
        command: program and arguments.
        cwd: where it runs.
        log: file that takes what it prints, appended.
        show: called with each line of its standard error.

    Returns:
        The exit code, and the last sentence with which ``metagrad-bench`` complained, or else its last line.
    """
    complaint, last_line = "", "it said nothing"
    with log.open("a", encoding="utf-8") as stream:
        child = subprocess.Popen(
            command, cwd=cwd, env=clean_variables(), stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.PIPE,
            encoding="utf-8", errors="replace", start_new_session=True, preexec_fn=ending_with_parent(),
        )  # fmt: skip
        try:
            assert child.stderr is not None, "its standard error is a pipe"
            for line in child.stderr:
                stream.write(line)
                stream.flush()
                show(line.rstrip())
                last_line = show_text(line.strip()) or last_line
                if line.startswith("metagrad-bench: "):
                    complaint = line.removeprefix("metagrad-bench: ").strip()
            return child.wait(), complaint or last_line
        finally:
            _stop(child)


def _stop(child: subprocess.Popen[str]) -> None:
    """End a command that still runs, and wait; SIGTERM is its Ctrl-C, and a second Ctrl-C of ours ends it at once."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(_STOP_GRACE_S)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if child.stderr is not None:
        child.stderr.close()


def tell_on_stderr(sentence: str) -> None:
    """Progress goes beside the result, never into it."""
    if sys.stderr is not None:
        print(sentence, file=sys.stderr, flush=True)


def quoted(value: str) -> str:
    """A value as Hydra's grammar takes it: in quotes where it holds more than plain letters (``job@2``, ``a, b``)."""
    if re.fullmatch(r"[A-Za-z0-9_./-]+", value):
        return value
    # A backslash means something before a quote only, and then it is doubled.
    escaped = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + found[2].replace("'", "\\'"), value)
    return f"'{escaped}'"


def _absolute(override: str, folder: Path) -> str:
    key, equals, value = override.partition("=")
    if len(value) > 1 and value[0] == value[-1] and value[0] in "'\"":
        value = value[1:-1]
    if key.lstrip("+") == "data.root" and equals and value and not value.startswith(("/", "~", "$", "null")):
        return f"{key}={quoted(str(folder / value))}"
    return override
