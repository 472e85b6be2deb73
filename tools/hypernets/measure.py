"""Measures a case: which processes run, with which work, and what their answers amount to."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.errors import ConfigError
from bench.units import Absent, format_bytes
from tools.hypernets.results import CaseResult, Cost, StepCost
from tools.pass_runner import PassRunner

if TYPE_CHECKING:
    from bench.config import CellConfig
    from bench.progress import SuiteProgress
    from bench.records.schema import Summary
    from tools.hypernets.passes import Agreement, MemoryAnswer, StepTimes, Work

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
    from tools.hypernets import passes

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


def _fitting(whole: Work, run: PassRunner) -> tuple[Work, str]:
    """The work at which `retain` fits into memory, and a sentence where that is not the whole."""
    from tools.hypernets.passes import count_weights, strategy_memory_pass

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
    from tools.hypernets.passes import strategies_pass, strategy_memory_pass

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
