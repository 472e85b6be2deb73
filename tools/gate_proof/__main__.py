"""``python -m tools.gate_proof``: runs what is missing of the proof, judges it, writes docs/gate-proof.md."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bench.errors import ExitCode, RecordError, UserError
from bench.printable import show_path
from tools.against.lifetime import ended_by_signal
from tools.against.rounds import tell_on_stderr
from tools.gate_proof.real import PHASES, SIZES_PCT, Counts, record
from tools.gate_proof.simulate import Scenario, read_simulated, run_scenarios

RUNS_FILE, SIMULATED_FILE = "runs.json", "simulated.json"


def build_parser() -> argparse.ArgumentParser:
    """Describe the arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m tools.gate_proof",
        description="Prove what the regression gate is worth on this machine: equal, slowed and leaking runs, real and "
        "simulated. What is done already is not done again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    counts = Counts()
    parser.add_argument("--output", type=Path, default=Path("docs/gate-proof"), help="folder of the JSON files")
    parser.add_argument("--page", type=Path, default=Path("docs/gate-proof.md"), help="the page to write")
    parser.add_argument("--scratch", type=Path, default=Path("out/gate-proof"), help="records that are not kept")
    parser.add_argument("--pairs", type=int, default=counts.pairs, help="disjoint pairs of real equal runs")
    parser.add_argument("--groups", type=int, default=counts.groups, help="real slowed groups for each phase")
    parser.add_argument("--leaks", type=int, default=counts.leaks, help="real leaking runs of each size")
    parser.add_argument("--simulated", type=int, default=10_000, help="simulated pairs of equal suites, each way")
    parser.add_argument(
        "--resampled", type=int, default=400, help="of those each way as many more, with every row resampled: slow"
    )
    parser.add_argument("--slowed", type=int, default=100, help="simulated suites for each slowdown")
    parser.add_argument("--report-only", action="store_true", help="write the page from what is there")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the proof; answers 0 where every goal is met, 1 where one is missed, 2 for a mistake, 130 interrupted."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    others = (arguments.groups, arguments.leaks, arguments.simulated, arguments.resampled, arguments.slowed)
    if arguments.pairs < 1 or min(others) < 0:
        parser.error("--pairs takes 1 or more, the other counts 0 or more")
    try:
        with ended_by_signal():
            return _prove(arguments)
    except UserError as error:
        print(f"gate-proof: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        print("gate-proof: interrupted; call it again and it goes on.", file=sys.stderr)
        return int(ExitCode.INTERRUPTED)


def _prove(arguments: argparse.Namespace) -> int:
    from bench.cell_folder import only_here
    from tools.gate_proof.goals import conclude
    from tools.gate_proof.judge import RealFindings
    from tools.gate_proof.noise import measure_noise
    from tools.gate_proof.report import write_page
    from tools.gate_proof.runs import read_runs

    output: Path = arguments.output

    def refuse() -> None:
        raise RecordError(f"Another proof is at work in {show_path(output)}: wait until it is done, or end it.")

    runs_file, simulated_file = output / RUNS_FILE, output / SIMULATED_FILE
    if arguments.report_only:
        recorded, simulated = read_runs(runs_file), read_simulated(simulated_file)
    else:
        counts = Counts(pairs=arguments.pairs, groups=arguments.groups, leaks=arguments.leaks)
        with only_here(runs_file, on_wait=refuse):
            recorded = record(runs_file, arguments.scratch, counts, tell=tell_on_stderr)
            wanted = scenarios(arguments.simulated, arguments.resampled, arguments.slowed)
            simulated = run_scenarios(
                simulated_file, recorded.template, measure_noise(recorded), wanted, tell=tell_on_stderr
            )
    real = RealFindings.of(recorded)
    goals = conclude(real, simulated)
    write_page(arguments.page, output, recorded, real, simulated, goals)
    for goal in goals:
        print(f"{'met   ' if goal.met else 'missed'}  {goal.text}: {goal.result}")
    print(f"The page is {arguments.page}.")
    return int(ExitCode.OK if all(goal.met for goal in goals) else ExitCode.FAILED)


def scenarios(equal: int, resampled: int, slowed: int) -> dict[Scenario, int]:
    """How many suites of each scenario: equal ones both ways, slowed ones in turn and, of the step, apart.

    The slowest to judge come first, so that no core waits for another's at the end.
    """
    wanted = {Scenario(design=design, every_row=True): resampled for design in ("in_turn", "apart")}
    wanted |= {Scenario(design=design): equal for design in ("in_turn", "apart")}
    for design, share_of in (("in_turn", "step"), ("in_turn", "phase"), ("apart", "step")):
        for phase in PHASES:
            for size in SIZES_PCT:
                wanted[Scenario(design=design, size_pct=size, share_of=share_of, phase=phase)] = slowed
    return wanted


if __name__ == "__main__":
    sys.exit(main())
