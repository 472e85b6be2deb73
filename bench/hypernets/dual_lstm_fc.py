"""DualLSTMFC (MetaGrad Eq. 10): f = FC(LSTM([W'; ∇W'])).

`residual` scales both inputs by their layer's maxima and answers ∇W + max|∇W|·FC(·); `literal` is the formula on raw
numbers, which from default initialisation emits a near constant ±0.05 whatever the gradient.
Source: docs/method.md section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.hypernets.base import Scales, safe_width, scaled
from bench.hypernets.lstm_fc import LSTMHypernet


class DualLSTMFC(LSTMHypernet):
    """The gradient itself, predicted from weight and gradient."""

    inputs = 2
    multiplicative = False

    def rows(self, grad: Tensor, weight: Tensor, scales: Scales) -> list[Tensor]:
        """W'/max|W'| and ∇W'/max|∇W'| in the `residual` form, both raw in the `literal` one."""
        if self.form == "residual":
            return [scaled(weight, scales.weight), scaled(grad, scales.gradient)]
        return [weight, grad]

    def row_names(self) -> list[str]:
        """See `Hypernet.row_names`."""
        return ["W/max|W|", "∇W/max|∇W|"] if self.form == "residual" else ["W", "∇W"]

    def sources(self, grad: Tensor, weight: Tensor) -> list[Tensor]:
        """W and ∇W."""
        return [weight, grad]

    def slopes(self, scales: Scales) -> list[Tensor]:
        """1/max|W| and 1/max|∇W| in the `residual` form, 1 in the `literal` one."""
        widths = [safe_width(scales.weight), safe_width(scales.gradient)]
        return [width.reciprocal() if self.form == "residual" else torch.ones_like(width) for width in widths]

    def half_widths(self, scales: Scales) -> Tensor:
        """1 and 1 for scaled inputs, max|W| and max|∇W| for raw ones."""
        widths = safe_width(torch.stack([scales.weight, scales.gradient]))
        return torch.ones_like(widths) if self.form == "residual" else widths
