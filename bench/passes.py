"""The passes of a cell, each a module-level function that runs in a fresh process and answers plain, frozen values.

check: self-check of the integer GEMM, one counted training step, facts of model and data.
pretrain: the FP32 weights that the cells of a model, data set and seed share.
timing: blocks of the cell's steps alternating with blocks of FP32 steps.
memory: peaks of a few steps. profile: a few steps by layer and product, and a trace. accuracy: the training itself.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import hashlib
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from bench.config import FLOAT_BITS, CellConfig
from bench.data import build_data, eval_batches, train_batches
from bench.data.loader import EvalStream, TrainStream
from bench.errors import DataError, DivergedError, RecordError
from bench.files import DamagedFileError
from bench.hypernets import Hypernet, layer_scales
from bench.kernels.int_mm import GemmCall, record_gemms
from bench.kernels.selfcheck import check_device
from bench.layers.convert import quantized_layers
from bench.layers.dispatch import Paths
from bench.methods import build_method
from bench.profilers.base import NO_PHASES
from bench.profilers.ceilings import measure_ceilings
from bench.profilers.gemm_count import FloatProductCounter, integer_layers, record_layer_macs
from bench.profilers.memory import (
    MemoryMeter,
    MemoryPeaks,
    UntouchedWorkspaces,
    keep_large_blocks_apart,
    load_libraries,
)
from bench.profilers.memory_categories import MemoryProfile
from bench.profilers.phase_timer import PhaseTimer
from bench.quantizers import AdaptiveQuantizer
from bench.records.schema import (
    SCHEMA_VERSION,
    Ceilings,
    DataFacts,
    GemmResult,
    HypernetSurface,
    Label,
    LayerFacts,
    ModelFacts,
    ProfileResult,
    SideProfile,
    SurfaceAxis,
    TimingRepeat,
)
from bench.records.surface import is_finite
from bench.seeding import seed_globals
from bench.timing import MARK_REPEATS, Sampled, Side, energy_windows, mark_budget_s, sample_in_turn, time_phase_marks
from bench.training.assemble import Parts, as_fp32, build_parts, for_pretraining
from bench.training.checkpoint import Checkpoints, seal_state, unseal_state
from bench.training.drawn_layer import take_largest_layer
from bench.training.history import FitResult
from bench.training.loop import evaluate, fit
from bench.training.memory import snapshot_steps, track_steps
from bench.training.profile import profile_side, trace_steps
from bench.training.shapes import bound_hypernet_bytes, track_shapes
from bench.training.step import train_step
from bench.units import Absent
from bench.update import TabulationSample, surface_axes, surface_output, surface_values
from bench.update.delayed import finite_or_absent
from bench.update.tabulate import widest

if TYPE_CHECKING:
    from bench.data import AnyData

Report = Callable[[dict[str, Any]], None]
_UNFINISHED = Absent("the training did not come to its end")
CEILING_BUDGET_S = 0.4  # for each of the four


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckAnswer:
    """Facts that every record of the cell carries."""

    model: ModelFacts
    data: DataFacts
    gemms: GemmResult
    hypernet_parameters: int
    paths: Paths  # what dispatch=auto chose; empty otherwise


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryAnswer:
    """What a few steps held; `snapshot` names the file of the allocator's history."""

    peaks: MemoryPeaks
    profile: MemoryProfile
    snapshot: str | Absent
    hypernet_bound_bytes: int | Absent
    untouched_bytes: int | Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyAnswer:
    """What the training left; `accuracy_pct` is absent for synthetic data."""

    fit: FitResult
    accuracy_pct: float | Absent
    pretrained_pct: float | Absent
    observed: dict[str, float | Absent]
    error_bits_used: dict[str, dict[str, int]]  # by layer and width, where the method chooses the width
    weights_digest: str | Absent = _UNFINISHED
    surface: HypernetSurface | None = None  # of the hypernetwork; None without one, or where it is not finite


def check_pass(*, report: Report, cell: CellConfig, device: str) -> CheckAnswer:
    """Self-check the integer GEMM, convert the model, count the products of one training step.

    Raises:
        HardwareError: the device's integer product is wrong.
    """
    report({"phase": "self-check"})
    where, data = _prepare(cell, device)
    if build_method(cell).low_bit and cell.dispatch != "simulate":
        check_device(where)
    parts = build_parts(cell, data, where)
    batches = _batches(cell, data, where)
    parts.model.train()
    floats = FloatProductCounter()
    with record_layer_macs(parts.model) as macs:
        train_step(parts, *batches.batch(0, 0), cell.optimizer.lr, NO_PHASES)  # a hypernetwork first acts in the second
        with record_gemms() as calls, floats:
            train_step(parts, *batches.batch(0, batches.steps_per_epoch - 1), cell.optimizer.lr, floats.phases)
    ran = integer_layers(calls)
    low_bits = [bits for bits in (cell.weight_bits, cell.activation_bits, cell.error_bits) if bits < 32]
    layers = _layer_facts(parts, calls)
    labels_ran = {label for layer in layers for label in (layer.fprop, layer.wgrad)}
    label = next((name for name in ("emulated", "integer", "simulated") if name in labels_ran), "float")
    assert not calls or low_bits, "integer products ran in a floating-point cell"
    return CheckAnswer(
        model=ModelFacts(
            name=cell.model.name,
            num_parameters=sum(parameter.numel() for parameter in parts.model.parameters()),
            num_quantized_weights=sum(weight.numel() for weight in parts.weights),
            layers=layers,
        ),
        data=_data_facts(data),
        gemms=GemmResult(
            integer_calls={kind: len(names) for kind, names in ran.items()},
            float_calls=floats.calls,
            integer_share_pct=_integer_share_pct(layers, ran, macs),
            hypernet_float_macs=floats.hypernet_macs,
            label=cast(Label, label),
        ),
        hypernet_parameters=sum(p.numel() for p in parts.delayed.hypernet.parameters()) if parts.delayed else 0,
        paths={name: dict(layer.paths) for name, layer in quantized_layers(parts.model).items() if layer.paths},
    )


def pretrain_pass(*, report: Report, cell: CellConfig, device: str, target: str, resume: str) -> float | Absent:
    """Train the FP32 model from random weights and leave its state dict and notices at `target`, sealed.

    Args:
        report: takes progress.
        cell: any of the cells that start from these weights.
        device: where to train.
        target: file of the weights.
        resume: folder of the training's checkpoints.

    Returns:
        Its test accuracy in percent; absent for synthetic data.
    """
    path = Path(target)
    checkpoints = Checkpoints(Path(resume), owner=path.name, every_s=cell.protocol.checkpoint_s)
    cell = for_pretraining(cell)
    where, data = _prepare(cell, device)
    parts = build_parts(cell, data, where)
    test = _test_batches(cell, data, where)
    result = fit(
        parts, _batches(cell, data, where), None, cell.optimizer,
        epochs=cell.protocol.epochs, phase="pretraining FP32", report=_without_partial(report), checkpoints=checkpoints,
    )  # fmt: skip
    assert result.losses, "pretraining ran no step"
    accuracy: float | Absent = Absent("synthetic data has no accuracy")
    if not data.synthetic:
        accuracy = evaluate(parts, test, beat=lambda: report({"phase": "evaluating FP32"}))
    state = {name: value.detach().cpu().contiguous() for name, value in parts.model.state_dict().items()}
    accuracy_pct = None if isinstance(accuracy, Absent) else accuracy
    try:
        seal_state(path, {"state": state, "accuracy_pct": accuracy_pct, "notices": list(result.notices)})
    except OSError as error:
        raise RecordError(
            f"the FP32 weights cannot be written to {path.parent}: {error.strerror or error}; free space or choose "
            "another output_dir."
        ) from error
    checkpoints.remove()
    return accuracy


def timing_pass(
    *,
    report: Report,
    cell: CellConfig,
    device: str,
    weights: str | None,
    paths: Paths | None = None,
    repeat: int,
    energy_window_s: float = 0.0,
) -> TimingRepeat:
    """Blocks of the cell's steps alternate with blocks of FP32 steps, on the same batches, in one process.

    Args:
        report: takes progress.
        cell: the checked config.
        device: where to run.
        weights: the FP32 weights to start from.
        paths: what dispatch=auto chose in the check.
        repeat: number of this process; every other one builds and starts with the FP32 side.
        energy_window_s: length of the windows for energy, 0 where the device counts none.
    """
    where, data = _prepare(cell, device)
    state = _load(weights)
    configs = {"cell": cell, "fp32": as_fp32(cell)}
    sides = [
        Side(
            name=name,
            parts=build_parts(configs[name], data, where, initial_state=state, paths=paths),
            stream=_endless(_batches(cell, data, where)),
            lr=cell.optimizer.lr,
            timer=PhaseTimer(where),
        )
        for name in sorted(configs, reverse=bool(repeat % 2))
    ]

    def report_samples(progress: dict[str, Any]) -> None:
        so_far = progress.get("partial")
        report(progress if so_far is None else progress | {"partial": lambda: _timing_repeat(so_far())})

    sampled = sample_in_turn(sides, cell.protocol, report=report_samples, phase=f"timing {repeat + 1}")
    by_name = {side.name: side for side in sides}
    marked, unmarked = time_phase_marks(by_name["cell"], budget_s=mark_budget_s(sampled))
    if energy_window_s:
        report({"phase": f"energy {repeat + 1}"})
        sampled.windows += energy_windows(by_name["cell"], by_name["fp32"], window_s=energy_window_s)
    return dataclasses.replace(
        _timing_repeat(sampled), marked_step_ms=marked, unmarked_step_ms=unmarked, mark_repeats=MARK_REPEATS
    )


def _timing_repeat(sampled: Sampled) -> TimingRepeat:
    """The samples of a process as the record keeps them."""
    blocks = sampled.blocks["cell"]
    names = list(dict.fromkeys(phase for block in blocks for phase in block.phases_ms))
    unwatched = Absent(reason="the process that trains does not watch itself; its parent does")
    return TimingRepeat(
        step_ms=sampled.step_ms("cell"),
        fp32_step_ms=sampled.step_ms("fp32"),
        phases_ms={
            phase: tuple(value for block in blocks for value in block.phases_ms.get(phase, (0.0,) * len(block.step_ms)))
            for phase in names
        },
        throttled=unwatched,
        stopped_by=sampled.stopped_by or Absent("the process ended before its sampling did"),
        half_width_pct=sampled.half_width_pct
        if 0 < sampled.half_width_pct < math.inf
        else Absent("fewer than six blocks have no 95 % interval"),
        windows=tuple(sampled.windows),
        throttled_steps=unwatched,
    )


def memory_pass(
    *,
    report: Report,
    cell: CellConfig,
    device: str,
    weights: str | None,
    paths: Paths | None = None,
    name: str,
    snapshot: str | None = None,
) -> MemoryAnswer:
    """Peaks of a few training steps, model and optimizer included; then as many steps told apart by category.

    Slim takes its largest layer in each. The data set, which batches are drawn from, is let go before.

    Args:
        report: told about each step.
        cell: the cell.
        device: as torch names it.
        weights: file of the FP32 weights to start from; None: random ones.
        paths: what dispatch=auto chose in the check.
        name: of the measurement, for the progress bar.
        snapshot: on CUDA, the file to keep the allocator's history in.
    """
    keep_large_blocks_apart()
    where, data = _prepare(cell, device)
    parts = build_parts(cell, data, where, initial_state=_load(weights), paths=paths)
    parts.model.train()
    take_largest_layer(parts)
    stream = _endless(_batches(cell, data, where))
    count, lr = cell.protocol.memory_steps, cell.optimizer.lr
    drawn = [[next(stream) for _ in range(count)] for _ in range(2)]
    del stream, data
    load_libraries()
    # The process first: counting storages imports modules of torch (tens of MiB) that belong to no step.
    with MemoryMeter(where, track=False) as meter:
        for done, (images, labels) in enumerate(drawn[0]):
            train_step(parts, images, labels, lr, NO_PHASES)
            report({"phase": f"memory {name}", "done": done + 1, "total": 2 * count})
    peaks = meter.peaks()
    kept: str | Absent = Absent("only CUDA's allocator keeps a history")
    if snapshot is not None and where.type == "cuda":
        snapshot_steps(parts, drawn[0], lr, Path(snapshot))
        kept = Path(snapshot).name
    bound = _hypernet_bound(cell, parts, drawn[0][0][0])
    untouched: int | Absent = Absent("only a CPU's LSTM allocates what it does not touch")
    if where.type == "cpu" and parts.delayed is not None:
        with UntouchedWorkspaces() as workspaces:
            train_step(parts, *drawn[0][0], lr, NO_PHASES)
        untouched = workspaces.untouched_bytes
    drawn.pop(0)
    tracker = track_steps(parts, drawn.pop(), lr, where)
    report({"phase": f"memory {name}", "done": 2 * count, "total": 2 * count})
    if where.type == "cpu":
        peaks = dataclasses.replace(peaks, peak_allocated_bytes=tracker.peak_allocated_bytes)
    return MemoryAnswer(
        peaks=peaks, profile=tracker.profile(), snapshot=kept, hypernet_bound_bytes=bound, untouched_bytes=untouched
    )


def _hypernet_bound(cell: CellConfig, parts: Parts, images: Tensor) -> int | Absent:
    """What the hypernetwork can add at most, computed on shapes; a user's network may not run on them."""
    if parts.delayed is None:
        return Absent("the method has no hypernetwork")
    batch_size, *image_shape = images.shape
    try:
        tracker = track_shapes(
            parts, batch_size=batch_size, image_shape=(image_shape[0], image_shape[1], image_shape[2]),
            device=torch.device("cpu" if images.device.type == "cpu" else "meta"), lr=cell.optimizer.lr,
        )  # fmt: skip
    except Exception as error:
        if cell.model.name != "custom":
            raise
        return Absent(f"the network does not run on tensor shapes: {str(error).splitlines()[0][:200]}")
    return bound_hypernet_bytes(tracker, parts)


def ceilings_pass(*, report: Report, cell: CellConfig, device: str) -> Ceilings:
    """Measure the device's ceilings with the cell's number of threads."""
    report({"phase": "ceilings"})
    return measure_ceilings(_device(cell, device), budget_s=CEILING_BUDGET_S)


def profile_pass(
    *,
    report: Report,
    cell: CellConfig,
    device: str,
    weights: str | None,
    paths: Paths | None = None,
    ceilings: Ceilings,
    folder: str,
) -> ProfileResult:
    """A few steps of the cell, then of FP32, by layer, product and piece, counted and traced.

    Args:
        report: takes progress.
        cell: the checked config.
        device: where to run.
        weights: the FP32 weights to start from.
        paths: what dispatch=auto chose in the check.
        ceilings: of the device.
        folder: for the traces, one file a side.
    """
    where, data = _prepare(cell, device)
    state = _load(weights)
    sides: dict[str, SideProfile] = {}
    configs = {"cell": cell, "fp32": as_fp32(cell)}
    is_reference = cell.method.name == "fp32"
    for done, (name, config) in enumerate(configs.items()):
        if name == "fp32" and is_reference:
            sides[name] = sides["cell"]
            break
        report({"phase": f"profile, {name}", "done": done, "total": 2 - is_reference})
        parts = build_parts(config, data, where, initial_state=state, paths=paths)
        stream, lr = _endless(_batches(cell, data, where)), cell.optimizer.lr
        trace = functools.partial(trace_steps, parts, stream, lr, where, folder=Path(folder), worker=name)
        sides[name] = profile_side(
            parts, stream, lr, where, steps=cell.protocol.profile_steps, ceilings=ceilings, trace=trace
        )
    return ProfileResult(ceilings=ceilings, cell=sides["cell"], fp32=sides["fp32"])


def accuracy_pass(
    *,
    report: Report,
    cell: CellConfig,
    device: str,
    weights: str | None,
    paths: Paths | None = None,
    resume: tuple[str, str] | None = None,
) -> AccuracyAnswer:
    """Fine-tune from the pretrained weights (or train from random ones) and test.

    Args:
        report: takes progress; under ``partial`` an AccuracyAnswer of what there is so far.
        cell: the checked config.
        device: where to run.
        weights: the FP32 weights to start from.
        paths: what dispatch=auto chose in the check.
        resume: folder of the training's checkpoints and what they are of; None takes none.

    Raises:
        DivergedError: with an AccuracyAnswer of what there was in ``partial``.
    """
    where, data = _prepare(cell, device)
    parts = build_parts(cell, data, where, initial_state=_load(weights), paths=paths)
    test = None if data.synthetic else _test_batches(cell, data, where)
    pretrained: float | Absent = Absent("training started from random weights")
    if weights is not None:
        stored = _read_weights(weights)["accuracy_pct"]
        pretrained = Absent("synthetic data has no accuracy") if stored is None else stored
    sizes = [weight.numel() for weight in parts.weights]
    untrained = copy.deepcopy(parts.delayed.hypernet) if parts.delayed is not None else None

    def report_answer(progress: dict[str, Any]) -> None:
        so_far = progress.get("partial")
        if so_far is not None:
            answer = _accuracy_answer(parts, so_far, pretrained, sizes)
            progress = progress | {"partial": dataclasses.replace(answer, accuracy_pct=_UNFINISHED)}
        report(progress)

    checkpoints = None
    if resume is not None:
        checkpoints = Checkpoints(Path(resume[0]), owner=resume[1], every_s=cell.protocol.checkpoint_s)
    try:
        result = fit(
            parts, _batches(cell, data, where), test, cell.optimizer,
            epochs=cell.protocol.epochs, phase="training", report=report_answer,
            observe_every=cell.hypernet.observe_every, sample_every=cell.strategy.sample_every, checkpoints=checkpoints,
        )  # fmt: skip
    except DivergedError as error:
        error.partial = _accuracy_answer(parts, error.partial, pretrained, sizes)
        raise
    answer = _accuracy_answer(parts, result, pretrained, sizes)
    answer = dataclasses.replace(answer, weights_digest=_weights_digest(parts.model))
    return answer if untrained is None else dataclasses.replace(answer, surface=_surface(parts, untrained))


def _surface(parts: Parts, untrained: Hypernet) -> HypernetSurface | None:
    """f_psi as it was before the training and is after it, over the last step's ranges; None if it cannot be told."""
    delayed = parts.delayed
    assert delayed is not None, "only a method with a hypernetwork has a surface"
    if delayed.pending is None:
        return None
    scales = [layer_scales(g, w.detach()) for g, w in zip(delayed.pending, delayed.params, strict=True)]
    half = delayed.hypernet.half_widths(widest(scales))
    tables = [surface_values(hypernet, half).tolist() for hypernet in (untrained, delayed.hypernet)]
    before, after = (tuple(tuple(row) for row in table) for table in tables)
    surface = HypernetSurface(
        schema_version=SCHEMA_VERSION,
        axes=tuple(SurfaceAxis(name=name, values=tuple(v)) for name, v in surface_axes(delayed.hypernet, half)),
        output=surface_output(delayed.hypernet),
        before=before,
        after=after,
    )
    return surface if is_finite(surface) else None


def _accuracy_answer(
    parts: Parts, result: FitResult, pretrained: float | Absent, layer_sizes: list[int]
) -> AccuracyAnswer:
    observed: dict[str, float | Absent] = {}
    if result.observation is not None:
        for key in ("amplification", "cosine", "zero_share"):
            values = getattr(result.observation, key)
            finite = values[values.isfinite()]
            observed[key] = (
                float(finite.mean())
                if finite.numel()
                else Absent("no layer's gradient and what replaced it were finite and above zero")
            )
        norm = float(result.observation.meta_gradient_norm)
        observed["meta_grad_norm"] = norm if math.isfinite(norm) else Absent("the meta-gradient is not finite")
        observed |= _tabulation(result.observation.tabulation, layer_sizes)
    return AccuracyAnswer(
        fit=_without_tensors(result),
        accuracy_pct=result.curve[-1].test_accuracy_pct if result.curve else Absent("no epoch was finished"),
        pretrained_pct=pretrained,
        observed=observed,
        error_bits_used={
            name: {str(bits): steps for bits, steps in layer.error_quantizer.steps_at_bits.items()}
            for name, layer in quantized_layers(parts.model).items()
            if isinstance(layer.error_quantizer, AdaptiveQuantizer)
        },
    )


def _tabulation(sample: TabulationSample | None, layer_sizes: list[int]) -> dict[str, float | Absent]:
    """How `tabulate` compared with the exact strategy; empty where another strategy ran."""
    if sample is None:
        return {}
    same: float | Absent = Absent("nothing is rounded after the hypernetwork")
    if sample.same_codes is not None:
        shares = sample.same_codes.tolist()
        same = sum(size * share for size, share in zip(layer_sizes, shares, strict=True)) / sum(layer_sizes)
    angle = float(sample.meta_angle_deg)
    return {
        "interpolation_error": finite_or_absent(sample.error, "the interpolation error is not finite"),
        "same_codes": same,
        "meta_angle_deg": finite_or_absent(angle, "the meta-gradient is zero or not finite"),
    }


def _without_partial(report: Report) -> Report:
    """A sink for a training whose result so far nobody keeps."""
    return lambda progress: report({key: value for key, value in progress.items() if key != "partial"})


def _weights_digest(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of parameters and buffers."""
    digest = hashlib.sha256()
    for name, value in sorted((*model.named_parameters(), *model.named_buffers())):
        digest.update(f"|{name} {value.dtype} {tuple(value.shape)}|".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _without_tensors(result: FitResult) -> FitResult:
    return dataclasses.replace(result, observation=None)


def _device(cell: CellConfig, device: str) -> torch.device:
    if cell.protocol.threads is not None:
        torch.set_num_threads(cell.protocol.threads)
    seed_globals(cell.seed)  # for a user's network that draws from them: dropout, for one
    where = torch.device(device)
    if where.type == "cuda":
        torch.cuda.set_device(where)
    return where


def _prepare(cell: CellConfig, device: str) -> tuple[torch.device, AnyData]:
    where = _device(cell, device)
    config = cell.data
    data = build_data(
        config.name, root=config.root, download=config.download, image_size=config.image_size,
        train_limit=config.train_limit, test_limit=config.test_limit,
    )  # fmt: skip
    return where, data


def _batches(cell: CellConfig, data: AnyData, device: torch.device) -> TrainStream:
    return train_batches(
        data, batch_size=cell.protocol.batch_size, seed=cell.seed, device=device, augment=cell.protocol.augment,
        workers=cell.data.workers,
    )  # fmt: skip


def _test_batches(cell: CellConfig, data: AnyData, device: torch.device) -> EvalStream:
    return eval_batches(data, batch_size=cell.protocol.batch_size, device=device, workers=cell.data.workers)


def _endless(batches: TrainStream) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1


def _integer_share_pct(layers: tuple[LayerFacts, ...], ran: dict[str, set[str]], macs: dict[str, int]) -> float:
    """Share of the layers' multiply-accumulates that ran as integers, in percent."""
    integer = sum(macs[name] for names in ran.values() for name in names)
    total = sum(macs[layer.name] * (2 if isinstance(layer.dgrad, Absent) else 3) for layer in layers)
    return 100.0 * integer / total


def _layer_facts(parts: Parts, calls: list[GemmCall]) -> tuple[LayerFacts, ...]:
    """Every convolution and linear layer in the model's order: what ran in it, or why it stayed in floating point."""
    without_dgrad = Absent("its input needs no gradient")
    # Asked after the steps: an adaptive quantizer's bits are those that it has come to.
    quantized = quantized_layers(parts.model)
    swapped = {name: layer.facts() for name, layer in quantized.items()}
    kept = {layer.name: layer.reason for layer in parts.conversion.kept} if parts.conversion else {}
    with_dgrad = {call.layer for call in calls if call.gemm == "dgrad"}
    table: list[LayerFacts] = []
    for name, module in parts.model.named_modules():
        if name in swapped:
            facts = swapped[name]
            skipped = facts.dgrad in ("integer", "emulated") and name not in with_dgrad
            first = facts.dgrad in ("float", "simulated") and not table
            table.append(
                LayerFacts(
                    name=name,
                    kind=facts.kind,
                    quantized=True,
                    reason="",
                    weight_shape=tuple(module.weight.shape),
                    weight_bits=facts.weight_bits,
                    activation_bits=facts.activation_bits,
                    error_bits=facts.error_bits,
                    fprop=cast(Label, facts.fprop),
                    dgrad=without_dgrad if skipped or first else cast(Label, facts.dgrad),
                    wgrad=cast(Label, facts.wgrad),
                    fprop_path=facts.fprop_path,
                    dgrad_path="" if skipped or first else facts.dgrad_path,
                    wgrad_path=facts.wgrad_path,
                    error=facts.error if facts.error_bits != FLOAT_BITS else "",
                    error_quantizations=min(facts.error_quantizations, 1 if skipped or first else 2),
                )
            )
        elif isinstance(module, nn.Conv2d | nn.Linear):
            table.append(
                LayerFacts(
                    name=name,
                    kind=type(module).__name__.lower(),
                    quantized=False,
                    reason=kept.get(name, "a floating-point method"),
                    weight_shape=tuple(module.weight.shape),
                    weight_bits=32,
                    activation_bits=32,
                    error_bits=32,
                    fprop="float",
                    dgrad="float" if table else without_dgrad,
                    wgrad="float",
                    error_quantizations=0,
                )
            )
    return tuple(table)


def _data_facts(data: AnyData) -> DataFacts:
    return DataFacts(
        name=data.name,
        synthetic=data.synthetic,
        train_samples=data.num_train,
        test_samples=data.num_test,
        image_shape=data.image_shape,
        num_classes=data.num_classes,
        source=data.source,
        fingerprint=data.fingerprint,
    )


def _load(weights: str | None) -> dict[str, Tensor] | None:
    return None if weights is None else _read_weights(weights)["state"]


def _read_weights(path: str) -> dict[str, Any]:
    try:
        content = unseal_state(Path(path))
        return {key: content[key] for key in ("state", "accuracy_pct")}
    except (DamagedFileError, KeyError, OSError) as error:
        why = f"it has no {error}" if isinstance(error, KeyError) else getattr(error, "strerror", None) or error
        raise DataError(
            f"the pretrained weights in {path} cannot be read ({why}): delete the file and run again."
        ) from error
