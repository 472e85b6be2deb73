"""Peaks of memory, and what they held by category and layer."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.records.schema.values import NOT_RECORDED
from bench.units import Absent

#: Of a step's memory, with what belongs to each.
MEMORY_CATEGORIES: dict[str, str] = {
    "weights": "the model's parameters and buffers",
    "integer_copies": "int8 codes of weights for as long as they are kept, and of any operand while its layer runs",
    "activations": "what the forward made and keeps for backward, codes and masks among it, or hands to the next layer",
    "gradients": "weight gradients from backward to the optimizer, and the error signals between layers",
    "optimizer_state": "momentum and moments, those of the hypernetwork's parameters among them",
    "hypernet_parameters": "the hypernetwork's parameters",
    "hypernet_activations": "what evaluating the hypernetwork and its gradient makes or keeps: graphs, chunks, tables, "
    "outputs, LSTM states, the old weights and the derivative of the optimizer's step",
    "pending_gradients": "weight gradients that wait for the next iteration",
    "workspaces": "buffers that the kernels reuse, and what one call of a layer or the optimizer makes and frees",
    "data": "the batches",
    "other": "what no rule claims",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPhase:
    """What was alive when a phase of the step held most; docs/measuring.md defines each category in one line."""

    phase: str  # data, forward, backward, meta, optimizer, unattributed
    peak_bytes: int  # the sum of the categories
    categories: dict[str, int]
    layer: str  # that ran at the peak, "" outside of the model's layers
    allocator_bytes: int | Absent  # CUDA's own figure at the same moment


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMemory:
    """What one layer keeps and needs; its most over all its calls."""

    name: str
    kept_bytes: int  # made by its forward and kept for backward
    forward_extra_bytes: int  # most that was alive during its forward beyond what was alive before
    backward_extra_bytes: int  # the same of its backward


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryResult:
    """Peaks of a few training steps in a fresh process; see docs/measuring.md for each definition."""

    peak_allocated_bytes: int | Absent  # live tensor storage: allocator's peak on CUDA, dispatcher's tracking on CPU
    peak_reserved_bytes: int | Absent  # CUDA's caching allocator only
    peak_process_bytes: int | Absent  # of the memory pass's process: VmHWM on CPU, NVML's figure on CUDA
    peak_device_bytes: int | Absent  # whole device, CUDA only
    fp32_peak_allocated_bytes: int | Absent  # the same steps of the FP32 model
    fp32_peak_process_bytes: int | Absent
    hypernet_extra_allocated_bytes: int | Absent  # with minus without hypernetwork, two fresh processes
    # the same of the processes' growth over their cell's steps, both cells' steps having run in both before
    hypernet_extra_process_bytes: int | Absent
    hypernet_bound_bytes: int | Absent = NOT_RECORDED  # computed from shapes: most that the hypernetwork holds at once
    # of the allocated extra, what oneDNN's LSTM reserves and never writes, less what it takes inside its operators: the
    # process's extra lacks it
    hypernet_untouched_bytes: int | Absent = NOT_RECORDED
    # by how much more the process's peak grows in processes that have not: code, and caches of libraries
    hypernet_code_bytes: int | Absent = NOT_RECORDED
    phases: tuple[MemoryPhase, ...] | Absent = NOT_RECORDED  # by category at each phase's peak
    phases_missing: dict[str, str] = field(default_factory=dict)  # phases without a peak, and why
    layers: tuple[LayerMemory, ...] | Absent = NOT_RECORDED
    snapshot: str | Absent = NOT_RECORDED  # file beside the record for torch's memory viewer, CUDA only
