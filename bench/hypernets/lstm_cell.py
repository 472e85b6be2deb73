"""The zero-state LSTM cell with a linear head, reduced to what its value depends on, and its gradient by hand.

With h = c = 0 the hidden-to-hidden product and the forget gate have no effect, so y = w_fc·h + b_fc with
i = σ(·), g = tanh(·), o = σ(·) of a (3H, inputs) product, c = i·g, h = o·tanh c. The numbers are those of nn.LSTM
over a sequence of one. The parameters stay in an nn.LSTM and an nn.Linear, both bias vectors apart: merged into
one they would take half of Adam's step.

Everything is laid out with the weights' coordinates along the contiguous axis. The gradient is linear in the
cotangent v and in w_fc, so v enters through the features and w_fc at the very end: no pass
over (H, n) is spent on them.

Source: docs/method.md section 3; MetaGrad Eq. 9 and 10.

Shapes: H hidden size, n coordinates of this part.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn


def used_gates(rows: Tensor, hidden: int) -> Tensor:
    """The input, cell and output gates' rows of nn.LSTM's (4H, ...) stacking (input, forget, cell, output)."""
    return torch.cat([rows[:hidden], rows[2 * hidden :]])


def embed_gates(rows: Tensor, hidden: int) -> Tensor:
    """The (4H, ...) stacking again, zeros for the forget gate."""
    return torch.cat([rows[:hidden], torch.zeros_like(rows[:hidden]), rows[hidden:]])


class ReducedCell:
    """Values and gradients of FC(LSTM(x)) at fixed parameters, part by part in reused buffers."""

    def __init__(self, lstm: nn.LSTM, head: nn.Linear) -> None:
        """Read the parameters once; they must not change before `finish`."""
        self.head = head
        self.hidden = lstm.hidden_size
        self.weight_ih, _, self.bias_ih, self.bias_hh = lstm.parameters()
        with torch.no_grad():
            bias = self.bias_ih + self.bias_hh
            # the bias is the weight of a constant input, so one product makes the gates
            self.weight = used_gates(torch.cat([self.weight_ih, bias[:, None]], dim=1), self.hidden)
            self.head_weight = head.weight.detach()
            self.head_bias = head.bias.detach()
        self.total: Tensor | None = None
        self.buffer = self.weight.new_empty(0)

    @torch.no_grad()
    def values(self, features: Tensor) -> Tensor:
        """Y (n,) at `features` (inputs, n)."""
        hidden = self.hidden
        rows = self._workspace(features.shape[1])
        gates = torch.mm(self.weight, with_constant(features), out=rows[hidden:])
        gate_i, gate_g, gate_o = gates[:hidden].sigmoid_(), gates[hidden : 2 * hidden].tanh_(), gates[2 * hidden :]
        state = gate_i.mul_(gate_g).tanh_().mul_(gate_o.sigmoid_())
        return torch.mm(self.head_weight, state).view(-1).add_(self.head_bias)

    @torch.no_grad()
    def accumulate(self, features: Tensor, cotangent: Tensor) -> None:
        """Add the gradient of Σ cotangent·y by the parameters.

        Source: the chain rule through c = i·g, h = o·t, t = tanh c; with δ = ∂h/∂c = o − h·t the gates'
        pre-activations get δ·(c − c·i), δ·(i − c·g) and h − h·o.
        """
        hidden = self.hidden
        rows = self._workspace(features.shape[1])
        inputs = with_constant(features)
        torch.mm(self.weight, inputs, out=rows[hidden:])
        state, gate_i, gate_g, gate_o = rows.split(hidden)
        gate_i.sigmoid_()
        gate_g.tanh_()
        gate_o.sigmoid_()
        cell = gate_i * gate_g
        slope = torch.tanh(cell)
        torch.mul(gate_o, slope, out=state)
        torch.addcmul(gate_o, state, slope, value=-1, out=slope)
        torch.addcmul(state, state, gate_o, value=-1, out=gate_o)
        torch.addcmul(gate_i, cell, gate_g, value=-1, out=gate_g).mul_(slope)
        torch.addcmul(cell, cell, gate_i, value=-1, out=gate_i).mul_(slope)
        # the thin factor first: a third of the time of (4H, n) @ (n, inputs + 1)
        part = torch.mm(inputs * cotangent, rows.t()).t()  # (4H, inputs + 1): Σ v·h in the first H rows' last column
        part_bias = cotangent.sum()
        if self.total is None:
            self.total, self.total_bias = part, part_bias
        else:
            self.total += part
            self.total_bias += part_bias

    @torch.no_grad()
    def finish(self) -> None:
        """Add what was accumulated to the ``.grad`` of the nn.LSTM's and the head's parameters."""
        if self.total is None:
            return
        hidden = self.hidden
        by_head = self.total[:hidden, -1]
        by_gates = embed_gates(self.total[hidden:] * self.head_weight.view(-1).repeat(3)[:, None], hidden)
        add_grad(self.weight_ih, by_gates[:, :-1].contiguous())
        add_grad(self.bias_ih, by_gates[:, -1].contiguous())
        add_grad(self.bias_hh, by_gates[:, -1].clone())
        add_grad(self.head.weight, by_head.view(1, -1).clone())
        add_grad(self.head.bias, self.total_bias.view(1))
        self.total = None

    def _workspace(self, count: int) -> Tensor:
        """(4H, count), from one buffer that grows to the largest part."""
        needed = 4 * self.hidden * count
        if self.buffer.numel() < needed:
            self.buffer = self.weight.new_empty(needed)
        return self.buffer[:needed].view(4 * self.hidden, count)


def with_constant(features: Tensor) -> Tensor:
    """`features` (inputs, n) over a row of ones, the input that carries the biases."""
    rows = features.new_ones(features.shape[0] + 1, features.shape[1])
    rows[:-1] = features
    return rows


def add_grad(param: Tensor, grad: Tensor) -> None:
    """Add to a parameter's ``.grad`` as autograd does."""
    param.grad = grad if param.grad is None else param.grad + grad
