"""``metagrad-bench baseline``: write a baseline for the gate. A baseline moves by this command only.

What it holds is in ``bench.records.entry``, how it reads in ``bench.records.baseline``.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from bench.errors import ExitCode, NothingMeasuredError
from bench.gating import CELL, Row, Verdict, compare
from bench.gating.decide import show_value
from bench.printable import show_path, show_text
from bench.records.baseline import read_baseline, write_baseline
from bench.records.entry import Entry, cell_label, is_measured
from bench.units import plural
from tools.gate import read_entries
from tools.gate_output import AS_SHOWN, format_change
from tools.output import emit
from tools.verb_parser import given_path, verb_parser

EPILOG = """The file is replaced as a whole, and what moved in it is printed. A file that is no baseline stays.
To hold several machines, give the runs of all, or use --keep-machines.

exit codes: 0 written, 2 wrong usage, an unreadable record or a file that cannot be replaced, 6 nothing was measured.

example:
  metagrad-bench baseline out/demo -o baseline.json
"""


def build_parser() -> argparse.ArgumentParser:
    """Describe the arguments of the verb."""
    parser = verb_parser(
        "baseline",
        description="Write what runs measured as a baseline: one entry per cell and machine, with raw samples.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "candidate", nargs="+", type=given_path, metavar="CANDIDATE", help="folder of runs, or a record.json"
    )
    parser.add_argument("-o", "--output", required=True, type=given_path, metavar="FILE", help="the baseline to write")
    parser.add_argument(
        "--keep-machines", action="store_true", help="keep the entries of machines that CANDIDATE holds no run of"
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: arguments after the verb.

    Returns:
        0: the baseline was written.

    Raises:
        UserError: an unreadable record, nothing measured, or a file that cannot be replaced; the file stays as it was.
    """
    arguments = build_parser().parse_args(argv)
    output: Path = arguments.output
    entries, notes = read_entries(arguments.candidate)
    if not any(map(is_measured, entries)):
        what = "no records" if not entries else "only cells that failed"
        raise NothingMeasuredError(f"The candidate holds {what}, so there is no baseline to write: run a suite first.")
    # Reading first refuses to replace a file that is something else.
    before = read_baseline(output).entries if os.path.lexists(output) else None
    if arguments.keep_machines and before is not None:
        measured_here = {entry.fingerprint for entry in entries}
        entries += tuple(entry for entry in before if entry.fingerprint not in measured_here)
    write_baseline(output, entries)
    emit("".join(f"{show_text(line)}\n" for line in (*notes, *_summarize(output, before, entries))))
    return int(ExitCode.OK)


def _summarize(output: Path, before: Iterable[Entry] | None, after: Sequence[Entry]) -> list[str]:
    """Say what the file holds now and what moved in it."""
    lines = [] if before is None else _moves(list(before), after)
    lines += [
        f"{cell_label(entry)}: {entry.status.replace('_', ' ')} ({entry.reason.rstrip('.')})"
        for entry in after
        if entry.status != "ok"
    ]
    machines = len({entry.fingerprint for entry in after})
    lines.append(f"{show_path(output)} holds {plural(len(after), 'cell')} on {plural(machines, 'machine')}.")
    return lines


def _moves(before: list[Entry], after: Sequence[Entry]) -> list[str]:
    """One line per metric that moved by more than its threshold, and per cell that came or went."""
    kept, known = set(map(_identity, after)), set(map(_identity, before))
    lines = [
        f"{cell_label(entry)} on {entry.fingerprint}: {what}"
        for what, entries, others in (("gone", before, kept), ("new", after, known))
        for entry in entries
        if _identity(entry) not in others
    ]
    stays = [entry for entry in before if _identity(entry) in kept]
    now = [entry for entry in after if _identity(entry) in known]
    lines += [_move(row) for row in compare(now, stays, explain=False).rows if row.verdict is not Verdict.OK]
    if not lines:
        same = {_identity(entry): entry for entry in before} == {_identity(entry): entry for entry in after}
        lines.append("Nothing moved." if same else "No metric moved by more than its threshold.")
    return lines


def _identity(entry: Entry) -> tuple[str, str]:
    return entry.config_digest, entry.fingerprint


def _move(row: Row) -> str:
    if row.metric == CELL:
        return f"{row.cell}: {row.reason}"
    old, new = (show_value(row.metric, value) for value in (row.baseline, row.candidate))
    change, of = format_change(row)
    says = {"": "", AS_SHOWN: f" ({change})"}.get(of, f" ({change} of {of})")
    return f"{row.cell}: {row.metric} {old} -> {new}{says}"
