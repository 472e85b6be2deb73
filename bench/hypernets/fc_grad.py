"""FCGrad (MetaQuant): f = FCs(∇W), linear layers without bias.

Without activations this is one number times ∇W (MetaQuant Fig. 4 plots it). `residual` answers
∇W + max|∇W|·FCs(∇W/max|∇W|), which without activations is ∇W·(1 + number); `literal` FCs(∇W).
Source: docs/method.md section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.hypernets.base import Scales, safe_width, scaled
from bench.hypernets.multi_fc import FCHypernet


class FCGrad(FCHypernet):
    """The gradient itself, predicted from the gradient alone."""

    multiplicative = False

    def rows(self, grad: Tensor, weight: Tensor, scales: Scales) -> list[Tensor]:
        """∇W/max|∇W| in the `residual` form, ∇W in the `literal` one."""
        return [scaled(grad, scales.gradient) if self.form == "residual" else grad]

    def row_names(self) -> list[str]:
        """See `Hypernet.row_names`."""
        return ["∇W/max|∇W|" if self.form == "residual" else "∇W"]

    def sources(self, grad: Tensor, weight: Tensor) -> list[Tensor]:
        """∇W."""
        return [grad]

    def slopes(self, scales: Scales) -> list[Tensor]:
        """1/max|∇W| in the `residual` form, 1 in the `literal` one."""
        width = safe_width(scales.gradient)
        return [width.reciprocal() if self.form == "residual" else torch.ones_like(width)]

    def half_widths(self, scales: Scales) -> Tensor:
        """1 for the scaled input, max|∇W| for the raw one."""
        width = safe_width(scales.gradient).view(1)
        return torch.ones_like(width) if self.form == "residual" else width
