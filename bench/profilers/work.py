"""What each operator of a step computes and moves: operations by torch's flop formulas, ours added, and bytes.

A multiply-add is two operations. Operators without a formula (element-wise ones, reductions, copies) count their bytes
alone: on every processor of today these bound them. Bytes are an operator's inputs and results, each tensor once.
Source of the formulas: ``torch.utils.flop_counter``.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from bench.profilers.allocation_tracker import ASKING, plain_storage

Kind = Literal["int8", "fp32", "bf16", "none"]
_aten = torch.ops.aten
INTEGER_PRODUCT = "aten._int_mm"
_LSTM_FORWARD = (_aten.mkldnn_rnn_layer, _aten._cudnn_rnn)
_LSTM_BACKWARD = (_aten.mkldnn_rnn_layer_backward, _aten._cudnn_rnn_backward)
_FREE = (_aten.detach, _aten.empty, _aten.empty_like, _aten.empty_strided, _aten.new_empty, _aten._local_scalar_dense,
         _aten._unsafe_view)  # fmt: skip
_FILLING = (_aten.copy_, _aten.zero_, _aten.fill_, _aten.normal_, _aten.uniform_, _aten.random_)  # their first argument


@dataclass(frozen=True, slots=True)
class Operator:
    """One operator that ran: what it computed, on which kind of units, and what it read and wrote."""

    name: str
    kind: Kind
    operations: int
    num_bytes: int


class WorkCounter(TorchDispatchMode):
    """Lists the operators that run while it is active, views and bare allocations left out."""

    def __init__(self) -> None:
        """Start with an empty list."""
        super().__init__()
        self.operators: list[Operator] = []

    def clear(self) -> None:
        """Forget what has run."""
        self.operators.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operator and list it."""
        if func in ASKING:
            return func(*args, **(kwargs or {}))
        result = func(*args, **(kwargs or {}))
        if not func.is_view and func.overloadpacket not in _FREE:
            kind, operations = count_operations(func, args, kwargs or {}, result)
            num_bytes = count_bytes(func, args, kwargs or {}, result)
            self.operators.append(Operator(str(func.overloadpacket), kind, operations, num_bytes))
        return result


def count_operations(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> tuple[Kind, int]:
    """Operations of one call and the units that they want; ("none", 0) for an operator without a formula.

    Args:
        func: the operator, an ``OpOverload``.
        args: positional arguments.
        kwargs: keyword arguments.
        result: what it answered.
    """
    packet = func.overloadpacket
    if str(packet) == INTEGER_PRODUCT:
        (rows, inner), columns = args[0].shape, args[1].shape[1]
        return "int8", 2 * rows * inner * columns
    if packet in _LSTM_FORWARD or packet in _LSTM_BACKWARD:
        weights = args[1] if isinstance(args[1], list | tuple) else args[1:3]
        rows = args[0].numel() // args[0].shape[-1]
        forward = 2 * rows * sum(weight.numel() for weight in weights if weight.dim() == 2)
        return "fp32", forward if packet in _LSTM_FORWARD else 2 * forward
    formula = flop_registry.get(packet)
    if formula is None:
        return "none", 0
    dtype = next(leaf.dtype for leaf in pytree.tree_leaves(args) if isinstance(leaf, Tensor))
    return "bf16" if dtype is torch.bfloat16 else "fp32", int(formula(*args, **kwargs, out_val=result))


def count_bytes(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], result: Any) -> int:
    """Bytes that one call reads and writes at least.

    Args:
        func: the operator, an ``OpOverload``.
        args: positional arguments.
        kwargs: keyword arguments.
        result: what it answered.
    """
    read: dict[int, Tensor] = {}
    written = _tensors(result)
    for place, (name, is_read, is_written) in enumerate(_uses(func)):
        tensors = _tensors(args[place] if place < len(args) else kwargs.get(name))
        if is_read:
            read |= tensors
        if is_written:
            written |= tensors
    return sum(map(_bytes_of, read.values())) + sum(map(_bytes_of, written.values()))


@functools.cache
def _uses(func: Any) -> tuple[tuple[str, bool, bool], ...]:
    """Each argument's name, whether the operator reads it, and whether it writes it."""
    filling = func.overloadpacket in _FILLING
    return tuple(
        (
            argument.name,
            not argument.is_out and not (filling and place == 0),
            argument.alias_info is not None and argument.alias_info.is_write,
        )
        for place, argument in enumerate(func._schema.arguments)
    )


def _tensors(values: Any) -> dict[int, Tensor]:
    return {id(leaf): leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)}


def _bytes_of(tensor: Tensor) -> int:
    """Bytes that reading a tensor moves at least: an expanded one's memory counts once."""
    storage = plain_storage(tensor)
    return 0 if storage is None else min(tensor.numel() * tensor.element_size(), storage.nbytes())
