"""The verb ``metagrad-bench doctor``: reads the machine, prints tables or JSON."""

from __future__ import annotations

import argparse
import io
import json
import shutil
import sys
from collections.abc import Sequence

from tools.doctor.collect import collect
from tools.doctor.tables import render
from tools.output import emit
from tools.verb_parser import verb_parser

_EPILOG = """examples:
  metagrad-bench doctor                 a table, with measured ceilings (a few seconds)
  metagrad-bench doctor --no-measure    the same without running any product but the self-check
  metagrad-bench doctor --json          for programs; unknown values are {"reason": "..."}

exit code: 0, also where something would spoil a measurement (the advice says it); 2 for wrong arguments.
"""


def build_parser() -> argparse.ArgumentParser:
    """Describe the arguments of the verb."""
    parser = verb_parser(
        "doctor",
        description="Say what this machine can do: devices, the integer path that each bit width would take and why, "
        "the self-check of the integer product, measured ceilings, clocks, threads, memory allocator, and one "
        "sentence of advice for whatever would spoil a measurement.",
        epilog=_EPILOG,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument(
        "--no-measure",
        action="store_true",
        help="leave out the measured ceilings (integer product, FP32, bf16, copy bandwidth)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb.

    Args:
        argv: arguments after ``doctor``; by default those of the process.

    Returns:
        The exit code.
    """
    arguments = build_parser().parse_args(argv)
    report = collect(measure=not arguments.no_measure)
    if arguments.json:
        emit(json.dumps(report, indent=2) + "\n")
        return 0
    from rich.console import Console

    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=shutil.get_terminal_size((100, 24)).columns)
    render(report, console)
    assert isinstance(console.file, io.StringIO), "the console writes into memory"
    emit(console.file.getvalue())
    return 0
