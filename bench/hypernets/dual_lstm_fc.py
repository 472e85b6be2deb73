"""DualLSTMFC (MetaGrad Eq. 10): f = FC(LSTM([W'; ∇W'])).

`residual` scales both inputs by their layer's maxima and answers ∇W + max|∇W|·FC(·); `literal` is the formula on raw
numbers, which from default initialisation emits a near constant ±0.05 whatever the gradient.
Source: docs/method.md section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from bench.hypernets.base import Scales, scaled
from bench.hypernets.lstm_fc import LSTMHypernet


class DualLSTMFC(LSTMHypernet):
    """The gradient itself, predicted from weight and gradient."""

    inputs = 2
    multiplicative = False

    def features(self, grad: Tensor, weight: Tensor, scales: Scales) -> Tensor:
        """W'/max|W'| over ∇W'/max|∇W'| in the `residual` form, both raw in the `literal` one; (2, n)."""
        if self.form == "residual":
            return torch.stack([scaled(weight, scales.weight), scaled(grad, scales.gradient)])
        return torch.stack([weight, grad])
