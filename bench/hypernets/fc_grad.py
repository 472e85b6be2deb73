"""FCGrad (MetaQuant): f = FCs(∇W), linear layers without bias.

Without activations this is one number times ∇W (MetaQuant Fig. 4 plots it). `residual` answers
∇W + max|∇W|·FCs(∇W/max|∇W|), which without activations is ∇W·(1 + number); `literal` FCs(∇W).
Source: docs/method.md section 3.
"""

from __future__ import annotations

from torch import Tensor

from bench.hypernets.base import Scales, scaled
from bench.hypernets.multi_fc import FCHypernet


class FCGrad(FCHypernet):
    """The gradient itself, predicted from the gradient alone."""

    multiplicative = False

    def features(self, grad: Tensor, weight: Tensor, scales: Scales) -> Tensor:
        """∇W/max|∇W| in the `residual` form, ∇W in the `literal` one; (1, n)."""
        return (scaled(grad, scales.gradient) if self.form == "residual" else grad).view(1, -1)
