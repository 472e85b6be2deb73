"""LSTMFC (MetaGrad Eq. 9; MetaQuant): f = ∇W·FC(LSTM(W')).

`residual` feeds W̃ in [0, 1] and takes the factor 1 + FC(·); `literal` feeds W and takes FC(·).
Source: docs/method.md section 3.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.hypernets.base import Evaluation, Hypernet, Scales, State, safe_width, unit_slope, unit_weight
from bench.hypernets.lstm_cell import ReducedCell

STATES = ("zero", "carry")


class LSTMHypernet(Hypernet):
    """An nn.LSTM over a sequence of one, and a linear head."""

    def __init__(self, *, hidden: int, form: str = "residual", state: str = "zero") -> None:
        """Default initialisation of torch, the head zero in the `residual` form.

        Args:
            hidden: H, what MetaGrad calls the number of hidden layers.
            form: residual or literal.
            state: zero at each iteration (MetaQuant's published runs), or carry, which keeps (h, c) of every weight.

        Raises:
            ConfigError: for an unknown form or state.
        """
        super().__init__(form=form)
        if state not in STATES:
            raise ConfigError(f"unknown LSTM state {state!r}; choose one of: {', '.join(STATES)}.")
        self.carries = state == "carry"
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

    def core_carried(self, features: Tensor, state: State) -> tuple[Tensor, State]:
        """FC(LSTM(x)) from (h, c), which are constants, by nn.LSTM; the state after it is part of the graph."""
        h, c = state
        states, (h, c) = self.lstm(features.t().unsqueeze(0), (h.unsqueeze(0), c.unsqueeze(0)))
        return self.head(states[0]).view(-1), (h[0], c[0])

    def evaluation(self) -> Evaluation:
        """The reduced cell, for a zero state."""
        assert not self.carries, "a carried state has no reduced cell; use CarriedEvaluation"
        return ReducedCell(self.lstm, self.head)


class LSTMFC(LSTMHypernet):
    """A factor of ∇W from the weight alone."""

    inputs = 1
    multiplicative = True

    def __init__(self, *, hidden: int, form: str = "residual", state: str = "zero") -> None:
        """See `LSTMHypernet`."""
        super().__init__(hidden=hidden, form=form, state=state)
        self.centre = 0.5 if form == "residual" else 0.0

    def rows(self, grad: Tensor, weight: Tensor, scales: Scales) -> list[Tensor]:
        """W̃ in the `residual` form, W in the `literal` one."""
        return [unit_weight(weight, scales) if self.form == "residual" else weight]

    def row_names(self) -> list[str]:
        """See `Hypernet.row_names`."""
        return ["W̃" if self.form == "residual" else "W"]

    def sources(self, grad: Tensor, weight: Tensor) -> list[Tensor]:
        """Tanh W, which W̃ follows, in the `residual` form, W in the `literal` one."""
        return [torch.tanh(weight) if self.form == "residual" else weight]

    def slopes(self, scales: Scales) -> list[Tensor]:
        """1/(2·max|tanh W|) in the `residual` form, 1 in the `literal` one."""
        return [unit_slope(scales) if self.form == "residual" else torch.ones_like(scales.weight)]

    def half_widths(self, scales: Scales) -> Tensor:
        """½ for W̃ in [0, 1], max|W| for the raw weight."""
        width = safe_width(scales.weight).view(1)
        return torch.full_like(width, 0.5) if self.form == "residual" else width
