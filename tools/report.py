"""``metagrad-bench report``: what runs measured as a page, markdown, figures and tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from bench.errors import ExitCode
from bench.printable import show_path, show_text
from reports.build import build_report
from tools.output import emit
from tools.verb_parser import given_path, verb_parser

EPILOG = """exit codes: 0 written, 2 bad input, 6 there was no record

example:
  metagrad-bench report out/demo -o out/demo
"""


def build_parser() -> argparse.ArgumentParser:
    """Describe the arguments of the verb."""
    parser = verb_parser(
        "report",
        description="Write report.html, report.md, figures/ and tables/ from folders of run records.",
        epilog=EPILOG,
    )
    parser.add_argument(
        "runs", nargs="+", type=given_path, metavar="RUNS", help="folders that `metagrad-bench run` wrote"
    )
    parser.add_argument("-o", "--output", type=given_path, required=True, metavar="DIR", help="folder for the report")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the verb.

    Args:
        argv: arguments after the verb.

    Returns:
        0: the report was written.

    Raises:
        UserError: there is no record, a path cannot be read, or the folder cannot be written.
    """
    arguments = build_parser().parse_args(argv)
    result = build_report(arguments.runs, arguments.output)
    for problem in result.problems:
        print(f"left aside: {show_text(problem.name)}: {show_text(problem.reason)}", file=sys.stderr)
    lines = [f"- {show_text(line)}" for line in result.headlines]
    lines += [f"report: {show_path(result.html)}", f"        {show_path(result.markdown)}"]
    emit("".join(f"{line}\n" for line in lines))
    return int(ExitCode.OK)
