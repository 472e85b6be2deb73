"""Memory: peaks of a few steps, and what they held by category."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench.config import CellConfig
from bench.errors import UserError, is_ours
from bench.kernels.workspace import clear_workspace
from bench.layers.dispatch import Paths
from bench.passes.inputs import batches_of, endless, load_weights, prepare
from bench.profilers.base import NO_PHASES
from bench.profilers.memory import MemoryMeter, MemoryPeaks, process_bytes
from bench.profilers.memory_categories import MemoryProfile
from bench.profilers.process_memory import give_back_memory, in_fresh_heap, keep_large_blocks_apart, load_libraries
from bench.profilers.untouched_workspaces import UntouchedWorkspaces
from bench.reporting import Report
from bench.timing_summary import difference
from bench.training.assemble import Parts, build_parts
from bench.training.drawn_layer import take_largest_layer
from bench.training.memory import snapshot_steps, track_steps
from bench.training.shapes import bound_hypernet_bytes, track_shapes
from bench.training.step import train_step
from bench.units import Absent

if TYPE_CHECKING:
    from bench.data import AnyData


_GROWTH_STEPS = 6  # one without a hypernetwork, then five whose median counts


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryAnswer:
    """What a few steps held; `snapshot` names the file of the allocator's history."""

    peaks: MemoryPeaks
    profile: MemoryProfile
    snapshot: str | Absent
    hypernet_bound_bytes: int | Absent
    untouched_bytes: int | Absent
    # by how much a process that has run both cells' steps grows from before this cell is built to its peak: a median
    grown_process_bytes: int | Absent


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
    process is to be compared with another cell's, both cells' steps run here and then this cell's again: code and
    caches of libraries are then in both processes, and what they grow by from there differs by what the steps hold.

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
    where, data = prepare(cell, device)
    parts = _parts_for_memory(cell, data, where, weights, paths)
    stream = endless(batches_of(cell, data, where))
    count, lr = cell.protocol.memory_steps, cell.optimizer.lr
    steps = itertools.count(1)
    total = count * 2
    if beside is not None:
        total += count + _GROWTH_STEPS

    def beat() -> None:
        report({"phase": f"memory {name}", "done": next(steps), "total": total})

    drawn = [[next(stream) for _ in range(count)] for _ in range(2)]
    del stream, data
    load_libraries()
    # The process first: counting storages imports modules of torch (tens of MiB) that belong to no step.
    with MemoryMeter(where, track=False) as meter:
        _take_steps(parts, drawn[0], lr, beat)
    peaks = meter.peaks()
    grown: int | Absent = Absent("no other cell was run beside it")
    if beside is not None:
        del parts  # one cell at a time
        other = _parts_for_memory(beside, prepare(beside, device)[1], where, weights, paths)
        _take_steps(other, drawn[0], lr, beat)
        del other
        grow = partial(_grow, cell, prepare(cell, device)[1], where, weights, paths, drawn[0], beat)
        parts, grown = in_fresh_heap(grow) if where.type == "cpu" else grow()
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
        grown_process_bytes=grown,
    )  # fmt: skip


def _parts_for_memory(
    cell: CellConfig, data: AnyData, device: torch.device, weights: str | None, paths: Paths | None
) -> Parts:
    parts = build_parts(cell, data, device, initial_state=load_weights(weights), paths=paths)
    parts.model.train()
    take_largest_layer(parts)
    return parts


def _grow(
    cell: CellConfig,
    data: AnyData,
    device: torch.device,
    weights: str | None,
    paths: Paths | None,
    batches: Sequence[tuple[Tensor, Tensor]],
    beat: Callable[[], None],
) -> tuple[Parts, int | Absent]:
    """Build the cell and run it, and tell by how many bytes the process grew to its peak: a median over steps.

    What earlier steps left in Python's arenas depends on which they were: it is there before the cell is built and
    drops out. The data set is there all along. No hypernetwork runs in the first step.
    """
    clear_workspace()
    give_back_memory()
    before = process_bytes(device)
    parts = _parts_for_memory(cell, data, device, weights, paths)
    clear_workspace()
    give_back_memory()
    peaks: list[int] = []
    for index in range(_GROWTH_STEPS):
        with MemoryMeter(device, track=False) as meter:
            _take_steps(parts, [batches[index % len(batches)]], cell.optimizer.lr, beat)
        peak = meter.peaks().peak_process_bytes
        if isinstance(peak, Absent):
            return parts, peak
        peaks.append(peak)
    return parts, difference(statistics.median_low(peaks[1:]), before)


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
    except Exception as error:  # a user's network, or torch under it, may raise anything here
        if cell.model.name != "custom" or (is_ours(error) and not isinstance(error, UserError)):
            raise
        return Absent(f"the network does not run on tensor shapes: {str(error).splitlines()[0][:200]}")
    return bound_hypernet_bytes(tracker, parts)
