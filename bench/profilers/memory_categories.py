"""Memory of a training step by category, phase and layer: ``AllocationTracker`` with a memory of what each storage is.

Every storage becomes a block with its birth and death in a log; what a block is may be told at any time, by whom it
belongs to (``Owner``) or else by where it was made, so that the log can be read at the peak of each phase afterwards.
The same accounting serves CPU, CUDA and tensors without data (``bench/estimate.py``).

Ours; torch's ``MemTracker`` (``torch.distributed._tools.mem_tracker``) tells five categories apart in the same manner.
"""

from __future__ import annotations

import bisect
import contextlib
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bench.kernels.int4 import packed_int4_size
from bench.layers.base import IntegerLayer
from bench.profilers.allocation_tracker import AllocationTracker, device_type_of
from bench.profilers.base import PHASES, UNATTRIBUTED
from bench.profilers.layer_scopes import FORWARD
from bench.records.schema import MEMORY_CATEGORIES, LayerMemory, MemoryPhase
from bench.units import Absent

_MADE_IN = {"meta": "hypernet_activations", "optimizer": "workspaces", "data": "data"}


@dataclass(frozen=True, slots=True)
class Owner:
    """Tensors that belong to one category; ``from_now``: they were of another category before."""

    category: str
    tensors: Sequence[Tensor]
    from_now: bool = False


@dataclass(slots=True)
class Block:
    """One storage between two changes of its size; times count the log's events."""

    size: int
    born: int
    phase: str
    call: int  # of a layer's forward or backward in which it was made; -1: outside of any
    is_int8: bool
    of_weight: bool  # as many codes, or codes two to a byte, as the weight of the layer that made it has values
    died: int | None = None
    labels: list[tuple[int, str]] = field(default_factory=list)


@dataclass(slots=True)
class _Call:
    """One leaf layer's forward, or one node of its backward."""

    layer: str
    direction: str
    started_bytes: int
    peak_bytes: int
    ended: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryProfile:
    """What a tracked window held at its phases' peaks, and what each layer added on its own."""

    phases: tuple[MemoryPhase, ...]
    layers: tuple[LayerMemory, ...]


class CategoryTracker(AllocationTracker):
    """Tracks live storages by category; it is also the ``phases`` of the step and the observer of its layers.

    Use as a context around the steps, with ``LayerScopes(model, tracker)`` inside, then read ``profile()``.
    """

    def __init__(
        self,
        owners: Callable[[], Iterable[Owner]],
        *,
        device: torch.device | None = None,
        made_outside: str = "other",
        allocator_bytes: Callable[[], int] | None = None,
    ) -> None:
        """Start from what is alive.

        Args:
            owners: which tensors belong to which category now; asked at the beginning and after each phase.
            device: the kind of device whose storages count, by default the CPU.
            made_outside: category of what is made outside of every phase.
            allocator_bytes: reads the allocator's own figure, to be kept beside each peak.
        """
        self.blocks: list[Block] = []
        self._of_storage: dict[int, int] = {}
        self._time = 0
        self._phase = UNATTRIBUTED
        self._layers: list[str] = []
        self._calls: list[_Call] = []
        self._open_call = -1
        self._forward_ends: list[int] = []
        self._weight_numel = 0
        self._peaks: dict[str, tuple[int, int, str, int | Absent]] = {}
        self._owners = owners
        self._made_outside = made_outside
        self._allocator_bytes = allocator_bytes
        super().__init__(device=device)
        self._label_owned()

    @contextlib.contextmanager
    def phases(self, name: str) -> Iterator[None]:
        """Tell the tracker which phase runs."""
        outer, self._phase = self._phase, name
        try:
            yield
        finally:
            self._label_owned()
            if name == "forward":
                self._forward_ends.append(self._time)
            self._phase = outer

    def begin_layer(self, name: str, module: nn.Module, direction: str) -> None:
        """See ``LayerObserver``; calls are counted of leaves forward and of every node backward."""
        self._layers.append(name)
        is_leaf = isinstance(module, IntegerLayer) or next(module.children(), None) is None
        if direction == FORWARD and not is_leaf:
            return
        weight = getattr(module, "weight", None)
        self._weight_numel = weight.numel() if isinstance(weight, Tensor) else 0
        self._open_call = len(self._calls)
        self._calls.append(_Call(name, direction, self._delta_bytes, self._delta_bytes))

    def end_layer(self, name: str, module: nn.Module, direction: str) -> None:
        """See ``LayerObserver``."""
        self._layers.pop()
        if self._open_call >= 0:
            self._calls[self._open_call].ended = self._time
            self._open_call = -1

    def profile(self) -> MemoryProfile:
        """Read the log at each phase's peak; phases in which nothing ran are left out."""
        order = [*PHASES, UNATTRIBUTED]
        return MemoryProfile(
            phases=tuple(self._read_phase(name) for name in order if name in self._peaks),
            layers=self._layer_table(),
        )

    def category_of(self, block: Block, time: int) -> str:
        """What a block is at a moment: what its owner said last, or else what the place of its birth says."""
        told = [category for since, category in block.labels if since <= time]
        if told:
            return told[-1]
        call = self._calls[block.call] if block.call >= 0 else None
        if block.phase in ("forward", "backward"):
            brief = call is not None and block.died is not None and (call.ended is None or block.died <= call.ended)
            if block.of_weight or (block.is_int8 and (brief or block.phase == "backward")):
                return "integer_copies"
            if brief:
                return "workspaces"
            return "activations" if block.phase == "forward" else "gradients"
        return _MADE_IN.get(block.phase, self._made_outside)

    def held(self, time: int) -> dict[str, int]:
        """Bytes by category at a moment of the log, every category named."""
        held = dict.fromkeys(MEMORY_CATEGORIES, 0)
        for block in self.blocks:
            if block.born <= time and (block.died is None or block.died > time):
                held[self.category_of(block, time)] += block.size
        return held

    def most_held(self, categories: Sequence[str]) -> int:
        """Most bytes that some categories together held at any moment of the window."""
        changes: list[tuple[int, int]] = []
        for block in self.blocks:
            ended = self._time + 1 if block.died is None else block.died
            moments = [block.born, *(since for since, _ in block.labels), ended]
            for start, end in itertools.pairwise(sorted(moments)):
                if start < end and self.category_of(block, start) in categories:
                    changes += [(start, block.size), (end, -block.size)]
        held = most = 0
        for _, change in sorted(changes):  # what ends at a moment goes before what begins there
            held += change
            most = max(most, held)
        return most

    def _read_phase(self, name: str) -> MemoryPhase:
        delta_bytes, time, layer, allocator_bytes = self._peaks[name]
        held = self.held(time)
        assert sum(held.values()) == self._baseline_bytes + delta_bytes, f"the log of phase {name} does not add up"
        return MemoryPhase(
            phase=name, peak_bytes=sum(held.values()), categories=held, layer=layer, allocator_bytes=allocator_bytes
        )

    def _layer_table(self) -> tuple[LayerMemory, ...]:
        """Each layer's most, over its calls; what it keeps is what it made that outlived the whole forward."""
        saved: dict[int, int] = {}
        for block in self.blocks:
            if block.call < 0 or block.phase != "forward":
                continue
            following = bisect.bisect_left(self._forward_ends, block.born)
            outlived = following < len(self._forward_ends) and (
                block.died is None or block.died > self._forward_ends[following]
            )
            if outlived and self.category_of(block, self._time) in ("activations", "integer_copies"):
                saved[block.call] = saved.get(block.call, 0) + block.size
        table: dict[str, list[int]] = {}
        for index, call in enumerate(self._calls):
            row = table.setdefault(call.layer, [0, 0, 0])
            row[0] = max(row[0], saved.get(index, 0))
            column = 1 if call.direction == FORWARD else 2
            row[column] = max(row[column], call.peak_bytes - call.started_bytes)
        return tuple(
            LayerMemory(name=name, kept_bytes=row[0], forward_extra_bytes=row[1], backward_extra_bytes=row[2])
            for name, row in table.items()
        )

    def _label_owned(self) -> None:
        for owner in self._owners():
            self.observe_existing(owner.tensors)
            for tensor in owner.tensors:
                if device_type_of(tensor) != self._device_type:
                    continue
                block = self.blocks[self._of_storage[tensor.untyped_storage()._cdata]]
                if not block.labels or block.labels[-1][1] != owner.category:
                    from_birth = not owner.from_now and not block.labels
                    block.labels.append((block.born if from_birth else self._time, owner.category))

    def _born(self, key: int, size: int, tensor: Tensor, *, returned: bool) -> None:
        self._of_storage[key] = len(self.blocks)
        if not returned:
            self.blocks.append(Block(size, 0, "", -1, False, False))
            return
        self._time += 1
        is_int8 = tensor.dtype is torch.int8
        of_codes = {torch.int8: self._weight_numel, torch.uint8: packed_int4_size(self._weight_numel)}
        of_weight = self._open_call >= 0 and tensor.numel() == of_codes.get(tensor.dtype)
        self.blocks.append(Block(size, self._time, self._phase, self._open_call, is_int8, of_weight))

    def _resized(self, key: int, size: int) -> None:
        old = self.blocks[self._of_storage[key]]
        self._died(key)
        self._of_storage[key] = len(self.blocks)
        labels = [(self._time, old.labels[-1][1])] if old.labels else []
        self.blocks.append(
            Block(size, self._time, self._phase, self._open_call, old.is_int8, old.of_weight, labels=labels)
        )

    def _died(self, key: int) -> None:
        self._time += 1
        self.blocks[self._of_storage.pop(key)].died = self._time

    def _finished_operator(self) -> None:
        if self._open_call >= 0:
            call = self._calls[self._open_call]
            call.peak_bytes = max(call.peak_bytes, self._delta_bytes)
        best = self._peaks.get(self._phase)
        if best is None or self._delta_bytes > best[0]:
            layer = self._layers[-1] if self._layers else ""
            allocator = Absent("only CUDA's allocator keeps a figure of its own")
            held = self._allocator_bytes() if self._allocator_bytes is not None else allocator
            self._peaks[self._phase] = (self._delta_bytes, self._time, layer, held)
