"""Counts live storages as torch's dispatcher hands them out: on a CPU, where torch keeps no peak itself.

Exact and the same in every run. It sees what every operator returns, forward and backward, autograd's saved tensors
among them, and storages that an operator resizes. It does not see memory inside one operator (workspaces of oneDNN,
im2col buffers of a library), storages that are resized without an operator (``UntypedStorage.resize_``) until an
operator next touches them, or tensors without a plain storage (sparse, mkldnn layout), which are counted in
``num_unseen``. A storage that an operator receives but none returned is taken to have been there from the beginning.
While a tracker is active torch runs ``torch.compile``d functions eagerly, whose intermediate tensors then count.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterable
from typing import Any, Self

import torch
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

# What tensors without data are asked through the dispatcher, thousands of times a step; no memory is touched.
ASKING = (torch.ops.prim.device.default,)


def device_type_of(tensor: torch.Tensor) -> str:
    """``tensor.device.type``, which for a tensor without data would go through the dispatcher and all its modes."""
    fake: torch.device | None = getattr(tensor, "fake_device", None)
    return tensor.device.type if fake is None else fake.type


class AllocationTracker(TorchDispatchMode):
    """Counts the bytes of live storages on one device; a storage counts once however many views it has.

    Use as a context around the steps to watch; afterwards ``peak_allocated_bytes`` holds the peak.
    """

    def __init__(self, existing: Iterable[torch.Tensor] = (), *, device: torch.device | None = None) -> None:
        """Start from tensors that are alive already.

        Args:
            existing: parameters, buffers, optimizer state, data: counted from the beginning, shared storages once.
                Existing tensors that are not named here count from the beginning as well once an operator reads them.
            device: the kind of device whose storages count, by default the CPU.
        """
        super().__init__()
        self._device_type = (device or torch.device("cpu")).type
        self._sizes: dict[int, int] = {}
        self._watchers: dict[int, weakref.ref[torch.UntypedStorage]] = {}
        self._baseline_bytes = 0
        self._delta_bytes = 0
        self._peak_delta_bytes = 0
        self._num_unseen = 0
        self.observe_existing(existing)

    def observe_existing(self, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that were alive from the beginning; those that are counted already stay as they are."""
        for tensor in tensors:
            self._observe(tensor, returned=False)

    @property
    def baseline_bytes(self) -> int:
        """Bytes that were alive at the beginning."""
        return self._baseline_bytes

    @property
    def live_bytes(self) -> int:
        """Bytes alive now."""
        return self._baseline_bytes + self._delta_bytes

    @property
    def peak_allocated_bytes(self) -> int:
        """Most bytes alive after any operator, before its unused inputs were freed."""
        return self._baseline_bytes + self._peak_delta_bytes

    @property
    def num_unseen(self) -> int:
        """Operator results that have no plain storage and were not counted."""
        return self._num_unseen

    def __enter__(self) -> Self:
        """Begin to watch; garbage of earlier work is collected first so that it cannot be freed inside."""
        gc.collect()
        super().__enter__()
        return self

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator, then count what it read, returned and resized."""
        if func in ASKING:
            return func(*args, **(kwargs or {}))
        kwargs = kwargs or {}
        inputs = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        for tensor in inputs:
            self._observe(tensor, returned=False)
        result = func(*args, **kwargs)
        self._ran(inputs, result)
        return result

    def _ran(self, inputs: list[torch.Tensor], result: Any) -> None:
        """Count what an operator that has run returned and resized."""
        for leaf in pytree.tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._observe(leaf, returned=True)
        for tensor in inputs:  # an in-place operator may have grown what it was given
            self._observe(tensor, returned=True)
        self._peak_delta_bytes = max(self._peak_delta_bytes, self._delta_bytes)
        self._finished_operator()

    def _observe(self, tensor: torch.Tensor, *, returned: bool) -> None:
        """Count a tensor's storage if it is new, or the change of its size."""
        if device_type_of(tensor) != self._device_type:
            return
        storage = plain_storage(tensor)
        if storage is None:
            self._num_unseen += returned
            return
        key, size = storage._cdata, storage.nbytes()
        known = self._sizes.get(key)
        if known is None:
            self._watchers[key] = weakref.ref(storage, self._forgetter(key))
            if returned:
                self._delta_bytes += size
            else:
                self._baseline_bytes += size
            self._born(key, size, tensor, returned=returned)
        elif size != known:
            self._delta_bytes += size - known
            self._resized(key, size)
        self._sizes[key] = size

    def _forgetter(self, key: int) -> Callable[[weakref.ref[torch.UntypedStorage]], None]:
        """Build the callback that takes a dead storage off the count."""

        def forget(_: weakref.ref[torch.UntypedStorage]) -> None:
            self._delta_bytes -= self._sizes.pop(key)
            del self._watchers[key]
            self._died(key)

        return forget

    # What a tracker that tells storages apart hears of; this one only sums.

    def _born(self, key: int, size: int, tensor: torch.Tensor, *, returned: bool) -> None:
        """A storage of ``size`` bytes was seen first; ``returned``: an operator made it, else it was there before."""

    def _resized(self, key: int, size: int) -> None:
        """A storage has ``size`` bytes from now on."""

    def _died(self, key: int) -> None:
        """A storage was freed."""

    def _finished_operator(self) -> None:
        """An operator has run; its inputs and results are alive."""


def plain_storage(tensor: torch.Tensor) -> torch.UntypedStorage | None:
    """The memory of a tensor; None of sparse, opaque and functorch's tensors, which torch refuses to show one of."""
    try:
        return tensor.untyped_storage()
    except NotImplementedError:  # torch's own word for a tensor without a storage
        return None
