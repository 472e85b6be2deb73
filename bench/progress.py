"""Progress of a suite: one bar with cell, phase, step time and remaining time; plain lines without a terminal."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from bench.pulse import CellPulse
from bench.units import format_duration, format_ms

_LINE_INTERVAL_S = 15.0


class SuiteProgress:
    """Counts passes over all cells of a command; each pass is one unit of the bar, its steps the fractions."""

    def __init__(self, num_cells: int, *, show: bool = True) -> None:
        """Start without drawing; `show` off prints nothing at all."""
        self.num_cells = num_cells
        self.finished_cells = 0
        self.skipped_cells = 0
        self.show = show
        self.console = Console(stderr=True)
        self.interactive = show and self.console.is_terminal
        self.started = time.monotonic()
        self.cell = ""
        self.passes_done = 0
        self.passes_in_cell = 1
        self.last_line = 0.0
        self.bar: Progress | None = None
        self.task: Any = None
        self.pulse: CellPulse | None = None

    def start_cell(self, name: str, passes: int) -> None:
        """A cell of so many passes begins."""
        self.cell, self.passes_in_cell, self.passes_done = name, passes, 0
        self._draw("starting", 0.0, None)

    def skip_cell(self, name: str) -> None:
        """A cell that has been measured before."""
        self.finished_cells += 1
        self.skipped_cells += 1
        self._line(f"{name}: already measured")

    def finish_cell(self, status: str) -> None:
        """The cell has its record."""
        self.finished_cells += 1
        self.passes_done = 0
        self._line(f"{self.cell}: {status}")
        self.cell = ""

    def finish_pass(self) -> None:
        """One pass is over."""
        self.passes_done += 1

    def update(self, phase: str, done: int = 0, total: int = 0, step_ms: float | None = None) -> None:
        """Where the running pass stands."""
        if self.pulse is not None:
            self.pulse.update(
                phase=phase, done=done, total=total, step_ms=step_ms, passes_done=self.passes_done,
                passes=self.passes_in_cell,
            )  # fmt: skip
        self._draw(phase, done / total if total else 0.0, step_ms)

    def close(self) -> None:
        """Take the bar off the terminal."""
        if self.bar is not None:
            self.bar.stop()
            self.bar = None

    def share(self, pass_share: float = 0.0) -> float:
        """Share of the whole work that is done, counting each pass as one unit."""
        in_cell = (self.passes_done + pass_share) / self.passes_in_cell
        return min(1.0, (self.finished_cells + min(1.0, in_cell)) / max(1, self.num_cells))

    def remaining_s(self, share: float) -> float | None:
        """Seconds left at the pace so far; None before there is a pace, and where work goes on beyond what was planned.

        Cells that were measured before took no time now: they say nothing about the pace.
        """
        elapsed = time.monotonic() - self.started
        measured = share - self.skipped_cells / max(1, self.num_cells)
        return elapsed * (1 - share) / measured if measured > 0.01 and share < 1 else None

    def _draw(self, phase: str, pass_share: float, step_ms: float | None) -> None:
        if not self.show:
            return
        share = self.share(pass_share)
        left = self.remaining_s(share)
        fields: dict[str, Any] = {
            "cell": f"[{min(self.finished_cells + 1, self.num_cells)}/{self.num_cells}] {self.cell}",
            "phase": phase,
            "step": f"{format_ms(step_ms)}/step" if step_ms is not None else "",
            "left": f"{format_duration(max(1.0, left))} left" if left is not None else "",
        }
        if not self.interactive:
            if phase.startswith(("waiting", "stopping")) or time.monotonic() - self.last_line >= _LINE_INTERVAL_S:
                self.last_line = time.monotonic()
                self._print(f"{share:4.0%}  " + "  ".join(text for text in fields.values() if text))
            return
        if self.bar is None:
            self.bar = Progress(
                _Plain("cell"), BarColumn(bar_width=24), TextColumn("{task.percentage:>3.0f}%"), _Plain("phase"),
                _Plain("step"), _Plain("left"), console=self.console, transient=True, refresh_per_second=4,
            )  # fmt: skip
            self.bar.start()
            self.task = self.bar.add_task("suite", total=1.0, **fields)
        self.bar.update(self.task, completed=share, **fields)

    def _line(self, text: str) -> None:
        if self.show:
            self._print(f"[{self.finished_cells}/{self.num_cells}] {text}")

    def _print(self, text: str) -> None:
        target = self.bar.console if self.bar is not None else self.console
        try:
            target.print(Text(text), soft_wrap=True)
            if sys.stderr is not None:
                sys.stderr.flush()
        except (OSError, ValueError):  # closed or full: a measurement does not end for want of a place to say so
            self.show = False


class _Plain(ProgressColumn):
    """A column of plain text: a cell's name is never read as markup."""

    def __init__(self, field: str) -> None:
        super().__init__()
        self.field = field

    def render(self, task: Task) -> Text:
        return Text(str(task.fields.get(self.field, "")), no_wrap=True)


_current: SuiteProgress | None = None


def set_current(progress: SuiteProgress | None) -> None:
    """Make a progress the one that cells of this process report to."""
    global _current
    _current = progress


def current(show: bool) -> SuiteProgress:
    """The command's progress; in a launcher's own process a fresh one for a single cell."""
    return _current if _current is not None else SuiteProgress(1, show=show)
