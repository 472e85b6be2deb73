"""Buffers that are reused from step to step: fresh memory costs page faults that outweigh the products themselves.

A buffer is valid until the next request of the same name; nothing that must outlive one kernel call may live here. One
thread at a time may run the kernels (autograd's device thread takes turns with the caller, which is fine). Buffers are
never inference tensors, which a later training step could not write to.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from typing import TypeVar, cast

import torch
from torch import Tensor

Made = TypeVar("Made")

_MOST_DERIVED = 4096

_arenas: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
_views: dict[tuple[str, tuple[int, ...], torch.dtype, torch.device], Tensor] = {}  # of the arenas, made once per shape
_derived: dict[Hashable, object] = {}  # made of the arenas
_filled: dict[tuple[Hashable, tuple[int, ...], int, torch.device], Tensor] = {}


def scratch(name: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Contiguous uninitialised tensor; all requests of one name share memory, which grows to the largest."""
    view = _views.get((name, shape, dtype, device))
    if view is None:
        size = math.prod(shape)
        key = (name, dtype, device)
        arena = _arenas.get(key)
        with torch.inference_mode(False):
            if arena is None or arena.numel() < size:
                arena = _arenas[key] = torch.empty(size, dtype=dtype, device=device)
                for known in [known for known in _views if (known[0], *known[2:]) == key]:
                    del _views[known]
                _derived.clear()
            view = _views[name, shape, dtype, device] = arena[:size].view(shape)
    return view


def derived(key: Hashable, make: Callable[[], Made]) -> Made:
    """What ``make`` makes of these buffers, made again only after one of them has moved."""
    found = _derived.get(key)
    if found is None:
        if len(_derived) >= _MOST_DERIVED:
            _derived.clear()
        with torch.inference_mode(False):
            found = make()
        _derived[key] = found
    return cast(Made, found)


def bordered(name: Hashable, shape: tuple[int, ...], value: int, device: torch.device) -> Tensor:
    """Contiguous int8 tensor, filled with ``value`` once; ``name`` says which part the caller overwrites each time."""
    key = (name, shape, value, device)
    buffer = _filled.get(key)
    if buffer is None:
        with torch.inference_mode(False):
            buffer = _filled[key] = torch.full(shape, value, dtype=torch.int8, device=device)
    return buffer


def buffers() -> list[Tensor]:
    """All reused buffers, for who tells memory apart; not to be written."""
    return [buffer for table in (_arenas, _filled) for buffer in table.values()]


def clear_workspace() -> None:
    """Give all reused buffers back; the next step allocates them again."""
    _arenas.clear()
    _views.clear()
    _derived.clear()
    _filled.clear()
