"""Training steps under ``torch.profiler``: a Chrome trace with ranges named by phase, layer, product and piece.

One gzipped file serves Perfetto and TensorBoard: its name is the one that torch-tb-profiler looks for
(``worker.timestamp.pt.trace.json.gz``), and its parser gives the operators' and kernels' times for the record.
On CUDA the ranges are NVTX ranges too.
"""

from __future__ import annotations

import contextlib
import gzip
import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from bench.profilers.base import NO_PHASES
from bench.profilers.span_timer import REST, Place
from bench.records.schema import KernelTime, OperatorTime, TraceResult
from bench.units import Absent

NUM_LISTED = 10
# Names of kernels on tensor cores that torch-tb-profiler's list, of 2021, lacks: CUTLASS, int8, Hopper and later.
_TENSOR_KERNELS = ("tensorop", "i16832", "imma", "gmma", "nvjet")
_NO_KERNELS = Absent("only a GPU has kernels")
_KINETO_QUIET = "6"  # above its messages about starting and stopping, which it writes to the terminal


class TraceRanges:
    """Marks places in the running trace; use as the observer of ``Places``."""

    def __init__(self, device: torch.device) -> None:
        """Mark a device's trace.

        Args:
            device: on CUDA, NVTX ranges are set too.
        """
        self._nvtx = device.type == "cuda"
        self._open: list[tuple[str, record_function | None]] = []

    def step(self) -> AbstractContextManager[None]:
        """Bound one training step."""
        return NO_PHASES.step()

    def enter(self, place: Place) -> None:
        """See ``PlaceObserver``; what lies in a range of the same name (a model in its phase) opens none."""
        name = range_name(place)
        if any(name == outer for outer, _ in self._open):
            self._open.append((name, None))
            return
        if self._nvtx:
            torch.cuda.nvtx.range_push(name)
        named = record_function(name)
        self._open.append((name, named))
        named.__enter__()

    def leave(self) -> None:
        """See ``PlaceObserver``."""
        _, named = self._open.pop()
        if named is None:
            return
        named.__exit__(None, None, None)
        if self._nvtx:
            torch.cuda.nvtx.range_pop()


def range_name(place: Place) -> str:
    """``backward/layer1.0.conv1/dgrad/gemm``; what does not apply is left out."""
    piece = "" if place.piece == REST else place.piece
    return "/".join(part for part in (place.phase, place.layer, place.gemm, piece) if part)


class Trace:
    """What was traced; ``step_ms`` and the file are there after the block."""

    def __init__(self, path: Path) -> None:
        """Leave the trace at ``path``."""
        self.path = path
        self.step_ms: list[float] = []

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Bound one training step, named as torch's own profiler steps are."""
        started = time.perf_counter()
        with record_function(f"ProfilerStep#{len(self.step_ms)}"):
            yield
        self.step_ms.append((time.perf_counter() - started) * 1e3)


@contextlib.contextmanager
def record_trace(folder: Path, worker: str, device: torch.device) -> Iterator[Trace]:
    """Trace the steps of the block into ``folder``.

    Args:
        folder: made where it does not exist; TensorBoard shows it as one run with a worker a file.
        worker: names the file.
        device: on CUDA its kernels are traced too.
    """
    os.environ.setdefault("KINETO_LOG_LEVEL", _KINETO_QUIET)
    folder.mkdir(parents=True, exist_ok=True)
    trace = Trace(folder / f"{worker}.{time.time_ns() // 1_000_000}.pt.trace.json.gz")
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda")
    with profile(activities=activities, record_shapes=True) as profiler:
        yield trace
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    plain = trace.path.with_suffix("")
    profiler.export_chrome_trace(str(plain))
    trace.path.write_bytes(gzip.compress(plain.read_bytes(), compresslevel=5))
    plain.unlink()


def read_trace(trace: Trace) -> TraceResult:
    """The ten most expensive operators and kernels of a trace, by torch-tb-profiler's parser.

    On a CPU an operator's time is its own, the operators that it calls taken off; the ranges do not count as operators,
    so that a compiled piece shows in the autograd function that calls it.
    """
    from torch_tb_profiler import utils  # loads pandas: only in the process that reads a trace
    from torch_tb_profiler.profiler.data import RunProfileData
    from torch_tb_profiler.profiler.tensor_core import TC_Allowlist

    TC_Allowlist.allowlist = list(dict.fromkeys([*TC_Allowlist.allowlist, *_TENSOR_KERNELS]))
    utils.get_logger().setLevel(logging.ERROR)  # it wonders about every operator and kernel that it does not know
    found = RunProfileData.parse(trace.path.name.split(".")[0], "", str(trace.path), None)
    steps = len(trace.step_ms)
    kernels = _kernels(found, steps) if found.has_kernel else ()
    return TraceResult(
        file=f"{trace.path.parent.name}/{trace.path.name}",
        steps=steps,
        step_ms=sum(trace.step_ms) / steps,
        operators=_operators(found, steps),
        kernels=kernels[:NUM_LISTED] if found.has_kernel else _NO_KERNELS,
        tensor_core_share_pct=100 * float(found.tc_used_ratio) if found.has_kernel else _NO_KERNELS,
    )


def _operators(found: Any, steps: int) -> tuple[OperatorTime, ...]:
    on_device = found.has_kernel
    listed = found.op_list_groupby_name
    total = sum(op.self_device_duration if on_device else op.self_host_duration for op in listed)
    if total <= 0:
        return ()
    rows = [
        OperatorTime(
            name=op.name,
            calls=op.calls / steps,
            self_ms=op.self_host_duration / steps / 1e3,
            device_ms=op.self_device_duration / steps / 1e3 if on_device else _NO_KERNELS,
            share_pct=100 * (op.self_device_duration if on_device else op.self_host_duration) / total,
        )
        for op in listed
    ]
    return tuple(sorted(rows, key=lambda row: -row.share_pct)[:NUM_LISTED])


def _kernels(found: Any, steps: int) -> tuple[KernelTime, ...]:
    table = found.kernel_stat  # most expensive first
    total = float(table["sum"].sum())
    return tuple(
        KernelTime(
            name=str(name),
            calls=int(row["count"]) / steps,
            total_ms=float(row["sum"]) / steps / 1e3,
            share_pct=100 * float(row["sum"]) / total,
            tensor_cores=bool(row["tc_used"]),
        )
        for name, row in table.iterrows()
    )
