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
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import ConfigError, ExitCode
from bench.records.schema import Summary
from bench.units import Absent, format_absent, format_bytes, format_ms, format_percent, format_ratio
from tools.json_file import check_json_file, write_json_file
from tools.pass_runner import PassRunner
from tools.verb_parser import verb_parser

if TYPE_CHECKING:
    from rich.console import Console

    from bench.config import CellConfig
    from bench.progress import SuiteProgress
    from tools.hypernet_passes import Agreement, MemoryAnswer, StepTimes, Work

STRATEGIES = ("retain", "slim", "recompute", "tabulate")
ALWAYS_WHOLE = ("recompute", "tabulate")  # also at the whole of the weights where `retain` does not fit
FREE_SHARE = 0.7  # of the free memory that `retain` may fill: network, gradients and the system need the rest
PROBE_STRIDE = 100  # retain's memory is proportional to N: a hundredth of the weights tells the whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """A network's layer shapes and the hidden size that MetaGrad uses for it."""

    model: str
    hidden: int


CASES = {
    "resnet20_h100": Case(model="resnet20", hidden=100),
    "vgg16_h11": Case(model="vgg16", hidden=11),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How large and how often."""

    stride: int = 1  # only each so many-th weight of every layer
    max_hidden: int | None = None
    batch_size: int = 128
    rounds: int = 7  # timed updates of each strategy
    steps: int = 12  # timed steps of each side


QUICK = Effort(stride=50, max_hidden=8, batch_size=8, rounds=2, steps=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """What one strategy takes for one update."""

    strategy: str
    num_weights: int
    update_ms: Summary
    extra_bytes: int | Absent  # peak beyond weights and gradients


@dataclass(frozen=True, slots=True, kw_only=True)
class StepCost:
    """A training step with MetaGrad and with the plain quantizer."""

    batch_size: int
    metagrad_ms: Summary
    plain_ms: Summary
    grid_points: int  # of tabulate's grid in the timed steps, per axis
    metagrad_peak_bytes: int | Absent
    plain_peak_bytes: int | Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class CaseResult:
    """A case's figures, named as in ``--json``; ratios above 1 in `recompute_*` are in recompute's favour."""

    recompute_speedup: float
    recompute_memory_ratio: float | Absent
    tabulate_step_ratio: float  # MetaGrad's step over the plain quantizer's
    tabulate_extra_peak: float | Absent  # a share of the plain training's peak
    tabulate_extra_bytes_per_weight: float | Absent
    tabulate_same_codes: float  # share of all weights, at INT4
    tabulate_meta_gradient_error: float
    tabulate_grid_points: int  # per axis
    model: str
    hidden: int
    num_weights: int
    compared_num_weights: int  # at which recompute was compared with retain
    note: str  # why that is not all of them; "" where it is
    strategies: tuple[Cost, ...]
    step: StepCost


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

    from rich.console import Console

    from bench.hardware.environment import read_environment, to_plain
    from bench.hardware.probe import resolve_device
    from bench.native import pieces
    from bench.progress import SuiteProgress

    device = resolve_device(args.device)
    environment = to_plain(read_environment(device, elementwise=pieces(device)))
    console = Console()
    progress = SuiteProgress(len(names), show=not args.no_progress)
    results = {}
    try:
        for name in names:
            results[name] = measure_case(name, effort, str(device), progress)
            progress.finish_cell("measured")
    finally:
        progress.close()
    for name, result in results.items():
        render(name, result, console, quick=args.quick)
    if args.json:
        plain = {name: as_plain_result(result) for name, result in results.items()}
        document = {**plain, "quick": args.quick, "environment": environment}
        write_json_file(Path(args.json), document)
    return ExitCode.OK


def measure_case(name: str, effort: Effort, device: str, progress: SuiteProgress) -> CaseResult:
    """All figures of one case.

    Args:
        name: a key of ``CASES``.
        effort: sizes and repetitions.
        device: as torch names it.
        progress: told about each process.

    Raises:
        OutOfMemoryError: a process ran out of memory although the projection had allowed it.
    """
    from bench.timing_summary import difference
    from bench.training.assemble import without_hypernet
    from tools import hypernet_passes as passes

    case = CASES[name]
    hidden = case.hidden if effort.max_hidden is None else min(case.hidden, effort.max_hidden)
    whole = passes.Work(model=case.model, hidden=hidden, stride=effort.stride, device=device)
    cell = step_cell(case.model, hidden, effort.batch_size, device)
    progress.start_cell(name, 10)
    run = PassRunner(device, progress, if_out_of_memory="end other programs, or measure --case resnet20_h100")
    compared, note = _fitting(whole, run)
    costs = _costs(run, compared, STRATEGIES, effort.rounds)
    of_whole = costs
    if compared != whole:
        progress.passes_in_cell += 1 + len(ALWAYS_WHOLE)
        of_whole = _costs(run, whole, ALWAYS_WHOLE, effort.rounds)
    agreement: Agreement = run(passes.agreement_pass, work=whole)
    times: StepTimes = run(passes.step_pass, cell=cell, device=device, steps=effort.steps)
    peak = _step_peak(run, cell, device)
    plain_peak = _step_peak(run, without_hypernet(cell), device)
    step = StepCost(
        batch_size=effort.batch_size, metagrad_ms=_summary(times.metagrad_ms), plain_ms=_summary(times.plain_ms),
        grid_points=times.grid_points, metagrad_peak_bytes=peak, plain_peak_bytes=plain_peak,
    )  # fmt: skip
    retain, recompute = costs["retain"], costs["recompute"]
    extra = difference(peak, plain_peak)
    return CaseResult(
        recompute_speedup=retain.update_ms.median / recompute.update_ms.median,
        recompute_memory_ratio=_ratio(retain.extra_bytes, recompute.extra_bytes),
        tabulate_step_ratio=step.metagrad_ms.median / step.plain_ms.median,
        tabulate_extra_peak=_ratio(extra, plain_peak),
        tabulate_extra_bytes_per_weight=_ratio(extra, times.num_weights),
        tabulate_same_codes=agreement.same_codes,
        tabulate_meta_gradient_error=agreement.meta_error,
        tabulate_grid_points=agreement.points,
        model=case.model,
        hidden=hidden,
        num_weights=of_whole["tabulate"].num_weights,
        compared_num_weights=retain.num_weights,
        note=note,
        strategies=tuple({**costs, **{f"{key}, whole": cost for key, cost in of_whole.items() if note}}.values()),
        step=step,
    )


def step_cell(model: str, hidden: int, batch_size: int, device: str) -> CellConfig:
    """MetaGrad at INT4 with `tabulate`, on random images of CIFAR's shape."""
    from bench.app import parse_arguments, plan_cells

    overrides = [
        "variant=metagrad_int4_tabulate", f"model={model}", "data=synthetic", f"hypernet.hidden={hidden}",
        f"protocol.batch_size={batch_size}", f"device={device}",
    ]  # fmt: skip
    return plan_cells(parse_arguments(overrides)).cells[0]


def fitting_stride(stride: int, needed_bytes: float, free_bytes: float) -> int:
    """The stride, in tens of `stride`, at which what needs `needed_bytes` at `stride` fits into the free memory."""
    while needed_bytes > FREE_SHARE * free_bytes:
        stride, needed_bytes = stride * 10, needed_bytes / 10
    return stride


def as_plain_result(result: CaseResult) -> dict[str, Any]:
    """A case as JSON values; unknown ones are ``{"reason": "..."}``."""
    from bench.hardware.environment import to_plain

    plain: dict[str, Any] = to_plain(dataclasses.asdict(result))
    return plain


def render(name: str, result: CaseResult, console: Console, *, quick: bool = False) -> None:
    """Print a case as two tables and its ratios.

    Args:
        name: of the case.
        result: what ``measure_case`` answers.
        console: where to print.
        quick: it was measured with small shapes, which stands beside all that might be quoted.
    """
    from rich.table import Table

    mark = "--quick, not to be quoted: " if quick else ""
    console.print(
        f"\n[bold]{name}[/bold]: {mark}DualLSTMFC, H = {result.hidden}, {result.num_weights:,} weights of "
        f"{result.model}"
    )
    if result.note:
        console.print(result.note)
    table = Table("one update by", "weights", "median", "quartiles", "extra peak memory")
    for cost in result.strategies:
        table.add_row(
            cost.strategy, f"{cost.num_weights:,}", *_times(cost.update_ms), format_bytes(cost.extra_bytes)
        )  # fmt: skip
    console.print(table)
    step = result.step
    table = Table(f"one step of INT4 training, batch {step.batch_size}", "median", "quartiles", "peak memory")
    table.add_row("metagrad, tabulate", *_times(step.metagrad_ms), format_bytes(step.metagrad_peak_bytes))
    table.add_row("uniform, no hypernetwork", *_times(step.plain_ms), format_bytes(step.plain_peak_bytes))
    console.print(table)
    per_weight = result.tabulate_extra_bytes_per_weight
    lines = [
        f"recompute against retain: {format_ratio(result.recompute_speedup)} faster, "
        f"{format_ratio(result.recompute_memory_ratio)} less extra memory",
        f"the step with tabulate takes {format_ratio(result.tabulate_step_ratio)} the plain one's time, its peak "
        f"{_percent(result.tabulate_extra_peak)} more, "
        + (format_absent(per_weight) if isinstance(per_weight, Absent) else f"{per_weight:.1f} bytes a weight"),
        f"tabulate's INT4 codes are the exact ones for {100 * result.tabulate_same_codes:.4f} % of the weights, its "
        f"meta-gradient is within {result.tabulate_meta_gradient_error:.1e} ({result.tabulate_grid_points} grid points "
        "an axis)",
    ]
    for line in lines:
        console.print(f"{mark}{line}")


def _fitting(whole: Work, run: PassRunner) -> tuple[Work, str]:
    """The work at which `retain` fits into memory, and a sentence where that is not the whole."""
    from tools.hypernet_passes import count_weights, strategy_memory_pass

    probe = dataclasses.replace(whole, stride=whole.stride * PROBE_STRIDE)
    answer: MemoryAnswer = run(strategy_memory_pass, work=probe, name="retain")
    if isinstance(answer.extra_bytes, Absent):
        raise ConfigError(f"Peak memory cannot be measured here: {answer.extra_bytes.reason}.")
    count = count_weights(whole)
    needed = answer.extra_bytes * count / answer.num_weights
    stride = fitting_stride(whole.stride, needed, answer.free_bytes)
    if stride == whole.stride:
        return whole, ""
    note = (
        f"retain does not fit: it would take about {format_bytes(needed)} for {count:,} weights where "
        f"{format_bytes(answer.free_bytes)} are free, so it is compared on 1 in {stride // whole.stride} weights of "
        "each layer."
    )
    return dataclasses.replace(whole, stride=stride), note


def _costs(run: PassRunner, work: Work, names: Sequence[str], rounds: int) -> dict[str, Cost]:
    from tools.hypernet_passes import strategies_pass, strategy_memory_pass

    times = run(strategies_pass, work=work, names=tuple(names), rounds=rounds)
    costs = {}
    for name in names:
        memory: MemoryAnswer = run(strategy_memory_pass, work=work, name=name)
        costs[name] = Cost(
            strategy=name, num_weights=memory.num_weights, update_ms=_summary(times[name]),
            extra_bytes=memory.extra_bytes,
        )  # fmt: skip
    return costs


def _step_peak(run: PassRunner, cell: CellConfig, device: str) -> int | Absent:
    from bench.passes import memory_pass

    answer = run(memory_pass, cell=cell, device=device, weights=None, name=f"of the step, {cell.method.name}")
    peak: int | Absent = answer.peaks.peak_allocated_bytes
    return peak


def _summary(samples: Sequence[float]) -> Summary:
    from bench.stats import summarize

    return summarize(samples)


def _ratio(numer: float | Absent, denom: float | Absent) -> float | Absent:
    for value in (numer, denom):
        if isinstance(value, Absent):
            return value
    assert isinstance(numer, float | int), "not absent"
    assert isinstance(denom, float | int), "not absent"
    return numer / denom if denom > 0 else Absent("what it is compared with took no memory")


def _times(summary: Summary) -> tuple[str, str]:
    return format_ms(summary.median), f"{format_ms(summary.q1)} – {format_ms(summary.q3)}"


def _percent(share: float | Absent) -> str:
    return format_absent(share) if isinstance(share, Absent) else format_percent(100 * share)
