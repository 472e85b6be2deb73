"""What one module leaves for the next on the tensor between them, so that one pass over memory does the work of both.

A batch-norm that is followed by convolutions alone writes their integer codes and no floats; a convolution sums up its
output for the batch-norm while it writes it, and its error signal for the batch-norm before it. Who follows whom is
proved once, by a trace of the model (``lean.py``); what is handed over travels as attributes of the tensors, holds as
long as nobody has changed them, and changes no value: a reader that finds nothing computes it itself.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from bench import native
from bench.layers.operands import Packed
from bench.quantizers.base import QTensor
from bench.quantizers.dorefa import DorefaActivation


@dataclass(frozen=True, slots=True, kw_only=True)
class Padding:
    """How a padding shortcut reads: every ``stride``-th pixel, ``half_channels`` of zeros on either side."""

    half_channels: int
    stride: int


@dataclass(slots=True)
class Residual:
    """Where a join leaves the gradient of its shortcut for the convolution that the shortcut bypasses."""

    gradient: Tensor | None = None  # (N, H, W, C), or the shape of the padding shortcut's output
    padding: Padding | None = None  # that shortcut's, if there is one


@dataclass(frozen=True, slots=True, kw_only=True)
class Codes:
    """An activation's codes, made where it was written.

    ``inside`` holds the packed flags of the values whose gradient passes the quantizer; ``gate``, where there are
    readers of the floats too, those that pass the ReLU. ``norm_input`` (N, H, W, C), float32 or bfloat16, and ``mean``
    (C,) are those of the batch-norm that the gradient goes to. ``sole``: no other module reads the activation.
    ``packed`` is where readers that keep the codes two to a byte find what the first of them packed.
    """

    operand: QTensor
    inside: Tensor
    gate: Tensor | None
    norm_input: Tensor | None
    mean: Tensor | None
    sole: bool
    residual: Residual
    packed: Packed


@dataclass(frozen=True, slots=True, kw_only=True)
class Padded:
    """What a padding shortcut leaves with its output: how it was made, and where its gradient may go."""

    residual: Residual
    padding: Padding


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A batch-norm's output that the join after it computes: (x − mean)·factor + shift."""

    x: Tensor  # (N, H, W, C)
    kept: Tensor  # the same, or what stands for it in backward
    mean: Tensor
    factor: Tensor
    shift: Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Readers:
    """Who reads a module's output, proved by a trace.

    ``watched`` are all modules on the way: a hook on one of them, now or later, shall see floats.
    """

    layers: tuple[nn.Module, ...]  # convolutions
    others: bool  # whether anybody else reads it
    watched: tuple[nn.Module, ...]

    def bits(self, x: Tensor) -> int | None:
        """Width of DoReFa's codes that every convolution among the readers wants; None if they differ."""
        if not self.layers or not can_hand_over(x, self.watched):
            return None
        widths: set[int] = set()
        for layer in self.layers:
            quantizer = layer.activation_quantizer
            if type(quantizer) is not DorefaActivation:
                return None
            widths.add(quantizer.bits)
        return widths.pop() if len(widths) == 1 else None


def can_hand_over(x: Tensor, watched: tuple[nn.Module, ...]) -> bool:
    """Whether the compiled pieces compute, and nobody looks at the tensors between these modules."""
    if not native.usable(x.device) or torch.is_anomaly_enabled():  # it would take a placeholder for an error
        return False
    if torch_module._global_forward_hooks or torch_module._global_forward_pre_hooks:
        return False
    return not any(has_hooks(module) for module in watched)


def has_hooks(module: nn.Module) -> bool:
    """Whether somebody watches this very module, or gave it a forward of its own: a replacement would not call them."""
    watching = (
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
    return bool(watching) or "forward" in vars(module)


def placeholder(shape: tuple[int, ...]) -> Tensor:
    """A tensor that nobody reads: NaN, in the memory of one value."""
    return torch.full((), math.nan).expand(shape)


def leave(tensor: Tensor, key: str, found: Any) -> Tensor:
    """Leave ``found`` under ``key`` with a tensor on its way to the next module; lost where tensors are added up."""
    if not tensor.is_inference():  # it counts no changes, and nothing of a backward pass is wanted there
        setattr(tensor, key, (found, tensor._version))
    return tensor


def take(tensor: Tensor, key: str) -> Any:
    """What was left under ``key``, if the tensor has not changed since; else None."""
    if not hasattr(tensor, key):
        return None
    found, version = getattr(tensor, key)
    return found if version == tensor._version else None


def take_out(tensor: Tensor, key: str) -> Any:
    """As `take`, for the one reader there is: nothing stays with a tensor that may be kept for backward."""
    found = take(tensor, key)
    if hasattr(tensor, key):
        delattr(tensor, key)
    return found


# the keys
AMAX = "known_amax"  # float: largest |value| of a gradient
CODES = "known_codes"  # Codes of an activation
PADDED = "padded_from"  # Padded
PENDING = "pending_norm"  # Pending
STATISTICS = "known_statistics"  # (2, C) float64: mean and sum of squared deviations of a convolution's output
SUMS = "known_sums"  # (2, C) float64: sums of a gradient and of it times (norm input - mean), both gated already
