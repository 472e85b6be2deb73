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
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from bench.config import CellConfig
from bench.data import build_data, eval_batches, train_batches
from bench.data.loader import EvalStream, TrainStream
from bench.errors import DataError, DivergedError, RecordError
from bench.files import DamagedFileError
from bench.kernels.int_mm import record_gemms
from bench.kernels.selfcheck import check_device
from bench.kernels.workspace import clear_workspace
from bench.layers.convert import quantized_layers
from bench.layers.dispatch import Paths
from bench.methods import build_method
from bench.outcome import UNFINISHED, AccuracyAnswer, accuracy_answer, measure_surface, weights_digest
from bench.profilers.base import NO_PHASES
from bench.profilers.ceilings import measure_ceilings
from bench.profilers.gemm_count import FloatProductCounter, integer_layers, record_layer_macs
from bench.profilers.memory import (
    MemoryMeter,
    MemoryPeaks,
    UntouchedWorkspaces,
    give_back_memory,
    keep_large_blocks_apart,
    load_libraries,
)
from bench.profilers.memory_categories import MemoryProfile
from bench.profilers.phase_timer import PhaseTimer
from bench.records.schema import (
    Ceilings,
    DataFacts,
    GemmResult,
    Label,
    ModelFacts,
    ProfileResult,
    SideProfile,
    TimingRepeat,
)
from bench.seeding import seed_globals
from bench.timing import MARK_REPEATS, Sampled, Side, energy_windows, mark_budget_s, sample_in_turn, time_phase_marks
from bench.training.assemble import Parts, as_fp32, build_parts, for_pretraining
from bench.training.checkpoint import Checkpoints, seal_weights, unseal_weights
from bench.training.drawn_layer import take_largest_layer
from bench.training.facts import data_facts, integer_share_pct, layer_facts
from bench.training.loop import evaluate, fit
from bench.training.memory import snapshot_steps, track_steps
from bench.training.profile import profile_side, trace_steps
from bench.training.shapes import bound_hypernet_bytes, track_shapes
from bench.training.step import train_step
from bench.units import Absent

if TYPE_CHECKING:
    from bench.data import AnyData

Report = Callable[[dict[str, Any]], None]
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
    warm_process_bytes: int | Absent  # the process's peak again, after another cell's steps


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
    layers = layer_facts(parts, calls)
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
        data=data_facts(data),
        gemms=GemmResult(
            integer_calls={kind: len(names) for kind, names in ran.items()},
            float_calls=floats.calls,
            integer_share_pct=integer_share_pct(layers, ran, macs),
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
        seal_weights(path, state, accuracy_pct=accuracy_pct, notices=result.notices)
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
    beside: CellConfig | None = None,
    snapshot: str | None = None,
) -> MemoryAnswer:
    """Peaks of a few training steps, model and optimizer included; then as many steps told apart by category.

    Slim takes its largest layer in each. The data set, which batches are drawn from, is let go before. Where the
    process is to be compared with another cell's, that cell's steps run here once and this cell's again: code and
    caches of libraries are then in both processes, and the second peaks differ by what the steps hold.

    Args:
        report: told about each step.
        cell: the cell.
        device: as torch names it.
        weights: file of the FP32 weights to start from; None: random ones.
        paths: what dispatch=auto chose in the check.
        name: of the measurement, for the progress bar.
        beside: the cell that this one's process is compared with: its steps run here too, then these again.
        snapshot: on CUDA, the file to keep the allocator's history in.
    """
    keep_large_blocks_apart()
    where, data = _prepare(cell, device)
    parts = _parts_for_memory(cell, data, where, weights, paths)
    stream = _endless(_batches(cell, data, where))
    count, lr = cell.protocol.memory_steps, cell.optimizer.lr
    steps = itertools.count(1)
    total = count * (2 if beside is None else 4)

    def beat() -> None:
        report({"phase": f"memory {name}", "done": next(steps), "total": total})

    drawn = [[next(stream) for _ in range(count)] for _ in range(2)]
    del stream, data
    load_libraries()
    # The process first: counting storages imports modules of torch (tens of MiB) that belong to no step.
    with MemoryMeter(where, track=False) as meter:
        _take_steps(parts, drawn[0], lr, beat)
    peaks = meter.peaks()
    warm: int | Absent = Absent("no other cell was run beside it")
    if beside is not None:
        del parts  # one cell at a time
        _take_steps(_parts_for_memory(beside, _prepare(beside, device)[1], where, weights, paths), drawn[0], lr, beat)
        parts = _parts_for_memory(cell, _prepare(cell, device)[1], where, weights, paths)
        clear_workspace()
        give_back_memory()
        with MemoryMeter(where, track=False) as meter:
            _take_steps(parts, drawn[0], lr, beat)
        warm = meter.peaks().peak_process_bytes
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
    report({"phase": f"memory {name}", "done": total, "total": total})
    if where.type == "cpu":
        peaks = dataclasses.replace(peaks, peak_allocated_bytes=tracker.peak_allocated_bytes)
    return MemoryAnswer(
        peaks=peaks, profile=tracker.profile(), snapshot=kept, hypernet_bound_bytes=bound, untouched_bytes=untouched,
        warm_process_bytes=warm,
    )  # fmt: skip


def _parts_for_memory(
    cell: CellConfig, data: AnyData, device: torch.device, weights: str | None, paths: Paths | None
) -> Parts:
    parts = build_parts(cell, data, device, initial_state=_load(weights), paths=paths)
    parts.model.train()
    take_largest_layer(parts)
    return parts


def _take_steps(parts: Parts, batches: Sequence[tuple[Tensor, Tensor]], lr: float, beat: Callable[[], None]) -> None:
    for images, labels in batches:
        train_step(parts, images, labels, lr, NO_PHASES)
        beat()


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
            answer = accuracy_answer(parts, so_far, pretrained, sizes)
            progress = progress | {"partial": dataclasses.replace(answer, accuracy_pct=UNFINISHED)}
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
        error.partial = accuracy_answer(parts, error.partial, pretrained, sizes)
        raise
    answer = accuracy_answer(parts, result, pretrained, sizes)
    answer = dataclasses.replace(answer, weights_digest=weights_digest(parts.model))
    return answer if untrained is None else dataclasses.replace(answer, surface=measure_surface(parts, untrained))


def _without_partial(report: Report) -> Report:
    """A sink for a training whose result so far nobody keeps."""
    return lambda progress: report({key: value for key, value in progress.items() if key != "partial"})


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


def _load(weights: str | None) -> dict[str, Tensor] | None:
    return None if weights is None else _read_weights(weights)["state"]


def _read_weights(path: str) -> dict[str, Any]:
    try:
        return unseal_weights(Path(path))
    except (DamagedFileError, OSError) as error:
        why = getattr(error, "strerror", None) or error
        raise DataError(
            f"the pretrained weights in {path} cannot be read ({why}): run again, which trains them anew."
        ) from error
