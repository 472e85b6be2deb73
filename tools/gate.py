"""``metagrad-bench gate``: compare recorded runs with a baseline and answer with an exit code.

The verdicts are made in ``bench.compare``; here they are printed, and counted into one exit code.
"""

from __future__ import annotations

import argparse
import collections
import difflib
import io
import math
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import msgspec
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.compare import CELL, KINDS, THRESHOLDS, Kind, Threshold, Verdict, compare_all, nothing_measured
from bench.errors import ExitCode, NoBaselineError, NothingMeasuredError, RecordError
from bench.records.baseline import Entry, newest_entries, read_baseline
from bench.records.store import find_records, show_path, show_text
from bench.units import format_bytes, format_ms, format_percent, format_ratio
from tools.output import emit

OUTPUT_VERSION = 1
PIPED_WIDTH = 160  # columns of a table that no terminal shows
FAILING: tuple[Kind, ...] = ("failed", "regressed", "missing")
STYLES: dict[Kind, str] = {
    "failed": "bold red", "regressed": "bold red", "missing": "red", "not_comparable": "yellow",
    "inconclusive": "yellow", "new": "cyan", "improved": "green", "ok": "dim",
}  # fmt: skip
EPILOG = """thresholds, how much worse than the baseline a metric may become:
{thresholds}

exit codes, the first that applies:
  2  wrong usage, an unreadable record or an unreadable baseline
  4  the baseline file does not exist
  6  nothing was measured, or the baseline holds nothing
  1  something regressed, went missing, failed or became n/a
  5  something is not comparable: another machine or another configuration
  3  something is inconclusive
  0  otherwise, new cells included

example:
  metagrad-bench baseline out/demo -o baseline.json
  metagrad-bench run suite=demo output_dir=out/new
  metagrad-bench gate out/new/demo --baseline baseline.json --thresholds step_ms=60 peak_allocated_bytes=2
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What the gate found; the JSON output is this."""

    schema_version: int
    exit_code: int
    conclusion: str
    counts: dict[str, int]  # verdicts by kind
    thresholds: dict[str, Threshold]
    notes: tuple[str, ...]
    verdicts: tuple[Verdict, ...]


def build_parser() -> argparse.ArgumentParser:
    """Describe the arguments of the verb."""
    parser = argparse.ArgumentParser(
        prog="metagrad-bench gate",
        description="Compare recorded runs with a baseline, cell by cell and metric by metric, and answer with an exit "
        "code. Time is judged against the FP32 steps that ran in between (time_vs_fp32), and loosely by itself.",
        epilog=EPILOG.format(thresholds="\n".join(map(_threshold_line, THRESHOLDS.items()))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("candidate", nargs="+", type=Path, metavar="CANDIDATE", help="folder of runs, or a record.json")
    parser.add_argument(
        "--baseline", required=True, type=Path, metavar="FILE", help="written by `metagrad-bench baseline`"
    )
    parser.add_argument(
        "--format", choices=tuple(RENDERERS), default="text", help="of what is printed (default: %(default)s)"
    )
    parser.add_argument("--json", action="store_const", const="json", dest="format", help="the same as --format json")
    parser.add_argument("--warn-only", action="store_true", help="print the findings, but exit 0 instead of 1, 3 or 5")
    parser.add_argument(
        "--thresholds", nargs="+", action="extend", default=[], metavar="METRIC=VALUE",
        help="replace thresholds, in percent of the baseline (accuracy and shares: in points)",
    )  # fmt: skip
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb.

    Args:
        argv: arguments after the verb; none: those of the process.

    Returns:
        The exit code, as ``--help`` lists them.

    Raises:
        UserError: an unreadable record or baseline, no baseline, nothing measured; each with its exit code.
    """
    parser = build_parser()
    arguments = parser.parse_args(argv)
    thresholds = _read_thresholds(arguments.thresholds, parser.error)
    outcome = judge(arguments.candidate, arguments.baseline, thresholds, warn_only=arguments.warn_only)
    emit(RENDERERS[arguments.format](outcome))
    return outcome.exit_code


def judge(candidates: Iterable[Path], baseline: Path, thresholds: dict[str, Threshold], *, warn_only: bool) -> Outcome:
    """Read both sides and compare them.

    Raises:
        UserError: as ``main`` says.
    """
    entries, notes = read_entries(candidates)
    if not os.path.lexists(baseline):
        name = show_path(baseline)
        raise NoBaselineError(
            f"There is no baseline {name}: write one with `metagrad-bench baseline CANDIDATE -o {name}`."
        )
    known = read_baseline(baseline).entries
    if not entries:
        raise NothingMeasuredError("The candidate holds no records, so nothing was compared: run a suite first.")
    if not known:
        raise NothingMeasuredError(f"The baseline {show_path(baseline)} holds no entries: write it again.")
    verdicts = compare_all(known, entries, thresholds)
    if nothing_measured(verdicts, entries):
        raise NothingMeasuredError("No candidate holds a measurement, so nothing was compared: see their records.")
    code = exit_code(verdicts)
    if warn_only and code:
        notes = (*notes, f"Warning only: the exit code would be {int(code)}.")
    counts = collections.Counter(verdict.kind for verdict in verdicts)
    return Outcome(
        schema_version=OUTPUT_VERSION,
        exit_code=int(ExitCode.OK if warn_only else code),
        conclusion=_conclude(verdicts, counts),
        counts={kind: counts[kind] for kind in KINDS},
        thresholds=thresholds,
        notes=notes,
        verdicts=tuple(verdicts),
    )


def read_entries(paths: Iterable[Path]) -> tuple[tuple[Entry, ...], tuple[str, ...]]:
    """Read the newest run of each cell, and notes on runs that were left aside.

    Raises:
        RecordError: if a record cannot be read; comparing the rest would hide it.
    """
    found, problems = find_records(paths)
    unreadable = [problem.reason for problem in problems if problem.unreadable]
    if unreadable:
        more = f" ({len(unreadable) - 1} more cannot be read either.)" if len(unreadable) > 1 else ""
        raise RecordError(unreadable[0] + more)
    entries = newest_entries(item.record for item in found)
    notes = [problem.reason for problem in problems]
    older = len(found) - len(entries)
    if older:
        notes.append(f"{older} older runs of the same cells on the same machine were left aside.")
    return entries, tuple(notes)


def exit_code(verdicts: Iterable[Verdict]) -> ExitCode:
    """The exit code of a comparison that took place."""
    kinds = {verdict.kind for verdict in verdicts}
    if kinds.intersection(FAILING):
        return ExitCode.FAILED
    if "not_comparable" in kinds:
        return ExitCode.NOT_COMPARABLE
    return ExitCode.INCONCLUSIVE if "inconclusive" in kinds else ExitCode.OK


def format_value(metric: str, value: float | None) -> str:
    """Print a value in the unit that the metric's name carries."""
    if value is None:
        return "n/a"
    if metric.endswith("_bytes"):
        return format_bytes(value)
    if metric.endswith("_ms"):
        return format_ms(value)
    if metric.endswith("_pct"):
        return format_percent(value, 2)
    return format_ratio(value)


def format_change(verdict: Verdict) -> str:
    """Print a change with its sign, in percent or points."""
    if verdict.change_pct is None:
        return ""
    return f"{verdict.change_pct:+.1f} {_unit(verdict.metric)}"


def findings(verdicts: Iterable[Verdict]) -> list[tuple[str, ...]]:
    """Rows of the table, worst first: one per verdict, but one per cell for all that is ok in it."""
    rows, fine = [], collections.defaultdict(list)
    for verdict in verdicts:
        if verdict.kind == "ok" and verdict.metric != CELL:
            fine[verdict.cell, verdict.config_digest, verdict.fingerprint].append(verdict)
            continue
        values = [format_value(verdict.metric, value) for value in (verdict.baseline, verdict.candidate)]
        if verdict.metric == CELL:
            values = ["", ""]
        rows.append((verdict.kind, verdict.cell, verdict.metric, *values, format_change(verdict), verdict.reason))
    for (cell, _, _), verdicts_of_cell in sorted(fine.items()):
        widest = max(verdicts_of_cell, key=_share_of_threshold)
        values = [format_value(widest.metric, value) for value in (widest.baseline, widest.candidate)]
        count = f"{len(verdicts_of_cell)} metrics within their thresholds; this one is closest."
        rows.append(("ok", cell, widest.metric, *values, format_change(widest), count))
    return [tuple(map(show_text, row)) for row in rows]


def render_text(outcome: Outcome) -> str:
    """A table for terminals and logs, worst first, and the conclusion as the last line."""
    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    width = shutil.get_terminal_size().columns if is_terminal else PIPED_WIDTH
    lines = io.StringIO()
    console = Console(file=lines, width=width, force_terminal=is_terminal)
    table = Table(box=box.SIMPLE, show_edge=False, pad_edge=False)
    for name in COLUMNS:
        table.add_column(name, justify="right" if name in ("baseline", "candidate", "change") else "left")
    for kind, *cells in findings(outcome.verdicts):
        table.add_row(Text(kind.replace("_", " "), style=STYLES[kind]), *map(Text, cells))  # type: ignore[index]
    console.print(table)
    rows = [line.rstrip() for line in lines.getvalue().splitlines()]
    return "\n".join([*rows, "", *map(show_text, outcome.notes), show_text(outcome.conclusion)]) + "\n"


def render_markdown(outcome: Outcome) -> str:
    """A summary for a pull request: the conclusion, then the table."""
    rows = [COLUMNS, ("---", "---", "---", "---:", "---:", "---:", "---"), *findings(outcome.verdicts)]
    table = "\n".join("| " + " | ".join(_escape_markdown(cell) for cell in row) + " |" for row in rows)
    notes = "".join(f"\n{_escape_markdown(show_text(note))}\n" for note in outcome.notes)
    return f"**{_escape_markdown(show_text(outcome.conclusion))}**\n\n{table}\n{notes}"


def render_json(outcome: Outcome) -> str:
    """Every verdict, for programs."""
    return msgspec.json.format(msgspec.json.encode(outcome), indent=2).decode() + "\n"


COLUMNS = ("verdict", "cell", "metric", "baseline", "candidate", "change", "why")
RENDERERS: dict[str, Callable[[Outcome], str]] = {
    "text": render_text,
    "markdown": render_markdown,
    "json": render_json,
}


def _conclude(verdicts: Sequence[Verdict], counts: collections.Counter[Kind]) -> str:
    """One line: pass or not and what is worst, how many verdicts of which kind, over how many cells."""
    cells = len({(verdict.cell, verdict.config_digest, verdict.fingerprint) for verdict in verdicts})
    worst = verdicts[0]
    subject = worst.cell if worst.metric == CELL else f"{worst.metric} of {worst.cell}"
    heads = {
        ExitCode.OK: "Gate passed",
        ExitCode.FAILED: f"Gate failed: {subject} {'is missing' if worst.kind == 'missing' else worst.kind}",
        ExitCode.NOT_COMPARABLE: "Gate cannot compare everything",
        ExitCode.INCONCLUSIVE: "Gate cannot tell",
    }
    listed = ", ".join(f"{counts[kind]} {kind.replace('_', ' ')}" for kind in KINDS if counts[kind])
    return f"{heads[exit_code(verdicts)]} ({listed}; {cells} {'cell' if cells == 1 else 'cells'})."


def _share_of_threshold(verdict: Verdict) -> float:
    """How much of its threshold a passing change uses up; one that passed below a noise floor counts as none."""
    share = abs(verdict.change_pct or 0.0) / (verdict.threshold_pct or math.inf)
    return share if share <= 1 else 0.0


def _read_thresholds(pairs: Iterable[str], complain: Callable[[str], NoReturn]) -> dict[str, Threshold]:
    thresholds = dict(THRESHOLDS)
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals:
            complain(f"--thresholds takes METRIC=VALUE, not {pair!a}; give the candidates before it")
        if name not in thresholds:
            near = difflib.get_close_matches(name, thresholds, n=1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(thresholds)}"
            complain(f"--thresholds: there is no metric {name!a}; {hint}")
        try:
            limit = float(text)
        except ValueError:
            limit = math.nan
        if not (math.isfinite(limit) and limit >= 0):
            complain(f"--thresholds: {name} takes a number of 0 or more, not {text!a}")
        thresholds[name] = replace(thresholds[name], limit=limit)
    return thresholds


def _threshold_line(item: tuple[str, Threshold]) -> str:
    name, threshold = item
    floor = f", and {threshold.floor_pct:g} % of {threshold.floor_of}" if threshold.floor_of else ""
    return f"  {name:<31}{threshold.limit:g} {_unit(name)}{floor}"


def _unit(metric: str) -> str:
    known: Any = THRESHOLDS.get(metric)
    return "points" if known is not None and known.in_points else "%"


def _escape_markdown(text: str) -> str:
    for letter in "\\`|<>[]*":
        text = text.replace(letter, f"\\{letter}" if letter not in "<>" else {"<": "&lt;", ">": "&gt;"}[letter])
    return text
