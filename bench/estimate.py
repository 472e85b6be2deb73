"""Memory and step time of a cell on a GPU that is not here: an estimate, and named so wherever it appears.

The real step runs on shapes (``bench/training/shapes.py``) and its allocations go through a simulation of CUDA's
caching allocator. What no tensor of ours shows is allowed for, as stated in ``ALLOWANCES``. Time is a range between two
rooflines.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from bench.config import CellConfig
from bench.data import DATASETS
from bench.data.augment import AugmentPolicy
from bench.data.base import DataSet
from bench.errors import ConfigError, is_ours
from bench.hardware.cuda_allocator import CachingAllocator
from bench.hardware.peaks import GPUS, GpuPeaks
from bench.methods import build_method
from bench.models import check_model
from bench.profilers.memory_categories import CategoryTracker
from bench.profilers.work import Operator, WorkCounter
from bench.records.schema import MemoryPhase
from bench.training.assemble import Parts, build_parts, check_training
from bench.training.shapes import track_shapes
from bench.units import MEBIBYTE, Absent

CONTEXT_BYTES = 512 * MEBIBYTE
CUBLAS_BYTES, CUBLAS_BYTES_SM90 = 8 * MEBIBYTE + 128 * 1024, 32 * MEBIBYTE
CUDNN_BYTES = 128 * MEBIBYTE
PEAK_SHARE, BANDWIDTH_SHARE, LAUNCH_US = 0.3, 0.6, 10.0
ALLOWANCES: dict[str, str] = {
    "CUDA context": f"{CONTEXT_BYTES // MEBIBYTE} MiB: driver and kernels (assumed; 300 to 600 are usual)",
    "cuBLAS": "8.1 MiB, 32 MiB from sm_90 on: its default workspace as torch documents it",
    "cuDNN": f"{CUDNN_BYTES // MEBIBYTE} MiB of workspace where convolutions run in floating point (assumed)",
    "LSTM": "a hypernetwork's LSTM is taken to keep what torch's own cell keeps; cuDNN's reserve is of that order",
    "time": f"from the published peaks, every operator bound by arithmetic or bandwidth, to {PEAK_SHARE:.0%} of the "
    f"arithmetic, {BANDWIDTH_SHARE:.0%} of the bandwidth and {LAUNCH_US:.0f} µs a launch (assumed)",
}
EXTRAPOLATED = (
    "≈: a batch larger than any that was run on shapes: by the line through those, or by the steepest phase's, less a "
    "twentieth"
)
UNVERIFIED = "peaks unverified: taken from the document that `list gpus` names, and not found quoted from it elsewhere"
MAX_BATCH = 2**20
_MARGIN = 20  # so many-th of a batch size is left beyond what was run
REACH = 16  # times the batch asked for: larger ones are not run, where products are cut into ever more parts
_STAND_IN_IMAGES = 16
_SEARCH_TOLERANCE = 128  # the largest batch is found to one part in this many
_MAX_LINES = 8  # sizes tried before the search halves


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryEstimate:
    """Of one cell at one batch size; the phases and categories are those of a measured record."""

    batch_size: int
    phases: tuple[MemoryPhase, ...]
    peak_allocated_bytes: int  # as the device's allocator counts: rounded up on CUDA, exact on a CPU
    peak_reserved_bytes: int | Absent
    allowance_bytes: int  # of ALLOWANCES, 0 on a CPU

    @property
    def needed_bytes(self) -> int:
        """What the device must have free."""
        held = self.peak_allocated_bytes if isinstance(self.peak_reserved_bytes, Absent) else self.peak_reserved_bytes
        return held + self.allowance_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuEstimate:
    """A cell on a GPU."""

    gpu: GpuPeaks
    memory: MemoryEstimate
    fits: bool | Absent
    largest_batch: int | Absent  # 0: not even one image
    largest_is_extrapolated: bool  # larger than any that was run on shapes
    step_low_ms: float | Absent
    step_high_ms: float | Absent


class CellShapes:
    """A cell's step on shapes, at any batch size; each is run once."""

    def __init__(self, cell: CellConfig, *, on_run: Callable[[int], None] = lambda batch_size: None) -> None:
        """Build the cell's parts from random weights and stand-in images; no data set is read.

        Args:
            cell: the checked config.
            on_run: told a batch size before the step runs on it, which takes a second or so.

        Raises:
            ConfigError: a cell that cannot be built.
        """
        self.cell = cell
        data = _stand_in(cell)
        build_method(cell)
        check_training(cell)
        model = cell.model
        check_model(model.name, image_size=data.image_size, shortcut=model.shortcut, factory=model.factory)
        self.image_shape: tuple[int, int, int] = tuple(data.train_images.shape[1:])  # type: ignore[assignment]
        self.parts: Parts = build_parts(cell, data, torch.device("cpu"))
        self._on_run = on_run
        self._trackers: dict[tuple[int, str], CategoryTracker] = {}
        self._operators: dict[int, tuple[Operator, ...]] = {}
        self._has_float_conv: bool | None = None

    def on_cpu(self, batch_size: int) -> MemoryEstimate:
        """Memory as ``metagrad-bench run device=cpu`` measures it."""
        tracker = self._track(batch_size, "cpu")
        return MemoryEstimate(
            batch_size=batch_size,
            phases=tracker.profile().phases,
            peak_allocated_bytes=tracker.peak_allocated_bytes,
            peak_reserved_bytes=Absent("only CUDA's allocator reserves memory"),
            allowance_bytes=0,
        )

    def on_cuda(self, batch_size: int, sm: int) -> MemoryEstimate:
        """Memory on a GPU of a compute capability (90 for sm_90)."""
        tracker = self._track(batch_size, "meta")
        allocator = replay(tracker)
        return MemoryEstimate(
            batch_size=batch_size,
            phases=tracker.profile().phases,
            peak_allocated_bytes=allocator.peak_allocated_bytes,
            peak_reserved_bytes=allocator.reserved_bytes,
            allowance_bytes=CONTEXT_BYTES
            + (CUBLAS_BYTES_SM90 if sm >= 90 else CUBLAS_BYTES)
            + (CUDNN_BYTES if self._has_float_conv else 0),
        )

    def operators(self, batch_size: int) -> tuple[Operator, ...]:
        """What one step runs on a GPU; the first batch size that was asked for is listed on the way."""
        if batch_size not in self._operators:
            self._trackers.pop((batch_size, "meta"), None)
            self._track(batch_size, "meta", list_operators=True)
        return self._operators[batch_size]

    def _track(self, batch_size: int, device: str, *, list_operators: bool = False) -> CategoryTracker:
        key = (batch_size, device)
        if key not in self._trackers:
            self._on_run(batch_size)
            first = device == "meta" and not self._operators
            work = WorkCounter() if first or list_operators else None
            try:
                self._trackers[key] = track_shapes(
                    self.parts, batch_size=batch_size, image_shape=self.image_shape, device=torch.device(device),
                    lr=self.cell.optimizer.lr, work=work,
                )  # fmt: skip
            except Exception as error:  # a user's network, or torch under it, may raise anything here
                if self.cell.model.name != "custom" or is_ours(error):
                    raise
                raise ConfigError(
                    f"The network of {self.cell.model.factory} does not run on tensor shapes "
                    f"({str(error).splitlines()[0][:200]}): its forward must not depend on values."
                ) from error
            if work is not None:
                self._operators[batch_size] = tuple(work.operators)
                self._has_float_conv = any(operator.name == "aten.convolution" for operator in work.operators)
        return self._trackers[key]


def estimate_gpu(shapes: CellShapes, gpu: GpuPeaks, batch_size: int) -> GpuEstimate:
    """Everything about a cell on a GPU of the table."""
    memory = shapes.on_cuda(batch_size, gpu.sm)
    low, high = step_range_ms(shapes.operators(batch_size), gpu)
    fits: bool | Absent = Absent(f"the memory of {gpu.name} is not in its documents")
    largest: int | Absent = fits
    if not isinstance(gpu.memory_gb, Absent):
        limit = int(gpu.memory_gb * 1e9)
        fits = memory.needed_bytes <= limit
        largest = find_largest_batch(
            lambda size: shapes.on_cuda(size, gpu.sm).needed_bytes, limit, batch_size,
            phase_bytes=lambda size: {phase.phase: phase.peak_bytes for phase in shapes.on_cuda(size, gpu.sm).phases},
        )  # fmt: skip
    return GpuEstimate(
        gpu=gpu, memory=memory, fits=fits, largest_batch=largest,
        largest_is_extrapolated=not isinstance(largest, Absent) and largest > REACH * batch_size,
        step_low_ms=low, step_high_ms=high,
    )  # fmt: skip


def find_largest_batch(
    needed_bytes: Callable[[int], int],
    limit_bytes: int,
    first: int,
    *,
    phase_bytes: Callable[[int], dict[str, int]] = lambda size: {},
) -> int:
    """The largest batch that fits, to one part in 128; memory is nearly linear in it, so few sizes are tried.

    Args:
        needed_bytes: of a batch size; grows with it.
        limit_bytes: what there is.
        first: a batch size to start from, 1 or more.
        phase_bytes: each phase's peak of a batch size that was tried.

    Returns:
        Up to ``REACH`` times ``first`` a batch size that was tried and fits, while one a 128th larger does not: it was
        tried, or the lines through the sizes tried say so. Beyond, the size to which a line from ``REACH`` times it
        points, less a twentieth: products are cut into more parts there. It rises as the one through both, or as the
        steepest phase: where a hypernetwork's, which hardly grows with the batch, makes the peak of both, that of
        larger ones is the forward's or backward's. 0 where one image does not fit; at most ``MAX_BATCH``.
    """
    assert first >= 1, "a batch has an image"
    top = min(REACH * first, MAX_BATCH)
    tried = {size: needed_bytes(size) for size in {first, top}}
    if tried[top] <= limit_bytes:
        below, above = phase_bytes(first), phase_bytes(top)
        rises = [tried[top] - tried[first], *(above[name] - below.get(name, 0) for name in above)]
        slope = max(rises) / max(1, top - first)
        guess = top + (limit_bytes - tried[top]) / slope if slope > 0 else MAX_BATCH + 1
        return MAX_BATCH if guess > MAX_BATCH else max(top, int(guess - guess / _MARGIN))
    while True:
        low = max((size for size, needed in tried.items() if needed <= limit_bytes), default=0)
        high = min(size for size, needed in tried.items() if needed > limit_bytes)
        step = max(1, low // _SEARCH_TOLERANCE)
        overall = (tried[max(tried)] - tried[min(tried)]) / max(1, max(tried) - min(tried))
        slope = _slope_near(tried, limit_bytes) if len(tried) > 1 else 0.0
        if high - low <= step or (len(tried) > 2 and low and tried[low] + min(slope, overall) * step > limit_bytes):
            return low
        size = _next_size(tried, limit_bytes, low, high, slope)
        tried[size] = needed_bytes(size)


def _slope_near(tried: dict[int, int], limit_bytes: int) -> float:
    """Bytes an image, by the line through the two sizes whose needs are nearest to the limit."""
    nearest = sorted(tried, key=lambda size: abs(tried[size] - limit_bytes))
    return (tried[nearest[1]] - tried[nearest[0]]) / (nearest[1] - nearest[0])


def _next_size(tried: dict[int, int], limit_bytes: int, low: int, high: int, slope: float) -> int:
    """Just below, then just above the size to which a line points, then the middle."""
    near = min(tried, key=lambda size: abs(tried[size] - limit_bytes))
    middle = (low + high) // 2
    if slope <= 0 or len(tried) > _MAX_LINES:
        return middle
    guess = near + (limit_bytes - tried[near]) / slope
    margin = guess / (3 * _SEARCH_TOLERANCE)
    return next((size for size in (int(guess - margin), int(guess + margin) + 1) if low < size < high), middle)


def replay(tracker: CategoryTracker) -> CachingAllocator:
    """Send a tracked window's blocks through CUDA's allocator in the order of their births and deaths."""
    events = [(block.born, 1, index) for index, block in enumerate(tracker.blocks)]
    events += [(block.died, 0, index) for index, block in enumerate(tracker.blocks) if block.died is not None]
    allocator = CachingAllocator()
    for _, is_birth, index in sorted(events):
        if is_birth:
            allocator.allocate(index, tracker.blocks[index].size)
        else:
            allocator.free(index)
    return allocator


def step_range_ms(operators: Iterable[Operator], gpu: GpuPeaks) -> tuple[float | Absent, float | Absent]:
    """Shortest step that the published peaks allow, and a slow one, as ``ALLOWANCES['time']`` says; in ms."""
    tera_operations: dict[str, float | Absent] = {
        "int8": gpu.int8_tops, "fp32": gpu.fp32_tflops, "bf16": gpu.bf16_tflops, "none": 1.0,
    }  # fmt: skip
    bandwidth = gpu.bandwidth_gb_s
    if isinstance(bandwidth, Absent):
        return bandwidth, bandwidth
    low_ms = high_ms = 0.0
    for operator in operators:
        rate = tera_operations[operator.kind]
        if isinstance(rate, Absent):
            return rate, rate
        arithmetic_ms = operator.operations / rate / 1e9
        movement_ms = operator.num_bytes / bandwidth / 1e6
        low_ms += max(arithmetic_ms, movement_ms)
        high_ms += max(arithmetic_ms / PEAK_SHARE, movement_ms / BANDWIDTH_SHARE) + LAUNCH_US / 1e3
    return low_ms, high_ms


def select_gpus(names: str) -> tuple[GpuPeaks, ...]:
    """Rows of the table by name: keys, the beginning of several (``h100``), or ``all``; commas between.

    Raises:
        ConfigError: for a name that begins no row.
    """
    chosen: list[GpuPeaks] = []
    for name in (part.strip().lower() for part in names.split(",")):
        exact = [gpu for gpu in GPUS if gpu.key == name or gpu.name.lower() == name]
        found = exact or [gpu for gpu in GPUS if name == "all" or (name and gpu.key.startswith(name))]
        if not found:
            raise ConfigError(
                f"gpu={name} is not in the table of GPUs: choose from {', '.join(gpu.key for gpu in GPUS)}, cpu or all."
            )
        chosen += [gpu for gpu in found if gpu not in chosen]
    return tuple(chosen)


def distinct_cells(cells: Sequence[CellConfig]) -> tuple[CellConfig, ...]:
    """Cells that differ in more than their seed, in order."""
    by_text = {repr(dataclasses.replace(cell, seed=0)): cell for cell in reversed(cells)}
    return tuple(reversed(by_text.values()))


def _stand_in(cell: CellConfig) -> DataSet:
    """A few random images in the sizes of the cell's data set, which need not be there."""
    if cell.data.name not in DATASETS:
        raise ConfigError(f"There is no data set {cell.data.name!r}: choose one of {', '.join(DATASETS)}.")
    entry = DATASETS[cell.data.name]
    size = cell.data.image_size or entry.image_size
    generator = torch.Generator().manual_seed(0)
    shape = (_STAND_IN_IMAGES, entry.in_channels, size, size)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)
    labels = torch.zeros(_STAND_IN_IMAGES, dtype=torch.int64)
    return DataSet(
        name=cell.data.name, train_images=images, train_labels=labels, test_images=images, test_labels=labels,
        num_classes=entry.num_classes, full_scale=255.0, mean=(0.5,) * entry.in_channels,
        std=(0.25,) * entry.in_channels, augmentation=AugmentPolicy(padding=0, flip=False), synthetic=True,
        source="random pixels", fingerprint="",
    )  # fmt: skip
