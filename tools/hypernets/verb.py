"""``metagrad-bench hypernets``: what the hypernetwork costs by strategy, and what it adds to a training step.

Two questions, one table each. The strategies against each other: one update is f_psi on every weight and its gradient
by psi, at the layer shapes of a real network, all strategies in turn in one process. The whole step: MetaGrad with
``tabulate`` against the same low-bit step with the plain uniform quantizer, in turn in one process. Peaks of memory
are taken in a fresh process each. Source: docs/method.md section 4; MetaQuant (Chen et al., NeurIPS 2019) 7.1.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from pathlib import Path

from bench.errors import ConfigError, ExitCode
from tools.hypernets.measure import CASES, QUICK, Effort, measure_case
from tools.hypernets.results import CaseResult, as_plain_result
from tools.json_file import check_json_file, write_json_file, writing_measured
from tools.output import table_console
from tools.verb_parser import verb_parser


def build_parser() -> argparse.ArgumentParser:
    """Describe the arguments of the verb."""
    parser = verb_parser(
        "hypernets",
        description="Time and memory of the strategies retain, slim, recompute and tabulate for DualLSTMFC at the "
        "layer shapes of ResNet-20 (H = 100) and VGG-16 (H = 11), and of the whole MetaGrad step with tabulate against "
        "the same INT4 step with the plain uniform quantizer. Images are random, gradients come from backward passes.",
        epilog="example: metagrad-bench hypernets --case resnet20_h100 --json hypernets.json\n"
        "exit codes: 0 measured, 1 a measurement ran out of memory, 2 wrong usage or bad input, 130 interrupted",
    )
    parser.add_argument(
        "--case", action="append", metavar="NAME", help=f"{' or '.join(CASES)}; may be repeated; none: all"
    )
    parser.add_argument("--json", metavar="FILE", help="also write every figure to this file")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 (default: auto, the first GPU)")
    parser.add_argument("--rounds", type=int, metavar="N", help="timed updates of each strategy (default: 7)")
    parser.add_argument("--steps", type=int, metavar="N", help="timed training steps of each side (default: 12)")
    parser.add_argument(
        "--quick", action="store_true", help="small shapes: shows that everything runs, measures nothing worth quoting"
    )
    parser.add_argument("--no-progress", action="store_true", help="show no progress")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the verb.

    Raises:
        UserError: one sentence about what is wrong.
    """
    args = build_parser().parse_args(list(argv))
    names = list(dict.fromkeys(args.case or CASES))
    for name in names:
        if name not in CASES:
            raise ConfigError(f"There is no case {name!r}: choose {' or '.join(CASES)}.")
    effort = QUICK if args.quick else Effort()
    for key in ("rounds", "steps"):
        value = getattr(args, key)
        if value is not None and value < 1:
            raise ConfigError(f"--{key} {value} is not possible: it must be 1 or more.")
        effort = dataclasses.replace(effort, **{key: value}) if value is not None else effort
    if args.json:
        check_json_file(args.json)

    from bench.hardware.environment import read_environment, to_plain
    from bench.hardware.probe import resolve_device
    from bench.native import pieces
    from bench.progress import SuiteProgress
    from tools.hypernets.tables import render

    device = resolve_device(args.device)
    environment = to_plain(read_environment(device, elementwise=pieces(device)))
    console = table_console()
    progress = SuiteProgress(len(names), show=not args.no_progress)
    results: dict[str, CaseResult] = {}

    def write() -> None:
        plain = {name: as_plain_result(result) for name, result in results.items()}
        write_json_file(Path(args.json), {**plain, "quick": args.quick, "environment": environment})

    try:
        with writing_measured(args.json, results, write):
            for name in names:
                results[name] = measure_case(name, effort, str(device), progress)
                progress.finish_cell("measured")
                progress.close()  # the next case draws a new bar
                render(name, results[name], console, quick=args.quick)
    finally:
        progress.close()
    return ExitCode.OK
