"""What the hypernetwork did in one iteration: observed without waiting for the device, read as numbers later.

Source: MetaQuant (Chen et al. 2019) Fig. 4.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bench.layout import flat
from bench.units import Absent
from bench.update.tabulate import TabulationSample


@dataclass(frozen=True, slots=True)
class Observation:
    """What the hypernetwork did in one iteration, left on the device.

    Attributes:
        amplification: (layers,) |g̃|/|G| by Euclidean norms (MetaQuant Fig. 4); not finite where G is zero.
        cosine: (layers,) cosine between g̃ and G; not finite where one of them is zero.
        zero_share: (layers,) share of g̃ that is exactly 0.
        meta_gradient_norm: () Euclidean norm of ∇ψ.
        tabulation: the iteration held against the exact strategy, where that was asked for.
    """

    amplification: Tensor
    cosine: Tensor
    zero_share: Tensor
    meta_gradient_norm: Tensor
    tabulation: TabulationSample | None = None


Reading = dict[str, dict[str, float | Absent] | float | Absent]


def observe_gradients(grads: Sequence[Tensor], replaced: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor]:
    """Amplification, cosine and share of zeros per layer, without waiting for the device.

    Args:
        grads: G of each layer.
        replaced: g̃ of each layer.

    Returns:
        Three tensors (layers,).
    """
    before = torch.stack(list(torch._foreach_norm(list(grads))))
    after = torch.stack(list(torch._foreach_norm(list(replaced))))
    dots = torch.stack([torch.dot(flat(g), flat(r)) for g, r in zip(grads, replaced, strict=True)])
    zeros = torch.stack([1.0 - r.count_nonzero() / r.numel() for r in replaced])
    return after / before, dots / after / before, zeros


def read_observation(observation: Observation, names: Sequence[str]) -> Reading:
    """An observation as numbers, which waits for the device.

    Args:
        observation: of one iteration.
        names: the layers' names.

    Returns:
        ``amplification``, ``cosine`` and ``zero_share`` by layer name, and ``meta_grad_norm``; where `tabulate` was
        sampled also ``interpolation_error``, ``meta_angle_deg`` and, where codes are made, ``same_codes`` by layer
        name. What a zero gradient leaves undefined is `Absent`.
    """
    reason = "the layer's gradient, or what replaced it, is zero or not finite"
    table: Reading = {}
    for key in ("amplification", "cosine", "zero_share"):
        values = getattr(observation, key).tolist()
        table[key] = {
            name: value if math.isfinite(value) else Absent(reason) for name, value in zip(names, values, strict=True)
        }
    table |= read_whole_step(observation)
    sample = observation.tabulation
    if sample is not None and sample.same_codes is not None:
        table["same_codes"] = dict(zip(names, sample.same_codes.tolist(), strict=True))
    return table


def read_whole_step(observation: Observation) -> dict[str, float | Absent]:
    """What an observation tells of all layers together, as numbers, which waits for the device.

    Returns:
        ``meta_grad_norm``; where `tabulate` was sampled also ``interpolation_error`` and ``meta_angle_deg``.
    """
    norm = float(observation.meta_gradient_norm)
    table = {"meta_grad_norm": _finite_or_absent(norm, "the meta-gradient is not finite")}
    sample = observation.tabulation
    if sample is not None:
        table["interpolation_error"] = _finite_or_absent(sample.error, "the interpolation error is not finite")
        angle = float(sample.meta_angle_deg)
        table["meta_angle_deg"] = _finite_or_absent(angle, "the meta-gradient is zero or not finite")
    return table


def _finite_or_absent(value: float, reason: str) -> float | Absent:
    """A number, or why there is none."""
    return value if math.isfinite(value) else Absent(reason)
