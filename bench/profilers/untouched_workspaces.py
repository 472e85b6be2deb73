"""What tensors hold of memory that nobody has touched: oneDNN's LSTM takes more than it writes."""

from __future__ import annotations

import weakref
from typing import Any

import psutil
import torch
from torch.utils import _pytree as pytree

from bench.profilers.allocation_tracker import AllocationTracker
from bench.profilers.process_memory import read_process_peak, reset_process_peak, resident_bytes
from bench.units import Absent


class UntouchedWorkspaces(AllocationTracker):
    """How far the peak of a window shrinks if oneDNN's LSTM counts with the memory that it touches.

    It hands autograd a workspace of 1 KiB a row and more, of which one time step writes a part. The rest stays as the
    system gave it: tensors hold it, the process does not. What an LSTM takes inside its operators, which no tensor
    holds, counts against it.
    """

    def __init__(self) -> None:
        """Start at zero."""
        super().__init__()
        self._workspaces: dict[int, tuple[weakref.ref[torch.UntypedStorage], int]] = {}
        self._scratch_bytes = 0
        self._peak_touched_delta_bytes = 0
        self._reason: Absent | None = None

    @property
    def untouched_bytes(self) -> int | Absent:
        """The peak of what tensors held, less the peak of what of it was in memory."""
        return self._peak_delta_bytes - self._peak_touched_delta_bytes if self._reason is None else self._reason

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator; look at an LSTM's workspace and at what the process held while it ran."""
        forward = func is torch.ops.aten.mkldnn_rnn_layer.default
        if not forward and func is not torch.ops.aten.mkldnn_rnn_layer_backward.default:
            return super().__torch_dispatch__(func, types, args, kwargs)
        inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        for tensor in inputs:
            self._observe(tensor, returned=False)
        before = psutil.Process().memory_info().rss
        unknown = reset_process_peak()
        result = func(*args, **(kwargs or {}))
        highest = unknown or read_process_peak()
        if isinstance(highest, Absent):
            self._reason = highest
        else:
            self._scratch_bytes = max(0, highest - max(before, psutil.Process().memory_info().rss))
        self._look(result[-1] if forward else inputs[-1])
        self._ran(inputs, result)
        self._scratch_bytes = 0
        return result

    def _look(self, workspace: torch.Tensor | None) -> None:
        if workspace is None:  # evaluated without a graph
            return
        storage = workspace.untyped_storage()
        resident = resident_bytes(storage.data_ptr(), storage.nbytes())
        if isinstance(resident, Absent):
            self._reason = resident
            return
        self._workspaces[storage.data_ptr()] = weakref.ref(storage), max(0, storage.nbytes() - resident)

    def _finished_operator(self) -> None:
        untouched = sum(size for ref, size in self._workspaces.values() if ref() is not None)
        touched = self._delta_bytes - untouched + self._scratch_bytes
        self._peak_touched_delta_bytes = max(self._peak_touched_delta_bytes, touched)
