"""MultiFC (MetaGrad Eq. 8; MetaQuant): f = ∇W·FCs(W'), linear layers without bias.

`residual` takes the factor 1 + FCs(·), `literal` FCs(·). Both feed W̃ in [0, 1]: of a signed W a bias-free linear
network would flip half of all gradients. MetaQuant's paper has two layers, its code three; an activation between
them is an option (MetaQuant, Table 6), none by default.
Source: docs/method.md section 3.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.hypernets.base import AutogradEvaluation, Evaluation, Hypernet, Scales, unit_slope, unit_weight

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor] | None] = {"none": None, "relu": torch.relu, "tanh": torch.tanh}


class FCHypernet(Hypernet):
    """Bias-free linear layers of one input and one output, with an activation between them."""

    inputs = 1

    def __init__(self, *, hidden: int, form: str = "residual", depth: int = 2, activation: str = "none") -> None:
        """Default initialisation of torch, the last layer zero in the `residual` form.

        Args:
            hidden: H, width of the layers between.
            form: residual or literal.
            depth: number of linear layers, at least 2.
            activation: none, relu or tanh, after every layer but the last.

        Raises:
            ConfigError: for an unknown activation or a depth below 2.
        """
        super().__init__(form=form)
        if activation not in ACTIVATIONS:
            raise ConfigError(f"unknown activation {activation!r}; choose one of: {', '.join(ACTIVATIONS)}.")
        if depth < 2:
            raise ConfigError(f"a fully connected hypernetwork has at least 2 layers, got depth {depth}.")
        self.hidden = hidden
        self.activation = activation
        widths = [1] + [hidden] * (depth - 1) + [1]
        self.layers = nn.ModuleList(
            nn.Linear(before, after, bias=False) for before, after in itertools.pairwise(widths)
        )
        if form == "residual":
            nn.init.zeros_(self.weights()[-1])

    def weights(self) -> list[nn.Parameter]:
        """The layers' weights, first to last."""
        return list(self.layers.parameters())

    def core(self, features: Tensor) -> Tensor:
        """FCs(x) layer by layer; (1, n) to (n,)."""
        activation = ACTIVATIONS[self.activation]
        x = features.view(-1, 1)
        for layer in self.layers[:-1]:
            x = layer(x) if activation is None else activation(layer(x))
        return self.layers[-1](x).view(-1)

    def evaluation(self) -> Evaluation:
        """One number where nothing bends the line, else the layers as published."""
        return LinearEvaluation(self) if self.activation == "none" else AutogradEvaluation(self)


class LinearEvaluation:
    """FCs without activations: the product of all layers is one number a, the core a·x."""

    def __init__(self, hypernet: FCHypernet) -> None:
        """Multiply the layers out once, with a graph of H numbers."""
        with torch.enable_grad():
            product = torch.linalg.multi_dot(list(reversed(hypernet.weights())))
            self.product = product.view(())
        self.total: Tensor | None = None

    def values(self, features: Tensor) -> Tensor:
        """See `Evaluation.values`."""
        return features.view(-1) * self.product.detach()

    def accumulate(self, features: Tensor, cotangent: Tensor) -> None:
        """See `Evaluation.accumulate`."""
        part = torch.dot(features.view(-1), cotangent)
        self.total = part if self.total is None else self.total + part

    def finish(self) -> None:
        """See `Evaluation.finish`."""
        if self.total is not None:
            torch.autograd.backward(self.product, self.total)


class MultiFC(FCHypernet):
    """A factor of ∇W from the weight alone."""

    multiplicative = True
    centre = 0.5

    def rows(self, grad: Tensor, weight: Tensor, scales: Scales) -> list[Tensor]:
        """W̃ in both forms."""
        return [unit_weight(weight, scales)]

    def row_names(self) -> list[str]:
        """See `Hypernet.row_names`."""
        return ["W̃"]

    def sources(self, grad: Tensor, weight: Tensor) -> list[Tensor]:
        """Tanh W, which W̃ follows."""
        return [torch.tanh(weight)]

    def slopes(self, scales: Scales) -> list[Tensor]:
        """1/(2·max|tanh W|)."""
        return [unit_slope(scales)]

    def half_widths(self, scales: Scales) -> Tensor:
        """½: W̃ lies in [0, 1]."""
        return torch.full_like(scales.weight, 0.5).view(1)
