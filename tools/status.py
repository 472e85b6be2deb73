"""``metagrad-bench status``: a live table of a suite's cells, from whichever launcher and machine they run on."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bench.errors import ConfigError, ExitCode
from bench.printable import show_text
from bench.units import format_duration, format_ms
from tools.output import emit, emit_json
from tools.verb_parser import given_path, verb_parser

if TYPE_CHECKING:
    from rich.console import RenderableType

    from bench.cell_status import CellStatus, SuiteStatus

COLUMNS = ("state", "cell", "device", "now", "step", "elapsed", "left", "")
_FRAME_ROWS = 6  # of a screen: title, header, summary, and the prompt's line


def build_parser() -> argparse.ArgumentParser:
    """Arguments of ``metagrad-bench status``."""
    parser = verb_parser(
        "status",
        description="Shows the cells of running and finished suites: queued, running with step time and remaining "
        "time, stopped (their runner is gone), done and failed. Reads the folders only, so it works beside a run, "
        "after one, and for several launchers and machines that share a folder.",
        epilog="example: metagrad-bench status out/demo\n"
        "exit codes: 0 shown (what cannot be read below RUNS is a line), 2 wrong usage or RUNS that cannot be read, "
        "6 there is no cell",
    )
    parser.add_argument(
        "runs", nargs="+", type=given_path, metavar="RUNS", help="folders that `metagrad-bench run` writes to"
    )
    parser.add_argument("--once", action="store_true", help="print once; without a terminal it always does")
    parser.add_argument("--json", action="store_true", help="print once, machine-readable")
    parser.add_argument("--every", type=float, default=2.0, metavar="S", help="seconds between two looks (2)")
    return parser


def main(argv: Sequence[str]) -> int:
    """Print or keep showing where the suites stand; ends when nothing runs any more.

    Raises:
        UserError: a folder that cannot be read, a period that is none.
    """
    args = build_parser().parse_intermixed_args(list(argv))
    if not 0.1 <= args.every <= 3600:
        raise ConfigError(f"--every {args.every:g} is not possible: it must be 0.1 to 3600 seconds.")
    from bench.status import StatusReader

    reader = StatusReader(args.runs)
    status = reader.read()
    if args.json:
        emit_json(to_json(status))
    elif args.once or not sys.stdout or not sys.stdout.isatty():
        emit(as_text(status))
    else:
        status = _watch(reader, status, args.every)
        emit(f"{sum_up(status)}\n")
    return ExitCode.OK if status.cells else ExitCode.NOTHING_MEASURED


def to_json(status: SuiteStatus) -> str:
    """Every cell with all that is known of it, counts and seconds left."""
    import msgspec

    from bench.records.text import pretty_json

    return pretty_json(msgspec.json.encode(status)).decode()


def as_text(status: SuiteStatus) -> str:
    """A line for each cell, columns aligned, and the summary."""
    rows = [COLUMNS, *(row_of(cell) for cell in status.cells)] if status.cells else []
    widths = [max(len(row[column]) for row in rows) for column in range(len(COLUMNS) - 1)] if rows else []
    lines = ["  ".join([*map(str.ljust, row[:-1], widths), row[-1]]).rstrip() for row in rows]
    return "\n".join([*lines, sum_up(status)]) + "\n"


def row_of(cell: CellStatus) -> tuple[str, ...]:
    """A cell's texts, one a column; nothing in them moves a terminal."""
    name = f"{cell.suite}/{cell.variant} {cell.model} {cell.data} seed {cell.seed}" if cell.suite else cell.variant
    now = cell.phase or ""
    if cell.steps:
        now += f" {cell.steps_done}/{cell.steps}"
    if cell.passes:
        now += f" (pass {min((cell.passes_done or 0) + 1, cell.passes)} of {cell.passes})"
    step = f"{format_ms(cell.step_ms)}, {cell.steps_per_s:.3g}/s" if cell.step_ms and cell.steps_per_s else ""
    elapsed = format_duration(cell.elapsed_s) if cell.elapsed_s is not None else ""
    left = ""
    if cell.left_s is not None:
        left = _left(cell.left_s)
    elif cell.pass_left_s is not None:
        left = f"{_left(cell.pass_left_s)} (pass)"
    elif cell.state == "running":
        left = "–"
    reason = cell.reason or ("takes longer than finished cells like it" if cell.overdue else "")
    texts = (cell.state.replace("_", " "), name, cell.device, now, step, elapsed, left, reason)
    return tuple(show_text(text) for text in texts)


def _left(seconds: float) -> str:
    return format_duration(max(1.0, seconds))  # what runs is not over


def sum_up(status: SuiteStatus) -> str:
    """One line: how many cells in which state, and how long the rest takes."""
    if not status.cells:
        return "no cell: `metagrad-bench run` has planned or measured none in these folders."
    names = ("running", "waiting", "stopped", "queued")
    order = [*names, *sorted(set(status.counts) - {*names, "ok"}), "ok"]
    counts = ", ".join(f"{status.counts[name]} {name.replace('_', ' ')}" for name in order if name in status.counts)
    about = "more than" if any(cell.overdue for cell in status.cells) else "about"
    left = f"; {about} {_left(status.left_s)} left" if status.left_s is not None else ""
    return f"{len(status.cells)} {'cell' if len(status.cells) == 1 else 'cells'}: {counts}{left}"


def _watch(reader: Any, status: SuiteStatus, every_s: float) -> SuiteStatus:
    """Draw until nothing runs or Ctrl-C."""
    from rich.console import Console
    from rich.live import Live

    console = Console()
    try:
        with Live(_table(status, console.height - _FRAME_ROWS), console=console, auto_refresh=False) as live:
            while status.runners:
                time.sleep(every_s)
                status = reader.read()
                live.update(_table(status, console.height - _FRAME_ROWS), refresh=True)
    except KeyboardInterrupt:
        pass  # looking on is what ends, not the run
    return status


def _table(status: SuiteStatus, rows: int) -> RenderableType:
    """As many cells as fit, those at work and in trouble first."""
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), caption_justify="left")
    for name in COLUMNS:
        table.add_column(name, no_wrap=True, overflow="ellipsis")
    shown = status.cells[: max(3, rows)]
    for cell in shown:
        table.add_row(*(Text(text) for text in row_of(cell)))
    more = len(status.cells) - len(shown)
    table.caption = Text(f"{f'and {more:,} more; ' if more else ''}{sum_up(status)}")
    return table
