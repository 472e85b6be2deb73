"""One training step, as Algorithm 1 of docs/method.md section 4 reads."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bench.kernels.spans import span
from bench.training.assemble import Parts

PhaseContext = Callable[[str], AbstractContextManager[Any]]
# The update's own phases under the step's names.
_PHASE_OF = {"hypernet_forward": "meta", "meta_gradient": "meta"}


def train_step(parts: Parts, images: Tensor, labels: Tensor, lr: float, phases: PhaseContext) -> Tensor:
    """Preview, forward, backward, meta step, optimizer step, commit; nothing here waits for the device.

    Args:
        parts: the cell's parts; stepped in place.
        images: (N, C, H, W) float32, channels-last.
        labels: (N,) int64.
        lr: learning rate of this step.
        phases: context managers by phase name.

    Returns:
        () float32 loss, detached.
    """
    delayed = parts.delayed
    # Before the forward, in every method alike: last step's gradients are no part of this step's peak.
    for parameter in parts.model.parameters():
        parameter.grad = None
    if parts.precision is not None:
        parts.precision.advance()
    if delayed is not None:
        delayed.phases = lambda name: phases(_PHASE_OF.get(name, name))
        delayed.preview(lr)
    with phases("forward"):
        loss = forward_loss(parts, images, labels)
    with phases("backward"):
        loss.backward()
    if delayed is not None:
        delayed.meta_step()
    with phases("optimizer"):
        if parts.quantize_grads:
            for weight, quantize in zip(parts.weights, parts.quantize_grads, strict=True):
                assert weight.grad is not None, "backward left no gradient in a quantized layer"
                with span("quantize", gemm="wgrad"):
                    quantize.quantize_(weight.grad)
        parts.optimizer.lr = lr
        parts.optimizer.step(lr_factors=parts.lr_factors() if parts.lr_factors is not None else None)
        if delayed is not None:
            delayed.commit()
    return loss.detach()


def forward_loss(parts: Parts, images: Tensor, labels: Tensor) -> Tensor:
    """The forward pass of a training step: () loss with its graph."""
    with _autocast(parts, images):
        return F.cross_entropy(parts.model(images), labels)


@torch.no_grad()
def evaluate_batch(parts: Parts, images: Tensor, labels: Tensor) -> Tensor:
    """Number of right answers in a batch, as a () int64 tensor on the device."""
    with _autocast(parts, images):
        return (parts.model(images).argmax(dim=1) == labels).sum()


def _autocast(parts: Parts, images: Tensor) -> AbstractContextManager[Any]:
    return torch.autocast(images.device.type, torch.bfloat16) if parts.autocast_bf16 else nullcontext()
