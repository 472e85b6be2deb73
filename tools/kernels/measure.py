"""Measures a network: which processes run, with which work, and what their answers amount to."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.units import Absent
from tools.kernels.results import ModelResult, SideTimes, compare_lean, compare_width, side_times
from tools.pass_runner import PassRunner

if TYPE_CHECKING:
    from bench.progress import SuiteProgress
    from tools.kernels.layers import LayersAnswer
    from tools.kernels.passes import SavedBytes, StepTimes
    from tools.kernels.sides import Work

MEMORY_SIDES = ("fp32", "bf16", "int8", "int4", "int8_compact", "int4_compact")
PEAK_MEANING = {
    "cpu": "growth of a fresh process's resident memory over two training steps, network and optimizer included",
    "cuda": "peak of the CUDA allocator over two training steps of a fresh process",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How large and how often."""

    batch_size: int = 128
    image_size: int = 32
    steps: int = 15  # timed rounds, one step of every side each
    warmup_steps: int = 2  # of every side, after its first step
    budget_s: float = 180.0  # of the timed rounds
    traced_steps: int = 5
    ceiling_budget_s: float = 0.8


QUICK = Effort(batch_size=8, steps=3, warmup_steps=1, budget_s=20.0, traced_steps=2, ceiling_budget_s=0.05)


def measure_model(
    name: str, work: Work, effort: Effort, progress: SuiteProgress, *, compiled: bool = True
) -> ModelResult:
    """All figures of one network.

    Args:
        name: as it was asked for.
        work: what the passes build.
        effort: repetitions.
        progress: told about each process.
        compiled: whether FP32 and bf16 also run under torch.compile.

    Raises:
        UserError: a network that cannot be trained or converted, or a process that ran out of memory.
    """
    from bench.timing_summary import busy_sentences
    from tools.kernels import layers as layer_passes
    from tools.kernels import passes
    from tools.kernels.sides import SIDES, WIDTHS

    run = PassRunner(work.device, progress, if_out_of_memory="end other programs, or take a smaller --batch")
    progress.start_cell(name, 3 + len(MEMORY_SIDES) + (work.dispatch == "auto"))
    if work.dispatch == "auto":
        paths = run(passes.paths_pass, work=work, names=WIDTHS)
        work = dataclasses.replace(work, paths=paths)
    saved: dict[str, SavedBytes] = run(passes.saved_pass, work=work, names=MEMORY_SIDES)
    sides = [side for side, kind in SIDES.items() if compiled or not kind.compiled]
    times: StepTimes = run(
        passes.steps_pass, work=work, names=tuple(sides), steps=effort.steps,
        warmup_steps=effort.warmup_steps, budget_s=effort.budget_s,
    )  # fmt: skip
    layers: LayersAnswer = run(
        layer_passes.layers_pass, work=work, names=WIDTHS, steps=effort.traced_steps,
        warmup_steps=effort.warmup_steps, ceiling_budget_s=effort.ceiling_budget_s,
    )  # fmt: skip
    peaks: dict[str, int | Absent] = {
        side: run(passes.peak_pass, work=work, name=side) for side in MEMORY_SIDES
    }  # fmt: skip
    steps = {side: side_times(side, times) for side in SIDES}
    reference = steps["fp32"]
    assert isinstance(reference, SideTimes), "eager FP32 always runs"
    widths = {
        width: compare_width(width, times, saved, peaks, layers.widths[width]) for width in WIDTHS
    }  # fmt: skip
    return ModelResult(
        model=name,
        batch=work.batch_size,
        image_size=work.image_size,
        images="synthetic: random pixels and labels",
        dispatch=work.dispatch,
        device=work.device,
        threads=times.threads,
        steps=steps,
        saved=saved,
        peak_bytes=peaks,
        peak_meaning=PEAK_MEANING[work.device.split(":")[0]],
        ceilings=layers.ceilings,
        fp32_lean=compare_lean(times),
        int8=widths["int8"],
        int4=widths["int4"],
        notices=(*busy_sentences(reference.step_ms, [reference.step_ms.median]), *_diverged(times)),
    )


def _diverged(times: StepTimes) -> tuple[str, ...]:
    if not times.not_finite:
        return ()
    return (f"The loss of {', '.join(times.not_finite)} left the finite numbers: its times are those of NaN.",)
