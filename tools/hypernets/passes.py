"""What ``metagrad-bench hypernets`` runs in fresh processes: updates of each strategy, their peaks, whole steps.

One update is f_psi on every weight and the gradient by psi, as the delayed update calls them.
Source: docs/method.md section 4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import psutil
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bench.config import CellConfig
from bench.data import build_data, train_batches
from bench.data.loader import TrainStream
from bench.hypernets import Hypernet, build_hypernet
from bench.hypernets.dual_lstm_fc import DualLSTMFC
from bench.models import build_model
from bench.profilers.memory import MemoryMeter
from bench.profilers.phase_timer import PhaseTimer
from bench.profilers.process_memory import give_back_memory
from bench.reporting import Report
from bench.seeding import global_stream
from bench.timing_summary import difference
from bench.training.assemble import build_parts, without_hypernet
from bench.training.step import train_step
from bench.units import Absent
from bench.update import Strategy, Tabulate, build_strategy

LEARNING_RATE = 0.01
GRADIENT_IMAGES = 16  # of the backward passes that the gradients come from
WARMUP_STRIDE = 1000
MEMORY_UPDATES = 3
WARMUP_STEPS = 2  # in the first step of a delayed update nothing is pending


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """From what every process builds the same hypernetwork, weights and gradients."""

    model: str
    hidden: int
    stride: int  # only each so many-th weight of every layer
    device: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operands:
    """One update's inputs: layers as flat tensors."""

    hypernet: Hypernet
    weights: list[Tensor]  # W
    grads: list[Tensor]  # G, pending
    new_grads: list[Tensor]  # of the next iteration

    @property
    def num_weights(self) -> int:
        """N, over all layers."""
        return sum(weight.numel() for weight in self.weights)

    def tensors(self) -> list[Tensor]:
        """All of them."""
        return [*self.weights, *self.grads, *self.new_grads, *(p.detach() for p in self.hypernet.parameters())]


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryAnswer:
    """What the peak of a few updates adds to weights and gradients."""

    num_weights: int
    extra_bytes: int | Absent  # CPU: growth of the process's resident memory; GPU: of the allocator's
    free_bytes: int  # on the device, before


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """`tabulate` against the exact strategy."""

    same_codes: float  # share of weights with the same INT4 code
    meta_error: float  # |∇ψ − exact ∇ψ|/|exact ∇ψ|
    points: int  # of the grid, per axis


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimes:
    """Raw times of both sides, in turn."""

    metagrad_ms: tuple[float, ...]
    plain_ms: tuple[float, ...]
    num_weights: int  # quantized
    grid_points: int  # of tabulate's grid, per axis, at the end


def strategies_pass(*, report: Report, work: Work, names: Sequence[str], rounds: int) -> dict[str, tuple[float, ...]]:
    """Time updates of the strategies in turn; milliseconds of each."""
    operands = build_operands(work)
    strategies = {name: build_strategy(name) for name in names}
    timers = {name: PhaseTimer(torch.device(work.device)) for name in names}
    for turn in range(1 + rounds):
        shift = turn % len(names)
        for name in (*names[shift:], *names[:shift]):  # nobody always runs after the same one
            report({"phase": f"{name}, {operands.num_weights:,} weights", "done": turn, "total": 1 + rounds})
            with timers[name].step():
                update(strategies[name], operands)
        if turn == 0:  # warm-up
            for timer in timers.values():
                timer.read()
    return {name: timer.read().step_ms for name, timer in timers.items()}


def strategy_memory_pass(*, report: Report, work: Work, name: str) -> MemoryAnswer:
    """Peak of a few updates of one strategy; untracked, since a tracked nn.LSTM takes another path and more memory."""
    report({"phase": f"memory of {name}"})
    where = torch.device(work.device)
    small = dataclasses.replace(work, stride=work.stride * WARMUP_STRIDE)
    update(build_strategy(name), build_operands(small))  # loads libraries, starts threads
    operands = build_operands(work)
    strategy = build_strategy(name)
    give_back_memory()  # or the next peak would begin inside it unseen
    free = free_bytes(where)
    on_gpu = where.type == "cuda"
    given = torch.cuda.memory_allocated(where) if on_gpu else psutil.Process().memory_info().rss
    with MemoryMeter(where, track=False) as meter:
        for _ in range(MEMORY_UPDATES):
            update(strategy, operands)
    peaks = meter.peaks()
    peak = peaks.peak_allocated_bytes if on_gpu else peaks.peak_process_bytes
    return MemoryAnswer(num_weights=operands.num_weights, extra_bytes=difference(peak, given), free_bytes=free)


def agreement_pass(*, report: Report, work: Work) -> Agreement:
    """Hold one update of `tabulate` against the exact strategy: INT4 codes and the gradient by psi."""
    report({"phase": "tabulate against exact"})
    strategy = Tabulate(sample_bits=4)
    strategy.take_sample = True
    operands = build_operands(work)
    update(strategy, operands)
    sample = strategy.sample
    assert sample is not None, "a sample was asked for"
    assert sample.same_codes is not None, "and codes of 4 bits"
    sizes = torch.tensor([weight.numel() for weight in operands.weights], device=sample.same_codes.device)
    return Agreement(
        same_codes=float((sample.same_codes * sizes).sum() / sizes.sum()),
        meta_error=float(sample.meta_error),
        points=sample.points,
    )


def step_pass(*, report: Report, cell: CellConfig, device: str, steps: int) -> StepTimes:
    """Time whole training steps on the same batches: the cell's, and in turn those without its hypernetwork."""
    where = torch.device(device)
    data = build_data(cell.data.name)
    sides = {"metagrad": build_parts(cell, data, where), "plain": build_parts(without_hypernet(cell), data, where)}
    delayed = sides["metagrad"].delayed
    assert delayed is not None, "MetaGrad has a delayed update"
    assert isinstance(delayed.strategy, Tabulate), "and its step is that of tabulate"
    assert isinstance(delayed.hypernet, DualLSTMFC), "its head is initialised here"
    with global_stream(0, "hypernet_init"):
        delayed.hypernet.head.reset_parameters()  # at its own start, zero, the coarsest grid would do for a few steps
    timers = {name: PhaseTimer(where) for name in sides}
    batches = _endless(train_batches(data, batch_size=cell.protocol.batch_size, seed=cell.seed, device=where))
    for parts in sides.values():
        parts.model.train()
    for step in range(WARMUP_STEPS + steps):
        report({"phase": "training steps", "done": step, "total": WARMUP_STEPS + steps})
        images, labels = next(batches)
        for name in sorted(sides, reverse=bool(step % 2)):
            with timers[name].step():
                train_step(sides[name], images, labels, cell.optimizer.lr, timers[name])
        if step == WARMUP_STEPS - 1:
            for timer in timers.values():
                timer.read()
    return StepTimes(
        metagrad_ms=timers["metagrad"].read().step_ms,
        plain_ms=timers["plain"].read().step_ms,
        num_weights=sum(weight.numel() for weight in sides["metagrad"].weights),
        grid_points=delayed.strategy.points,
    )


def build_operands(work: Work) -> Operands:
    """Weights of a network at its seeded start, and gradients of two of its backward passes.

    The hypernetwork's last layer gets torch's default initialisation: at its own, zero, f_psi would be the gradient
    itself and every approximation of it exact.
    """
    where = torch.device(work.device)
    data = build_data("synthetic", train_limit=2 * GRADIENT_IMAGES)
    with global_stream(0, "model_init"):
        model = build_model(
            work.model, num_classes=data.num_classes, in_channels=data.in_channels, image_size=data.image_size
        ).to(where)
    with global_stream(0, "hypernet_init"):
        hypernet = build_hypernet("dual_lstm_fc", hidden=work.hidden)
        assert isinstance(hypernet, DualLSTMFC), "its head is initialised here"
        hypernet.head.reset_parameters()
    batches = train_batches(data, batch_size=GRADIENT_IMAGES, seed=0, device=where)
    params = _weights(model)
    grads = []
    for images, labels in batches.epoch(0):
        loss = F.cross_entropy(model(images), labels)
        grads.append([_thin(grad, work.stride) for grad in torch.autograd.grad(loss, params)])
    return Operands(
        hypernet=hypernet.to(where), weights=[_thin(param.detach(), work.stride) for param in params],
        grads=grads[0], new_grads=grads[1],
    )  # fmt: skip


def count_weights(work: Work) -> int:
    """N of the operands, without making their gradients."""
    with torch.device("meta"):
        model = build_model(work.model, num_classes=10, in_channels=3, image_size=32)
    return sum(len(range(0, param.numel(), work.stride)) for param in _weights(model))


@torch.no_grad()
def update(strategy: Strategy, operands: Operands) -> None:
    """f_psi on all weights, then the gradient by psi."""
    weights, new_grads = operands.weights, operands.new_grads
    outputs = strategy.outputs(operands.hypernet, operands.grads, weights)
    del outputs
    for param in operands.hypernet.parameters():
        param.grad = None
    strategy.meta_gradient(
        operands.hypernet,
        operands.grads,
        lambda index, part: weights[index][part],
        lambda index, part: new_grads[index][part] * -LEARNING_RATE,
    )


def free_bytes(device: torch.device) -> int:
    """Memory that this process could still take on a device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    free = int(psutil.virtual_memory().available)
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    try:
        return min(free, int(limit.read_text(encoding="ascii")) - int(used.read_text(encoding="ascii")))
    except (OSError, ValueError):  # no such file, or "max"
        return free


def _weights(model: nn.Module) -> list[nn.Parameter]:
    modules = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    return [cast(nn.Parameter, module.weight) for module in modules]


def _thin(values: Tensor, stride: int) -> Tensor:
    return values.reshape(-1)[::stride].clone()


def _endless(batches: TrainStream) -> Iterator[tuple[Tensor, Tensor]]:
    epoch = 0
    while True:
        yield from batches.epoch(epoch)
        epoch += 1
