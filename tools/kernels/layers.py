"""The per-layer table of ``metagrad-bench kernels``: what ran for each layer and GEMM, how fast, and where time goes.

Three sources are joined: the log of integer products (shapes, padding, path), spans inside whole training steps (time
per piece, layer and GEMM), and FP32's and bf16's own time for the same convolution or linear layer, alone. Operations
are counted from the layer's shapes, two per multiply-add, so that padding and a grouped kernel's zero blocks earn
nothing. See docs/kernels.md.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bench.kernels.int_mm import GemmCall, record_gemms
from bench.kernels.spans import PIECES, Span, record_spans
from bench.layers.base import GEMMS, LayerFacts
from bench.layers.convert import KeptLayer, quantized_layers
from bench.layers.dispatch import INT_MM, ran_as_integer
from bench.profilers.base import NO_PHASES
from bench.profilers.ceilings import Ceilings, measure_ceilings
from bench.profilers.phase_timer import Clock, CudaClock, HostClock, PhaseTimer
from bench.reporting import Report
from bench.training.step import train_step
from bench.units import Absent
from tools.kernels.sides import LEARNING_RATE, NUM_BATCHES, Work, build_side, make_batches, prepare

SHARED = "both backward"  # work that a layer does once for dgrad and wgrad, such as quantizing its error signal
OTHER = "other"
ALONE_BUDGET_S = 0.06  # for each product that is timed alone
ALONE_RUNS = (3, 9)
_NO_SPAN = Absent("no span was recorded")


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerWork:
    """What one layer has to compute in a step, whoever computes it."""

    name: str
    macs: int  # multiply-adds of one of its products; the three take equally many
    needs_dgrad: bool
    fp32_ms: dict[str, float]  # by GEMM, alone
    bf16_ms: dict[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerRow:
    """One layer and GEMM of the table."""

    layer: str
    gemm: str  # fprop, dgrad, wgrad, or SHARED
    calls: int  # integer products a step
    shape: tuple[int, int, int] | Absent  # M, K, N of the largest call
    padded: tuple[int, int, int] | Absent  # as it ran
    path: str  # the kernel that ran, or what ran in its place
    why: str  # the path that was chosen and why, or why the layer stayed in floating point
    gemm_ms: float | Absent  # the products alone, a step
    all_ms: float | Absent  # with quantizing, laying out and dequantizing for this layer and GEMM
    useful_gops: float | Absent  # 10**9 operations a second, by the layer's shapes, over gemm_ms
    ceiling: str  # the field of Ceilings that the share is of
    ceiling_share_pct: float | Absent
    copy_share_pct: float | Absent  # operands and result once each over gemm_ms, of the copy ceiling
    fp32_ms: float | Absent  # the same layer and GEMM alone
    bf16_ms: float | Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class WidthDetail:
    """The table of one width, and where its step's time goes."""

    layers: tuple[LayerRow, ...]
    pieces_ms: dict[str, float | Absent]  # by PIECES and OTHER; a step's, with spans on
    traced_step_ms: float
    untraced_step_ms: float
    tracing_overhead_pct: float


@dataclass(frozen=True, slots=True, kw_only=True)
class LayersAnswer:
    """What the pass answers."""

    ceilings: Ceilings
    widths: dict[str, WidthDetail]


def layers_pass(
    *, report: Report, work: Work, names: Sequence[str], steps: int, warmup_steps: int, ceiling_budget_s: float
) -> LayersAnswer:
    """Ceilings of the device, each layer's products alone in FP32 and bf16, then steps of each width with spans.

    Args:
        report: takes progress.
        work: what to train.
        names: integer sides.
        steps: steps with spans, and as many without in turn.
        warmup_steps: untimed steps of each width.
        ceiling_budget_s: seconds for each ceiling.
    """
    where = prepare(work)
    total = 2 + len(names)
    report({"phase": "ceilings", "done": 0, "total": total})
    ceilings = measure_ceilings(where, budget_s=ceiling_budget_s)
    report({"phase": "each layer alone in FP32 and bf16", "done": 1, "total": total})
    batches = make_batches(work, where)
    layers = measure_float_layers(build_side("fp32", work, batches[0][0]).model, batches[0][0])
    widths = {}
    for done, name in enumerate(names):
        report({"phase": f"layers of {name}", "done": 2 + done, "total": total})
        parts = build_side(name, work, batches[0][0])
        assert parts.conversion is not None, "an integer side is converted"
        for index in range(warmup_steps):
            train_step(parts, *batches[index % NUM_BATCHES], LEARNING_RATE, NO_PHASES)
        with record_gemms() as calls:
            train_step(parts, *batches[0], LEARNING_RATE, NO_PHASES)
        timers = {"traced": PhaseTimer(where), "untraced": PhaseTimer(where)}
        traced: list[list[Span]] = []
        for turn in range(steps):
            batch = batches[turn % NUM_BATCHES]
            for kind in sorted(timers, reverse=bool(turn % 2)):
                if kind == "untraced":
                    with timers[kind].step():
                        train_step(parts, *batch, LEARNING_RATE, NO_PHASES)
                    continue
                with record_spans(where) as spans, timers[kind].step():
                    train_step(parts, *batch, LEARNING_RATE, NO_PHASES)
                traced.append(spans)
        facts = [layer.facts() for layer in quantized_layers(parts.model).values()]  # paths were chosen by now
        widths[name] = join(
            layers, facts, parts.conversion.kept, calls, traced, ceilings,
            traced_ms=timers["traced"].read().step_ms, untraced_ms=timers["untraced"].read().step_ms,
        )  # fmt: skip
    return LayersAnswer(ceilings=ceilings, widths=widths)


def measure_float_layers(model: nn.Module, images: Tensor) -> list[LayerWork]:
    """Every convolution and linear layer in the order of execution, its products timed alone in FP32 and in bf16.

    Random operands of the layer's own shapes and memory format, no bias; a median of a few calls. Equal layers are
    timed once. A layer that runs several times in a step counts with the sum.
    """
    seen: list[tuple[str, Any, torch.Size, bool, int]] = []

    def hook(name: str) -> Any:
        def see(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            macs = output.numel() * (layer.weight.numel() // layer.weight.shape[0])
            seen.append((name, layer, inputs[0].shape, inputs[0].requires_grad, macs))

        return see

    candidates = [(name, layer) for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_hook(hook(name)) for name, layer in candidates]
    try:
        model(images)
    finally:
        for handle in handles:
            handle.remove()
    known: dict[str, dict[str, dict[str, float]]] = {}
    works: dict[str, LayerWork] = {}
    for name, layer, shape, needs_dgrad, macs in seen:
        key = f"{layer} {tuple(shape)} {needs_dgrad}"
        if key not in known:
            gemms = [gemm for gemm in GEMMS if gemm != "dgrad" or needs_dgrad]
            known[key] = {
                str(dtype): {gemm: _alone_ms(layer, shape, gemm, dtype, images.device) for gemm in gemms}
                for dtype in (torch.float32, torch.bfloat16)
            }
        fp32, bf16 = (Counter(times) for times in known[key].values())
        before = works.get(name)
        if before is not None:
            macs += before.macs
            needs_dgrad |= before.needs_dgrad
            fp32.update(before.fp32_ms)
            bf16.update(before.bf16_ms)
        works[name] = LayerWork(name=name, macs=macs, needs_dgrad=needs_dgrad, fp32_ms=dict(fp32), bf16_ms=dict(bf16))
    return list(works.values())


def join(
    layers: Sequence[LayerWork],
    swapped: Sequence[LayerFacts],
    untouched: Sequence[KeptLayer],
    calls: Sequence[GemmCall],
    traced: Sequence[Sequence[Span]],
    ceilings: Ceilings,
    *,
    traced_ms: Sequence[float],
    untraced_ms: Sequence[float],
) -> WidthDetail:
    """The table of one width.

    Args:
        layers: what each layer has to compute.
        swapped: what the integer layers say of themselves, after their paths were chosen.
        untouched: layers in floating point, with the reason.
        calls: products of integers of one step.
        traced: spans of each traced step; a figure is the median over steps of its sum within a step.
        ceilings: of the device.
        traced_ms: whole steps with spans.
        untraced_ms: whole steps without.
    """
    by_gemm: dict[tuple[str, str], list[GemmCall]] = defaultdict(list)
    for call in calls:
        by_gemm[call.layer, call.gemm].append(call)
    gemm_ms = _median_sums(traced, lambda span: (span.layer, span.gemm) if span.piece == "gemm" else None)
    all_ms = _median_sums(traced, lambda span: (span.layer, span.gemm))
    pieces_ms = _median_sums(traced, lambda span: (span.piece,))
    facts = {layer.name: layer for layer in swapped}
    kept = {layer.name: layer.reason for layer in untouched}
    rows = []
    for layer in layers:
        for gemm in (*GEMMS, SHARED):
            key = (layer.name, "" if gemm == SHARED else gemm)
            if gemm == SHARED and key not in all_ms:
                continue
            if gemm == "dgrad" and not layer.needs_dgrad and not by_gemm[key]:
                continue
            path = why = ""
            if gemm != SHARED:
                path = _path(by_gemm[key], facts.get(layer.name), gemm)
                why = kept.get(layer.name, "") or str(getattr(facts.get(layer.name), f"{gemm}_path", ""))
            times = gemm_ms.get(key, _NO_SPAN), all_ms.get(key, _NO_SPAN)
            rows.append(_row(layer, gemm, by_gemm[key], path, why, *times, ceilings))
    step_ms, plain_ms = statistics.median(traced_ms), statistics.median(untraced_ms)
    attributed = sum(pieces_ms.values())
    return WidthDetail(
        layers=tuple(rows),
        pieces_ms={
            **{piece: pieces_ms.get((piece,), _NO_SPAN) for piece in PIECES},
            OTHER: max(0.0, step_ms - attributed),
        },
        traced_step_ms=step_ms,
        untraced_step_ms=plain_ms,
        tracing_overhead_pct=100 * (step_ms / plain_ms - 1),
    )


def _row(
    layer: LayerWork,
    gemm: str,
    calls: Sequence[GemmCall],
    path: str,
    why: str,
    gemm_ms: float | Absent,
    all_ms: float | Absent,
    ceilings: Ceilings,
) -> LayerRow:
    largest = max(calls, key=lambda call: call.macs, default=None)
    integer = ran_as_integer(path)
    ceiling = ceilings.int8_gops if integer else ceilings.fp32_gflops
    gops: float | Absent = _NO_SPAN
    rate: float | Absent = _NO_SPAN
    if gemm == SHARED:
        gemm_ms = gops = rate = Absent("no product")
    elif not isinstance(gemm_ms, Absent):
        gops = 2 * layer.macs / gemm_ms / 1e6
        rate = _copy_rate(calls, gemm_ms)
    nothing = Absent("no integer product ran")
    return LayerRow(
        layer=layer.name,
        gemm=gemm,
        calls=len(calls),
        shape=nothing if largest is None else (largest.m, largest.k, largest.n),
        padded=nothing if largest is None else largest.padded,
        path=path,
        why=why,
        gemm_ms=gemm_ms,
        all_ms=all_ms,
        useful_gops=gops,
        ceiling="int8_gops" if integer else "fp32_gflops",
        ceiling_share_pct=_share_pct(gops, ceiling),
        copy_share_pct=_share_pct(rate, ceilings.copy_gb_s),
        fp32_ms=layer.fp32_ms.get(gemm, Absent("no product")),
        bf16_ms=layer.bf16_ms.get(gemm, Absent("no product")),
    )


def _path(calls: Sequence[GemmCall], facts: LayerFacts | None, gemm: str) -> str:
    """What the log says, else what the layer says."""
    if calls:
        return " and ".join(dict.fromkeys(call.path for call in calls))
    return "float" if facts is None else getattr(facts, gemm)


def _copy_rate(calls: Sequence[GemmCall], gemm_ms: float) -> float | Absent:
    """Both int8 operands and the int32 result, once each, in 10⁹ bytes a second."""
    if not calls or not all(call.path.startswith(INT_MM) for call in calls):
        return Absent("no product of two matrices, whose sizes would say what is moved")
    moved = sum(m * k + k * n + 4 * m * n for m, k, n in (call.padded for call in calls))
    return moved / gemm_ms / 1e6


def _share_pct(value: float | Absent, ceiling: float | Absent) -> float | Absent:
    if isinstance(value, Absent):
        return value
    return ceiling if isinstance(ceiling, Absent) else 100 * value / ceiling


def _median_sums(
    traced: Sequence[Sequence[Span]], key_of: Callable[[Span], tuple[str, ...] | None]
) -> dict[tuple[str, ...], float]:
    """Median over steps of what a key's spans take together within a step."""
    sums = []
    for spans in traced:
        step: Counter[tuple[str, ...]] = Counter()
        for span in spans:
            key = key_of(span)
            if key is not None:
                step[key] += span.span_ms  # type: ignore[assignment]
        sums.append(step)
    keys = {key for step in sums for key in step}
    return {key: float(statistics.median(step[key] for step in sums)) for key in keys}


def _alone_ms(layer: nn.Module, shape: torch.Size, gemm: str, dtype: torch.dtype, device: torch.device) -> float:
    """Median time of one product of a layer by itself: autograd asked for one gradient runs that product alone."""
    layer = copy.deepcopy(layer).to(dtype)
    layer.requires_grad_(False)
    x = torch.randn(shape, device=device).to(dtype)
    if x.dim() == 4:
        x = x.contiguous(memory_format=torch.channels_last)
    if gemm == "fprop":
        return _median_ms(lambda: layer(x), device)
    wanted = x if gemm == "dgrad" else layer.get_parameter("weight")
    wanted.requires_grad_(True)
    y = layer(x)
    error = torch.randn_like(y)
    return _median_ms(lambda: torch.autograd.grad(y, wanted, error, retain_graph=True), device)


def _median_ms(run: Callable[[], Any], device: torch.device) -> float:
    clock: Clock = CudaClock(device) if device.type == "cuda" else HostClock()
    run()  # the first call plans and allocates
    deadline = time.perf_counter() + ALONE_BUDGET_S
    times: list[float] = []
    least, most = ALONE_RUNS
    while len(times) < least or (len(times) < most and time.perf_counter() < deadline):
        start = clock.mark()
        run()
        end = clock.mark()
        clock.settle(end)
        times.append(clock.elapsed_ms(start, end))
        clock.release([start, end])
    return statistics.median(times)
