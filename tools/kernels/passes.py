"""What ``metagrad-bench kernels`` runs in fresh processes: training steps in turn, bytes kept for backward, peaks."""

from __future__ import annotations

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.data.synthetic import NUM_CLASSES
from bench.errors import ConfigError, is_ours
from bench.layers.base import GEMMS
from bench.layers.convert import quantized_layers
from bench.layers.dispatch import Paths
from bench.models import CUSTOM
from bench.profilers.base import NO_PHASES
from bench.profilers.memory import MemoryMeter
from bench.profilers.phase_timer import PhaseTimer
from bench.profilers.process_memory import give_back_memory
from bench.reporting import Report
from bench.timing_summary import difference
from bench.training.assemble import Parts
from bench.training.step import train_step
from bench.units import Absent
from tools.kernels.sides import LEARNING_RATE, NUM_BATCHES, SIDES, Work, build_side, make_batches, prepare

MIN_ROUNDS = 3
PEAK_STEPS = 2  # the second has momentum buffers from its beginning
PEAK_WARMUP_IMAGES = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Raw times of every side, in turn in one process."""

    step_ms: dict[str, tuple[float, ...]]
    phases_ms: dict[str, dict[str, tuple[float, ...]]]
    first_step_s: dict[str, float]  # of each side's first step: compiling, planning, choosing paths
    from_compile_cache: dict[str, bool]  # of the compiled sides
    absent: dict[str, Absent]  # compiled sides that do not run here
    not_finite: tuple[str, ...]  # sides whose loss left the finite numbers
    labels: dict[str, str]  # of the integer sides: integer, emulated, simulated, float
    threads: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedBytes:
    """What a forward pass keeps for its backward."""

    total_bytes: int
    by_dtype: dict[str, int]


def paths_pass(*, report: Report, work: Work, names: Sequence[str]) -> dict[str, Paths]:
    """What dispatch=auto chooses for each width, so that no other process has to time paths again.

    ``compact`` has the same products.

    Raises:
        ConfigError: a user's network that cannot be trained on the images.
    """
    images, labels = _checked_batch(work)
    chosen = {}
    for done, name in enumerate(names):
        report({"phase": f"choosing paths, {name}", "done": done, "total": len(names)})
        parts = build_side(name, work, images)
        for _ in range(2):  # an error signal of zeros in the first step may leave a product out
            train_step(parts, images, labels, LEARNING_RATE, NO_PHASES)
        chosen[name] = {layer: dict(module.paths) for layer, module in quantized_layers(parts.model).items()}
    return chosen


def saved_pass(*, report: Report, work: Work, names: Sequence[str]) -> dict[str, SavedBytes]:
    """Count what each side keeps for backward, in its second step.

    Raises:
        ConfigError: a user's network that cannot be trained on the images.
    """
    images, labels = _checked_batch(work)
    answers = {}
    for done, name in enumerate(names):
        report({"phase": f"bytes saved, {name}", "done": done, "total": len(names)})
        parts = build_side(name, work, images)
        train_step(parts, images, labels, LEARNING_RATE, NO_PHASES)

        def forward(parts: Parts = parts) -> Tensor:
            with torch.autocast(images.device.type, torch.bfloat16, enabled=parts.autocast_bf16):
                return F.cross_entropy(parts.model(images), labels)

        answers[name] = count_saved(forward, apart=[images, *parts.model.parameters(), *parts.model.buffers()])
    return answers


def count_saved(forward: Callable[[], Tensor], *, apart: Iterable[Tensor]) -> SavedBytes:
    """Bytes of the storages that autograd keeps for a backward pass, each once however many views of it are kept.

    Args:
        forward: answers the loss.
        apart: tensors whose storages do not count: parameters, buffers and the input.
    """
    apart_keys = {tensor.untyped_storage()._cdata for tensor in apart}
    sizes: dict[int, tuple[str, int]] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in apart_keys:
            sizes[storage._cdata] = str(tensor.dtype).removeprefix("torch."), storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = forward()
    by_dtype: Counter[str] = Counter()
    for dtype, num_bytes in sizes.values():
        by_dtype[dtype] += num_bytes
    assert loss.requires_grad, "the graph lives until here, so that no storage was counted at another's place"
    return SavedBytes(total_bytes=by_dtype.total(), by_dtype=dict(by_dtype.most_common()))


def steps_pass(
    *, report: Report, work: Work, names: Sequence[str], steps: int, warmup_steps: int, budget_s: float
) -> StepTimes:
    """Time whole training steps of all sides in turn, until `steps` rounds are done or the budget is spent.

    Args:
        report: takes progress.
        work: what to train.
        names: keys of ``SIDES``.
        steps: rounds, one step of every side each.
        warmup_steps: untimed steps of every side after its first.
        budget_s: seconds of the timed rounds; at least ``MIN_ROUNDS`` run whatever they take.
    """
    where = prepare(work)
    batches = make_batches(work, where)
    sides: dict[str, Parts] = {}
    timers: dict[str, PhaseTimer] = {}
    first_step_s: dict[str, float] = {}
    from_cache: dict[str, bool] = {}
    absent: dict[str, Absent] = {}
    losses: dict[str, Tensor] = {}
    for done, name in enumerate(names):
        report({"phase": f"{'compiling' if SIDES[name].compiled else 'warming up'} {name}", "done": done,
                "total": len(names) + steps})  # fmt: skip
        hits = _compile_cache_hits()
        started = time.perf_counter()
        try:
            parts = build_side(name, work, batches[0][0])
            train_step(parts, *batches[0], LEARNING_RATE, NO_PHASES)
        except Exception as error:  # torch.compile hands on what its parts raise: dynamo, inductor, g++, triton
            if not SIDES[name].compiled or is_ours(error) or isinstance(error, MemoryError | torch.OutOfMemoryError):
                raise
            absent[name] = Absent(f"torch.compile failed here: {_innermost(error)}")
            continue
        _wait(where)
        first_step_s[name] = time.perf_counter() - started
        if SIDES[name].compiled:
            from_cache[name] = _compile_cache_hits() > hits
        for index in range(warmup_steps):
            train_step(parts, *batches[index % NUM_BATCHES], LEARNING_RATE, NO_PHASES)
        _wait(where)
        sides[name], timers[name] = parts, PhaseTimer(where)
    started = time.perf_counter()
    for turn in range(steps):
        for name in turn_order(list(sides), turn):
            with timers[name].step():
                losses[name] = train_step(
                    sides[name], *batches[turn % NUM_BATCHES], LEARNING_RATE, timers[name]
                )  # fmt: skip
        spent_s = time.perf_counter() - started
        report({"phase": "training steps in turn", "done": len(names) + turn + 1, "total": len(names) + steps})
        if spent_s > budget_s and turn + 1 >= MIN_ROUNDS:
            break
    samples = {name: timer.read() for name, timer in timers.items()}
    return StepTimes(
        step_ms={name: sample.step_ms for name, sample in samples.items()},
        phases_ms={name: sample.phases_ms for name, sample in samples.items()},
        first_step_s=first_step_s,
        from_compile_cache=from_cache,
        absent=absent,
        not_finite=tuple(name for name, loss in losses.items() if not bool(loss.isfinite())),
        labels={name: _label(parts.model) for name, parts in sides.items() if parts.conversion is not None},
        threads=torch.get_num_threads(),
    )


def turn_order(names: Sequence[str], turn: int) -> list[str]:
    """Everybody begins equally often, and every other round runs backwards: nobody always follows the same one."""
    shift = turn // 2 % len(names)
    order = [*names[shift:], *names[:shift]]
    return order[::-1] if turn % 2 else order


def peak_pass(*, report: Report, work: Work, name: str) -> int | Absent:
    """Bytes that training takes at its peak, network, gradients, momentum and workspaces included.

    On a CPU by how much the process's resident memory grows, after a step on two images has loaded every library; on a
    GPU the allocator's peak. Undisturbed by tracking, so that compiled pieces run compiled.
    """
    report({"phase": f"peak memory, {name}"})
    where = prepare(work)
    images, labels = make_batches(work, where)[0]
    few = images[:PEAK_WARMUP_IMAGES].contiguous(memory_format=torch.channels_last)
    train_step(build_side(name, work, few), few, labels[:PEAK_WARMUP_IMAGES], LEARNING_RATE, NO_PHASES)
    give_back_memory()  # or the next peak would begin inside it unseen
    given = 0 if where.type == "cuda" else psutil.Process().memory_info().rss
    with MemoryMeter(where, track=False) as meter:
        parts = build_side(name, work, images)
        for _ in range(PEAK_STEPS):
            train_step(parts, images, labels, LEARNING_RATE, NO_PHASES)
    peaks = meter.peaks()
    return difference(peaks.peak_allocated_bytes if where.type == "cuda" else peaks.peak_process_bytes, given)


def _checked_batch(work: Work) -> tuple[Tensor, Tensor]:
    """The first images and labels, in a process made ready; a user's network has met them before anything is measured.

    Raises:
        ConfigError: a user's network that cannot be trained on the images.
    """
    device = prepare(work)
    (images, labels), *_ = make_batches(work, device)
    if work.model != CUSTOM:
        return images, labels
    parts = build_side("fp32", work, images)
    shape = "×".join(map(str, images.shape))
    if not any(parameter.requires_grad for parameter in parts.model.parameters()):
        raise ConfigError(f"{work.factory} makes a network without a parameter to train.")
    try:
        F.cross_entropy(parts.model(images), labels).backward()
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # the network is the user's and may raise anything; nothing of ours runs in it yet
        raise ConfigError(
            f"{work.factory}: a training step on a {shape} batch with {NUM_CLASSES} classes failed with "
            f"{type(error).__name__}: {_first_line(error)}; change the network, --batch or --image-size."
        ) from error
    _wait(device)
    del parts
    gc.collect()
    return images, labels


def _label(model: nn.Module) -> str:
    """What the products are, all kinds that occur; asked after the steps, which choose paths."""
    facts = [layer.facts() for layer in quantized_layers(model).values()]
    labels = (getattr(of_layer, gemm) for of_layer in facts for gemm in GEMMS)
    return " and ".join(dict.fromkeys(labels))


def _compile_cache_hits() -> int:
    """How many graphs torch.compile has taken from its cache on disk."""
    from torch._dynamo.utils import counters

    return counters["inductor"]["fxgraph_cache_hit"] + counters["aot_autograd"]["autograd_cache_hit"]


def _innermost(error: BaseException) -> str:
    """The compiler's own complaint, on one line."""
    inner = getattr(error, "inner_exception", None) or error
    return f"{type(inner).__name__}: {_first_line(inner)}"


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
