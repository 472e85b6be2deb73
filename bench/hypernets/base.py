"""What the hypernetworks f_ψ share: layer-wide input scales, the two forms, and how they are evaluated.

Each is coordinate-wise, f = base·∇W + gain·core(inputs): the core is the trained network of one or two numbers
per weight, base is 1 in the `residual` form and 0 in the `literal` one, and the gain is ∇W for the multiplicative
hypernetworks and max|∇W| or 1 for the others. The papers' formulas on raw numbers are the `literal` form; the
`residual` form scales the inputs per layer and starts, its last layer being zero, exactly at f = ∇W.

Source: docs/method.md section 3; MetaGrad Eq. 6 to 10; MetaQuant (Chen et al., NeurIPS 2019).
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.layout import flat

FORMS = ("residual", "literal")

State = tuple[Tensor, Tensor]  # (h, c) of some weights, each (n, H)


@dataclass(frozen=True, slots=True)
class Scales:
    """Maxima over a whole layer, so that any part of it can be evaluated alone.

    Attributes:
        gradient: () max|∇W|.
        weight: () max|W|.
    """

    gradient: Tensor
    weight: Tensor


class Evaluation(Protocol):
    """A cheap evaluation of a hypernetwork's core at fixed ψ, part by part."""

    def values(self, features: Tensor) -> Tensor:
        """The core's outputs (n,) at `features` (inputs, n), without a graph."""

    def accumulate(self, features: Tensor, cotangent: Tensor) -> None:
        """Add the gradient of Σ cotangent·core(features) by ψ; `cotangent` is (n,)."""

    def finish(self) -> None:
        """Put what was accumulated into the parameters' ``.grad``."""


class Hypernet(nn.Module):
    """f_ψ(∇W, W) of one layer's weights, elementwise; parameters are shared by all layers."""

    hidden: int  # H
    inputs: int  # numbers that the core reads per weight
    multiplicative: bool  # whether the core's output is a factor of ∇W
    carries: bool = False  # whether the core has a state per weight that outlives the iteration
    centre: float = 0.0  # middle of the inputs' range

    def __init__(self, *, form: str) -> None:
        """Fix the form.

        Raises:
            ConfigError: if the form is neither residual nor literal.
        """
        super().__init__()
        if form not in FORMS:
            raise ConfigError(f"unknown hypernetwork form {form!r}; choose one of: {', '.join(FORMS)}.")
        self.form = form

    @abstractmethod
    def rows(self, grad: Tensor, weight: Tensor, scales: Scales) -> list[Tensor]:
        """The core's inputs for some of a layer's weights.

        Args:
            grad: (n,) of ∇W.
            weight: (n,) of W.
            scales: maxima over the whole layer.

        Returns:
            One (n,) tensor per input.
        """

    @abstractmethod
    def row_names(self) -> list[str]:
        """What each of the rows is, in the papers' letters."""

    @abstractmethod
    def sources(self, grad: Tensor, weight: Tensor) -> list[Tensor]:
        """What each row follows before its layer's scale, (n,) each: row = source·slope + centre."""

    @abstractmethod
    def slopes(self, scales: Scales) -> list[Tensor]:
        """The () slopes of `sources`, one per input."""

    def features(self, grad: Tensor, weight: Tensor, scales: Scales) -> Tensor:
        """The rows as one new tensor (inputs, n), which shares no memory with the weights."""
        return torch.stack(self.rows(grad, weight, scales))

    @abstractmethod
    def half_widths(self, scales: Scales) -> Tensor:
        """(inputs,) half the width of each input's range about `centre`, over layers with at most these maxima."""

    @abstractmethod
    def core(self, features: Tensor) -> Tensor:
        """The trained network as published, differentiable by ψ: (inputs, n) to (n,)."""

    def core_carried(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """`core` from a given state, and the state after it; only of hypernetworks that carry one."""
        raise AssertionError(f"{type(self).__name__} carries no state")

    def evaluation(self) -> Evaluation:
        """The cheapest exact evaluation of `core` that this hypernetwork has, at the present ψ."""
        return AutogradEvaluation(self)

    def gain(self, grad: Tensor, scales: Scales) -> Tensor:
        """∂f/∂core: (n,) or ()."""
        if self.multiplicative:
            return grad
        return scales.gradient if self.form == "residual" else torch.ones_like(scales.gradient)

    def combine(self, grad: Tensor, core: Tensor, scales: Scales, *, out: Tensor | None = None) -> Tensor:
        """F from the core's outputs (n,), differentiable by them; `out` takes it without a graph and a new tensor."""
        gain = self.gain(grad, scales)
        if out is not None:
            if self.form == "literal":
                return torch.mul(core, gain, out=out)
            return torch.addcmul(grad, core, gain, out=out)
        amplified = core * gain
        return grad + amplified if self.form == "residual" else amplified

    def forward(self, grad: Tensor, weight: Tensor, scales: Scales | None = None) -> Tensor:
        """f_ψ(∇W, W) as published, with a graph to ψ.

        Args:
            grad: (n,) floating point, ∇W.
            weight: (n,) of the same dtype, W.
            scales: maxima over the whole layer; None takes those of `grad` and `weight` themselves.

        Returns:
            (n,) of the same dtype.

        Source: MetaGrad Eq. 8 to 10; docs/method.md section 3.
        """
        scales = layer_scales(grad, weight) if scales is None else scales
        return self.combine(grad, self.core(self.features(grad, weight, scales)), scales)

    def forward_carried(self, grad: Tensor, weight: Tensor, state: State) -> tuple[Tensor, State]:
        """`forward` from a given state, and the state after it."""
        scales = layer_scales(grad, weight)
        core, after = self.core_carried(self.features(grad, weight, scales), state)
        return self.combine(grad, core, scales), after

    def extra_repr(self) -> str:
        """The form, in the module's print."""
        return f"form={self.form}"


class AutogradEvaluation:
    """The core as published, without a graph for values and with one per part for gradients."""

    def __init__(self, hypernet: Hypernet) -> None:
        """Evaluate `hypernet` at its present ψ."""
        self.hypernet = hypernet

    def values(self, features: Tensor) -> Tensor:
        """See `Evaluation.values`."""
        with torch.no_grad():
            return self.hypernet.core(features)

    def accumulate(self, features: Tensor, cotangent: Tensor) -> None:
        """See `Evaluation.accumulate`; adds to the parameters' ``.grad`` at once."""
        with torch.enable_grad():
            core = self.hypernet.core(features)
        torch.autograd.backward(core, cotangent)

    def finish(self) -> None:
        """Nothing is left to do: `accumulate` adds to ``.grad``."""


class CarriedEvaluation:
    """The same from a given state per weight, through nn.LSTM: nothing in it is left to reduce."""

    def __init__(self, hypernet: Hypernet) -> None:
        """Evaluate `hypernet` at its present ψ."""
        self.hypernet = hypernet

    def values(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """The core's outputs (n,) and the state after them, without a graph."""
        with torch.no_grad():
            return self.hypernet.core_carried(features, state)

    def accumulate(self, features: Tensor, cotangent: Tensor, state: State) -> None:
        """Add the gradient of Σ cotangent·core(features, state) by ψ to the parameters' ``.grad``."""
        with torch.enable_grad():
            core, _ = self.hypernet.core_carried(features, state)
        torch.autograd.backward(core, cotangent)


@torch.no_grad()
def layer_scales(grad: Tensor, weight: Tensor) -> Scales:
    """Maxima of a whole layer; NaN and infinity in the tensors reach the scales and with them the weights."""
    return Scales(gradient=max_abs(grad), weight=max_abs(weight))


def max_abs(values: Tensor) -> Tensor:
    """max|x| as a () tensor; NaN and infinity where any value is."""
    low, high = torch.aminmax(flat(values))  # flat: anything but contiguous numbers it would copy
    return torch.maximum(-low, high)


def safe_width(scale: Tensor) -> Tensor:
    """A range's half width to divide by: 1 where every value is 0, or so small that its inverse is no number."""
    return torch.where(scale < torch.finfo(scale.dtype).tiny, torch.ones_like(scale), scale)


def scaled(values: Tensor, scale: Tensor) -> Tensor:
    """values/scale, 0 where the scale is 0 (then every value is 0)."""
    return values / safe_width(scale)


def unit_weight(weight: Tensor, scales: Scales) -> Tensor:
    """W̃ = tanh W/(2·max|tanh W|) + ½ in [0, 1], DoReFa's weight before rounding; ½ for a layer of zeros."""
    return scaled(torch.tanh(weight), 2.0 * torch.tanh(scales.weight)) + 0.5


def unit_slope(scales: Scales) -> Tensor:
    """() slope of W̃ by tanh W."""
    return safe_width(2.0 * torch.tanh(scales.weight)).reciprocal()


def count_parameters(hypernet: Hypernet) -> int:
    """Number of trained numbers in ψ."""
    return sum(param.numel() for param in hypernet.parameters())
