"""Profiles training steps of one side: spans in turn with plain steps, a counted step, and a few traced ones."""

from __future__ import annotations

import gc
import statistics
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench.profilers.phase_timer import PhaseTimer
from bench.profilers.span_timer import Place, Places, SpanTimer, watch_places
from bench.profilers.step_work import StepWork, count_work, phase_work, products_of
from bench.profilers.trace import TraceRanges, read_trace, record_trace
from bench.records.schema import Ceilings, SideProfile, SpanTime, TraceResult
from bench.training.assemble import Parts
from bench.training.drawn_layer import take_typical_layer
from bench.training.step import train_step

WARMUP_STEPS = 3  # a delayed update has nothing pending in its first, and a fresh process is slow
_SMALL_SHARE = 0.001  # of the step
Batches = Iterator[tuple[Tensor, Tensor]]


def profile_side(
    parts: Parts,
    stream: Batches,
    lr: float,
    device: torch.device,
    *,
    steps: int,
    ceilings: Ceilings,
    trace: Callable[[], TraceResult] | None = None,
) -> SideProfile:
    """Profile training steps; slim takes the same layer in each, so that its work and its time belong together.

    Args:
        parts: of the side; stepped in place.
        stream: endless batches.
        lr: learning rate.
        device: where they run.
        steps: with spans, and as many without in turn.
        ceilings: of the device, for the shares.
        trace: traces steps of this side, after all else.
    """
    parts.model.train()
    drawn_layer = take_typical_layer(parts)
    plain = PhaseTimer(device)
    for _ in range(WARMUP_STEPS):
        _step(parts, stream, lr, plain)
    work = count_step(parts, stream, lr)
    gc.collect()
    gc.freeze()  # as where steps are timed: no collection walks what stays
    try:
        phases_ms, plain_ms, unattributed_pct, spanned = _in_turn(parts, stream, lr, device, plain, steps)
    finally:
        gc.unfreeze()
    times = _medians(spanned)
    spanned_ms = tuple(float(step.total()) for step in spanned)
    return SideProfile(
        plain_step_ms=plain_ms,
        spanned_step_ms=spanned_ms,
        span_overhead_pct=100 * (statistics.median(spanned_ms) / statistics.median(plain_ms) - 1),
        unattributed_pct=unattributed_pct,
        phases_ms=phases_ms,
        spans=tuple(
            SpanTime(phase=place.phase, layer=place.layer, gemm=place.gemm, piece=place.piece, span_ms=span_ms)
            for place, span_ms in _with_small_together(times).items()
        ),
        span_rest_ms=statistics.median(spanned_ms) - times.total(),
        products=products_of(work, times, ceilings),
        work=phase_work(work, phases_ms, times, ceilings),
        trace=None if trace is None else trace(),
        drawn_layer=drawn_layer,
        trace_missing="" if trace is not None else "no folder was given for it",
    )


def count_step(parts: Parts, stream: Batches, lr: float) -> StepWork:
    """What the next step computes and moves."""
    with count_work(parts.model, autocast_bf16=parts.autocast_bf16) as (work, places):
        _step(parts, stream, lr, places)
    return work


def time_spans(parts: Parts, stream: Batches, lr: float, timer: SpanTimer) -> list[Counter[Place]]:
    """Milliseconds of every place in the next step."""
    places = Places(timer)
    with watch_places(places, parts.model):
        _step(parts, stream, lr, places)
    return timer.read()


def trace_steps(
    parts: Parts, stream: Batches, lr: float, device: torch.device, *, folder: Path, worker: str, steps: int = 1
) -> TraceResult:
    """Leave a trace of the next steps in ``folder``, and read it."""
    places = Places(TraceRanges(device))
    with record_trace(folder, worker, device) as trace, watch_places(places, parts.model):
        for _ in range(steps):
            with trace.step():
                _step(parts, stream, lr, places)
    return read_trace(trace)


def _in_turn(
    parts: Parts, stream: Batches, lr: float, device: torch.device, plain: PhaseTimer, steps: int
) -> tuple[dict[str, float], tuple[float, ...], float, list[Counter[Place]]]:
    plain.read()
    timer = SpanTimer(device)
    spanned: list[Counter[Place]] = []
    time_spans(parts, stream, lr, timer)  # the hooks' first use
    for turn in range(steps):
        for kind in ("spanned", "plain") if turn % 2 else ("plain", "spanned"):
            if kind == "plain":
                _step(parts, stream, lr, plain)
            else:
                spanned += time_spans(parts, stream, lr, timer)
    samples = plain.read()
    phases_ms = {name: statistics.median(values) for name, values in samples.phases_ms.items()}
    return phases_ms, samples.step_ms, samples.unattributed_pct, spanned


def _step(parts: Parts, stream: Batches, lr: float, phases: Any) -> None:
    with phases.step():
        with phases("data"):
            images, labels = next(stream)
        train_step(parts, images, labels, lr, phases)


def _with_small_together(times: Counter[Place]) -> Counter[Place]:
    """The same sums of phases and pieces; what is too short to be worth a row loses its layer."""
    least = times.total() * _SMALL_SHARE
    together: Counter[Place] = Counter()
    for place, span_ms in times.items():
        together[place if span_ms >= least else Place(place.phase, "", place.gemm, place.piece)] += span_ms
    return together


def _medians(steps: list[Counter[Place]]) -> Counter[Place]:
    """Median over steps of each place; 0 in a step without it."""
    places = dict.fromkeys(place for step in steps for place in step)
    return Counter({place: statistics.median(step[place] for step in steps) for place in places})
