"""LSTMFC (MetaGrad Eq. 9; MetaQuant): f = ∇W·FC(LSTM(W')).

`residual` feeds W̃ in [0, 1] and takes the factor 1 + FC(·); `literal` feeds W and takes FC(·).
Source: docs/method.md section 3.
"""

from __future__ import annotations

from torch import Tensor, nn

from bench.hypernets.base import Evaluation, Hypernet, Scales, unit_weight
from bench.hypernets.lstm_cell import ReducedCell


class LSTMHypernet(Hypernet):
    """An nn.LSTM over a sequence of one with zero state, and a linear head."""

    def __init__(self, *, hidden: int, form: str = "residual") -> None:
        """Default initialisation of torch, the head zero in the `residual` form.

        Args:
            hidden: H, what MetaGrad calls the number of hidden layers.
            form: residual or literal.
        """
        super().__init__(form=form)
        self.hidden = hidden
        self.lstm = nn.LSTM(self.inputs, hidden)
        self.head = nn.Linear(hidden, 1)
        if form == "residual":
            nn.init.zeros_(self.head.weight)
            nn.init.zeros_(self.head.bias)

    def core(self, features: Tensor) -> Tensor:
        """FC(LSTM(x)) by nn.LSTM, batch n and sequence length 1; (inputs, n) to (n,)."""
        states, _ = self.lstm(features.t().unsqueeze(0))
        return self.head(states[0]).view(-1)

    def evaluation(self) -> Evaluation:
        """The reduced cell."""
        return ReducedCell(self.lstm, self.head)


class LSTMFC(LSTMHypernet):
    """A factor of ∇W from the weight alone."""

    inputs = 1
    multiplicative = True
    bounds = (0.0, 1.0)

    def features(self, grad: Tensor, weight: Tensor, scales: Scales) -> Tensor:
        """W̃ in the `residual` form, W in the `literal` one; (1, n)."""
        # a copy: a kept graph must not see the weights move
        return (unit_weight(weight, scales) if self.form == "residual" else weight.clone()).view(1, -1)
