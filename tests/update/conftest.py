"""A plain restatement of the delayed update, end to end through autograd, to hold the real one against.

Nothing here comes from bench: hypernetworks, optimizers, quantizer and update are written out once more, slowly.
"""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor


def uniform(x: Tensor, bits: int) -> Tensor:
    """MetaGrad Eq. 1 with the layer's maximum, dequantized; a zero layer stays zero."""
    top = 2 ** (bits - 1) - 1
    clip = x.detach().abs().max()
    return torch.zeros_like(x) if clip == 0 else torch.round(x * top / clip) * clip / top


def plain_lstm(psi: dict[str, Tensor], x: Tensor, memory: list[Tensor] | None) -> Tensor:
    """FC(LSTM(x)) from the textbook, every gate and the hidden-to-hidden product included; x is (n, inputs).

    The state is zero, or that of `memory`, which is then replaced by the new one.
    """
    hidden = psi["lstm.weight_hh_l0"].shape[1]
    h = memory[0] if memory else x.new_zeros(x.shape[0], hidden)
    c = memory[1] if memory else x.new_zeros(x.shape[0], hidden)
    gates = x @ psi["lstm.weight_ih_l0"].T + psi["lstm.bias_ih_l0"] + h @ psi["lstm.weight_hh_l0"].T
    gates = gates + psi["lstm.bias_hh_l0"]
    i, f, g, o = (gates[:, k * hidden : (k + 1) * hidden] for k in range(4))
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    h = torch.sigmoid(o) * torch.tanh(c)
    if memory is not None:
        memory[:] = [h.detach(), c.detach()]
    return (h @ psi["head.weight"].T + psi["head.bias"])[:, 0]


def plain_fcs(psi: dict[str, Tensor], x: Tensor, activation: str) -> Tensor:
    """Bias-free linear layers with an activation between them; x is (n, 1)."""
    matrices = list(psi.values())
    for matrix in matrices[:-1]:
        x = x @ matrix.T
        x = {"none": lambda y: y, "relu": torch.relu, "tanh": torch.tanh}[activation](x)
    return (x @ matrices[-1].T)[:, 0]


def largest(tensors: list[Tensor]) -> Tensor:
    """max|x| over all of them."""
    return torch.stack([tensor.detach().abs().max() for tensor in tensors]).max()


def over(x: Tensor, scale: Tensor) -> Tensor:
    return x / scale if scale > 0 else torch.zeros_like(x)


def plain_hypernet(
    name: str,
    form: str,
    psi: dict[str, Tensor],
    grad: Tensor,
    weight: Tensor,
    activation: str,
    memory: list[Tensor] | None = None,
) -> Tensor:
    """f_psi by the table of docs/method.md section 3."""
    g, w = grad.reshape(-1), weight.reshape(-1)
    top_g, top_w = g.abs().max(), w.abs().max()
    unit = over(torch.tanh(w), 2 * torch.tanh(w).abs().max()) + 0.5
    if name == "fc_grad":
        f = plain_fcs(psi, g[:, None], activation) if form == "literal" else None
        f = g + top_g * plain_fcs(psi, over(g, top_g)[:, None], activation) if f is None else f
    elif name == "multi_fc":
        factor = plain_fcs(psi, unit[:, None], activation)
        f = g * factor if form == "literal" else g * (1 + factor)
    elif name == "lstm_fc":
        f = (
            g * plain_lstm(psi, w[:, None], memory)
            if form == "literal"
            else g * (1 + plain_lstm(psi, unit[:, None], memory))
        )
    elif form == "literal":
        f = plain_lstm(psi, torch.stack([w, g], dim=1), memory)
    else:
        f = g + top_g * plain_lstm(psi, torch.stack([over(w, top_w), over(g, top_g)], dim=1), memory)
    return f.reshape(grad.shape)


def on_a_grid(net: Callable[[Tensor], Tensor], x: Tensor, half: list[Tensor], centre: float, points: int) -> Tensor:
    """`net` at a grid's nodes only, (bi)linear between them, written out; x is (n, inputs)."""
    unit = torch.linspace(-1, 1, points, dtype=x.dtype)
    places = [((x[:, k] - centre) / half[k] + 1) / 2 * (points - 1) for k in range(x.shape[1])]
    lower = [place.floor().clamp(0, points - 2).long() for place in places]
    shares = [place - low for place, low in zip(places, lower, strict=True)]
    if len(places) == 1:
        table = net((centre + half[0] * unit)[:, None])
        return table[lower[0]] * (1 - shares[0]) + table[lower[0] + 1] * shares[0]
    nodes = torch.cartesian_prod(centre + half[0] * unit, centre + half[1] * unit)
    table = net(nodes).view(points, points)
    (i, j), (p, q) = lower, shares
    near = table[i, j] * (1 - q) + table[i, j + 1] * q
    far = table[i + 1, j] * (1 - q) + table[i + 1, j + 1] * q
    return near * (1 - p) + far * p


def plain_tabulated(
    name: str,
    form: str,
    psi: dict[str, Tensor],
    grad: Tensor,
    weight: Tensor,
    activation: str,
    points: int,
    tops: tuple[Tensor, Tensor],
) -> Tensor:
    """The same function of one layer with the trained network read from a grid over all layers' ranges.

    `tops` are the largest |gradient| and |weight| of all layers, which only raw inputs need.
    """
    g, w = grad.reshape(-1), weight.reshape(-1)
    top_g, top_w = g.abs().max(), w.abs().max()
    unit = over(torch.tanh(w), 2 * torch.tanh(w).abs().max()) + 0.5
    one = torch.ones((), dtype=g.dtype)
    literal = form == "literal"

    def fcs(x: Tensor) -> Tensor:
        return plain_fcs(psi, x, activation)

    def lstm(x: Tensor) -> Tensor:
        return plain_lstm(psi, x, None)

    if name == "fc_grad":
        x, half = (g, tops[0]) if literal else (over(g, top_g), one)
        core = on_a_grid(fcs, x[:, None], [half], 0.0, points)
        f = core if literal else g + top_g * core
    elif name in ("multi_fc", "lstm_fc"):
        is_raw = literal and name == "lstm_fc"
        x, half, centre = (w, tops[1], 0.0) if is_raw else (unit, one / 2, 0.5)
        factor = on_a_grid(fcs if name == "multi_fc" else lstm, x[:, None], [half], centre, points)
        f = g * factor if literal else g * (1 + factor)
    else:
        pair = (w, g) if literal else (over(w, top_w), over(g, top_g))
        halves = [tops[1], tops[0]] if literal else [one, one]
        core = on_a_grid(lstm, torch.stack(pair, dim=1), halves, 0.0, points)
        f = core if literal else g + top_g * core
    return f.reshape(grad.shape)


class PlainOptimizer:
    """pi(g) of one weight with a graph to g and a detached history."""

    def __init__(self, name: str, weight_decay: float) -> None:
        self.name, self.weight_decay = name, weight_decay
        self.buffer: Any = 0.0
        self.m: Any = 0.0
        self.v: Any = 0.0
        self.t = 0

    def pi(self, g: Tensor, weight: Tensor) -> Tensor:
        g = g + self.weight_decay * weight
        if self.name == "sgd":
            return g
        if self.name in ("momentum", "nesterov"):
            buffer = 0.9 * self.buffer + g
            self.buffer = buffer.detach()
            return g + 0.9 * buffer if self.name == "nesterov" else buffer
        self.t += 1
        m = 0.9 * self.m + 0.1 * g
        v = 0.999 * self.v + 0.001 * g * g
        self.m, self.v = m.detach(), v.detach()
        m_hat, v_hat = m / (1 - 0.9**self.t), v / (1 - 0.999**self.t)
        alive = v_hat > 0
        root = torch.where(alive, v_hat, torch.ones_like(v_hat)).sqrt()
        step = torch.where(alive, m_hat / (root + 1e-3), torch.zeros_like(m_hat))
        return step.detach() + g - g.detach() if self.name == "adam_one" else step


class PlainUpdate:
    """The whole update, restated: weights and psi are plain tensors, every iteration one graph."""

    def __init__(
        self,
        hypernet: str,
        form: str,
        psi: dict[str, Tensor],
        weights: list[Tensor],
        loss: Callable[[list[Tensor], int], Tensor],
        *,
        optimizer: str,
        weight_decay: float,
        bits: int,
        activation: str = "none",
        carry: bool = False,
        points: int | None = None,
    ) -> None:
        """`points` reads f_psi from a grid with so many points per axis."""
        self.points = points
        self.hypernet, self.form, self.bits, self.loss, self.activation = hypernet, form, bits, loss, activation
        self.psi = {key: value.detach().clone().requires_grad_() for key, value in psi.items()}
        self.weights = [weight.detach().clone() for weight in weights]
        self.optimizers = [PlainOptimizer(optimizer, weight_decay) for _ in weights]
        self.meta = torch.optim.Adam(list(self.psi.values()), lr=1e-3)
        self.memories: list[list[Tensor] | None] = [[] if carry else None for _ in weights]
        self.pending: list[Tensor] | None = None
        self.pending_lr: list[float] = []

    def f_of(self, index: int, grad: Tensor, weight: Tensor) -> Tensor:
        """f_psi of one layer."""
        if self.points is None:
            memory = self.memories[index]
            return plain_hypernet(self.hypernet, self.form, self.psi, grad, weight, self.activation, memory)
        assert self.pending is not None
        tops = largest(self.pending), largest(self.weights)
        return plain_tabulated(self.hypernet, self.form, self.psi, grad, weight, self.activation, self.points, tops)

    def iterate(self, t: int, lr: float, factors: list[float] | None = None, only: int | None = None) -> list[Tensor]:
        """One iteration; `only` lets a single layer's output reach psi. Answers the gradients of psi."""
        rates = [lr * factor for factor in factors] if factors else [lr] * len(self.weights)
        if self.pending is None:
            news = [weight.requires_grad_() for weight in self.weights]
            self.pending = list(torch.autograd.grad(self.loss(news, t), news))
            self.weights = [new.detach() for new in news]
            self.pending_lr = rates
            return []
        news = []
        for index, (grad, weight, optimizer) in enumerate(
            zip(self.pending, self.weights, self.optimizers, strict=True)
        ):
            f = self.f_of(index, grad, weight)
            f = f if only is None or only == index else f.detach()
            g_tilde = f + (uniform(f, self.bits) - f).detach()
            news.append(weight - self.pending_lr[index] * optimizer.pi(g_tilde, weight))
        leaves = [new if new.requires_grad else new.requires_grad_() for new in news]
        grads = torch.autograd.grad(self.loss(leaves, t), [*leaves, *self.psi.values()], allow_unused=True)
        self.pending = [grad.detach() for grad in grads[: len(leaves)]]
        self.weights = [leaf.detach() for leaf in leaves]
        self.pending_lr = rates
        meta = [
            torch.zeros_like(value) if grad is None else grad
            for value, grad in zip(self.psi.values(), grads[len(leaves) :], strict=True)
        ]
        for value, grad in zip(self.psi.values(), meta, strict=True):
            value.grad = grad.clone()
        self.meta.step()
        return meta


def make_problem(dtype: torch.dtype) -> SimpleNamespace:
    """A two-layer net on fixed data, other data each iteration; losses as a function of the two weights."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)

    weights = [normal(6, 4) * 0.4, normal(3, 6) * 0.4]
    batches = [(normal(8, 4), normal(8, 3)) for _ in range(8)]

    def loss(news: list[Tensor], t: int) -> Tensor:
        x, target = batches[t]
        return ((torch.tanh(x @ news[0].T) @ news[1].T - target) ** 2).mean()

    return SimpleNamespace(weights=weights, loss=loss)


@pytest.fixture
def plain() -> SimpleNamespace:
    """The restatement: PlainUpdate, uniform, plain_hypernet and make_problem."""
    return SimpleNamespace(
        PlainOptimizer=PlainOptimizer,
        PlainUpdate=PlainUpdate,
        uniform=uniform,
        plain_hypernet=plain_hypernet,
        plain_tabulated=plain_tabulated,
        largest=largest,
        make_problem=make_problem,
    )
