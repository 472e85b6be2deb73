"""The delayed meta update: a gradient waits one iteration, so that the next loss judges the hypernetwork on it.

Iteration t holds a pending gradient G of the last one and the learning rate μ that belonged to it:

1. `preview`: g̃ = Q(f_ψ(G, W)), W⁺ = W − μ·π(g̃), installed in the weights;
2. the caller's forward and backward at W⁺ leave ∇W⁺ in ``.grad``;
3. `meta_step`: ∇ψ = −μ·Σ_layers (π'·∂f_ψ(G, W)/∂ψ)ᵀ ∇W⁺, Adam on ψ; `commit`: W ← W⁺, G ← ∇W⁺.

In the first iteration nothing is pending: W⁺ = W, and neither ψ nor any optimizer's state or counter steps.
Nothing is checked for being finite: NaN and infinity reach the weights and the loss, where the loop sees them.

MetaQuant's order differs: G and ∇W⁺ are gradients by the quantized weight Ŵ, and W⁺ = W − μ·π(f_ψ(G, W)·∂Ŵ/∂W) in
full precision, so the factor ∂Ŵ/∂W multiplies what Q leaves, and ∇ψ holds it twice: at W from the step, at W⁺ from the
straight-through estimator of the new forward.

Source: docs/method.md sections 3 and 4; MetaGrad Eq. 2 to 5 and 11 to 13, Fig. 1; MetaQuant (Chen et al. 2019).
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.hypernets import Hypernet
from bench.kernels.spans import span
from bench.layout import flat, laid_out_like
from bench.optim import Adam, Optimizer
from bench.optim.base import gather_grads, move_
from bench.update.base import Strategy
from bench.update.observation import Observation, observe_gradients
from bench.update.tabulate import Tabulate

Phases = Callable[[str], AbstractContextManager[Any]]


def no_phases(name: str) -> AbstractContextManager[Any]:
    """Time nothing."""
    return nullcontext()


class Stage(enum.Enum):
    """Where in the iteration the update stands."""

    COMMITTED = "committed"
    PREVIEWED = "previewed"
    STEPPED = "stepped"


class DelayedUpdate:
    """The state machine over a list of weights; one call each of preview, meta_step and commit per iteration."""

    def __init__(
        self,
        params: Sequence[nn.Parameter],
        *,
        optimizer: Optimizer,
        hypernet: Hypernet,
        strategy: Strategy,
        quantize: Callable[[Tensor], Tensor],
        meta_lr: float = 1e-3,
        lr_factors: Callable[[], Sequence[Tensor]] | None = None,
        factors: Callable[[int, Tensor], Tensor | None] | None = None,
        phases: Phases = no_phases,
        observe: bool = False,
    ) -> None:
        """Join the parts.

        Args:
            params: the quantized layers' weights, one per layer.
            optimizer: built over exactly these weights; the other parameters have their own.
            hypernet: f_ψ, on the weights' device.
            strategy: how f_ψ and its gradient are evaluated.
            quantize: Q, per layer: a weight-shaped tensor to its quantized and dequantized values.
            meta_lr: learning rate of Adam on ψ.
            lr_factors: answers after a backward one () tensor per weight that multiplies the learning rate of
                that gradient (UINT8's), to be read at `commit`.
            factors: layer index and W to ∂Ŵ/∂W, where ``.grad`` holds ∇Ŵ instead of ∇W (MetaQuant); it answers None for
                a layer where the factor is 1. None where ``.grad`` holds ∇W.
            phases: context manager by phase name, entered around ``hypernet_forward``, ``optimizer`` and
                ``meta_gradient``.
            observe: whether each iteration leaves an `observation`; may be set before any `preview`.

        Raises:
            ConfigError: if the hypernetwork carries a state and the strategy cannot.
        """
        self.params = list(params)
        assert [id(p) for p in optimizer.params] == [id(p) for p in self.params], "the optimizer has other parameters"
        if hypernet.carries and not strategy.can_carry:
            raise ConfigError("tabulate needs a zero LSTM state; take state zero, or retain, slim or recompute.")
        self.optimizer = optimizer
        self.hypernet = hypernet
        self.strategy = strategy
        self.quantize = quantize
        self.meta_optimizer = Adam(list(hypernet.parameters()), lr=meta_lr)
        self.lr_factors = lr_factors
        self.factors = factors
        self.phases = phases
        self.observe = observe
        self.sample = False  # whether `tabulate` holds the next iteration against the exact strategy
        self.observation: Observation | None = None
        self.stage = Stage.COMMITTED
        self.pending: list[Tensor] | None = None  # G
        self.pending_lr = 0.0  # μ
        self.pending_factors: list[Tensor] | None = None
        self.lr = 0.0  # of this iteration, belongs to the gradient that its backward will leave
        self.old_weights: list[Tensor] = []  # W, where it cannot be had back
        self.old_factors: list[Tensor | None] = []  # ∂Ŵ/∂W at W
        self.moved: list[Tensor] = []  # π, where the optimizer keeps it
        self.pi_prime: float | list[Tensor] = 1.0
        self.observed: tuple[Tensor, Tensor, Tensor] | None = None

    @property
    def sampling_s(self) -> float:
        """Seconds that comparisons with the exact strategy have taken: no part of a training's time."""
        return self.strategy.sampling_s if isinstance(self.strategy, Tabulate) else 0.0

    @torch.no_grad()
    def preview(self, lr: float) -> None:
        """Install W⁺ in the weights.

        Args:
            lr: this iteration's learning rate; W⁺ uses the one that was given when G was measured.
        """
        assert self.stage is Stage.COMMITTED, f"preview after {self.stage.value}: commit the last iteration first"
        self.stage = Stage.PREVIEWED
        self.lr = lr
        self.observation = self.observed = None
        if isinstance(self.strategy, Tabulate):
            self.strategy.take_sample = self.sample
        if self.pending is None:
            return
        weights = [param.detach() for param in self.params]
        with self.phases("hypernet_forward"), span("hypernet_forward"):
            replaced = self.strategy.outputs(self.hypernet, self.pending, weights)
            for index, output in enumerate(replaced):  # one by one, so that never both forms of all layers are there
                replaced[index] = self.quantize(output)
            del output
        if self.observe:
            self.observed = observe_gradients(self.pending, replaced)
        if self.factors is not None:
            self.old_factors = [self.factors(index, weight) for index, weight in enumerate(weights)]
            replaced = [
                output if factor is None else output * factor
                for output, factor in zip(replaced, self.old_factors, strict=True)
            ]
        with self.phases("optimizer"):
            direction = self.optimizer.direction(replaced)
            if direction.lasting:
                self.moved = direction.pi
            elif self.strategy.keeps_weight:
                self.old_weights = [weight.clone() for weight in weights]
            move_(weights, direction.pi, self.pending_lr, self.pending_factors)
            self.pi_prime = direction.pi_prime

    @torch.no_grad()
    def meta_step(self) -> None:
        """Take ∇ψ from the ``.grad`` that backward left in the weights, and step ψ."""
        assert self.stage is Stage.PREVIEWED, f"meta_step after {self.stage.value}: preview comes first"
        self.stage = Stage.STEPPED
        if self.pending is None:
            return
        grads = gather_grads(self.params, None)
        with self.phases("meta_gradient"), span("meta_gradient"):
            for param in self.meta_optimizer.params:
                param.grad = None
            operands = _MetaOperands(self, [laid_out_like(grad, p) for grad, p in zip(grads, self.params, strict=True)])
            self.strategy.meta_gradient(self.hypernet, self.pending, operands.old_weight, operands.cotangent)
            meta_grads = [
                torch.zeros_like(param) if param.grad is None else param.grad for param in self.meta_optimizer.params
            ]
            if self.observed is not None:
                norm = torch.linalg.vector_norm(torch.stack(list(torch._foreach_norm(meta_grads))))
                sample = self.strategy.sample if isinstance(self.strategy, Tabulate) else None
                self.observation = Observation(*self.observed, meta_gradient_norm=norm, tabulation=sample)
            self.meta_optimizer.step(meta_grads)
        self.old_weights, self.moved, self.pi_prime, self.old_factors = [], [], 1.0, []

    @torch.no_grad()
    def commit(self) -> None:
        """Keep W⁺, and hand the weights' ``.grad`` over as the pending gradient; ``.grad`` is None afterwards."""
        assert self.stage is Stage.STEPPED, f"commit after {self.stage.value}: meta_step comes first"
        self.stage = Stage.COMMITTED
        grads = gather_grads(self.params, None)
        self.pending = [laid_out_like(grad.detach(), param) for grad, param in zip(grads, self.params, strict=True)]
        self.pending_lr = self.lr
        self.pending_factors = None if self.lr_factors is None else [factor.clone() for factor in self.lr_factors()]
        for param in self.params:
            param.grad = None

    def state_dict(self) -> dict[str, Any]:
        """All that the next iterations depend on, by reference: G, its μ and factors, ψ, both optimizers, the draw."""
        assert self.stage is Stage.COMMITTED, f"state_dict after {self.stage.value}: save between two iterations"
        return {
            "pending": None if self.pending is None else list(self.pending),
            "pending_lr": self.pending_lr,
            "pending_factors": None if self.pending_factors is None else list(self.pending_factors),
            "hypernet": self.hypernet.state_dict(),
            "meta_optimizer": self.meta_optimizer.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "strategy": self.strategy.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume exactly where `state_dict` was taken; the weights themselves are the model's to restore."""
        assert self.stage is Stage.COMMITTED, f"load_state_dict after {self.stage.value}: load between two iterations"
        device = self.params[0].device
        for key in ("pending", "pending_factors"):
            setattr(self, key, None if state[key] is None else [x.to(device, copy=True) for x in state[key]])
        self.pending_lr = float(state["pending_lr"])
        self.hypernet.load_state_dict(state["hypernet"])
        self.meta_optimizer.load_state_dict(state["meta_optimizer"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.strategy.load_state_dict(state["strategy"])


class _MetaOperands:
    """What a strategy reads for ∇ψ after the backward: W and −μ·π'·∇W⁺, part by part in the order of ``flat``."""

    def __init__(self, update: DelayedUpdate, grads: Sequence[Tensor]) -> None:
        """Look at an update between backward and commit.

        Args:
            update: previewed, W⁺ in its weights.
            grads: ∇W⁺ of each layer, laid out as the weights are.
        """
        self.lr, self.lr_factors, self.prime = update.pending_lr, update.pending_factors, update.pi_prime
        self.factors, self.old_factors, self.params = update.factors, update.old_factors, update.params
        self.news = [flat(param.detach()) for param in update.params]
        self.olds = [flat(weight) for weight in update.old_weights]
        self.moved = [flat(laid_out_like(pi, param)) for pi, param in zip(update.moved, update.params, strict=False)]
        self.grads = [flat(grad) for grad in grads]
        self.primes: list[Tensor] = []
        if not isinstance(self.prime, float):
            pairs = zip(self.prime, update.params, strict=True)
            self.primes = [flat(laid_out_like(prime, param)) for prime, param in pairs]
        self.ste: Tensor | None = None  # ∂Ŵ/∂W at W times that at W⁺, of the last layer asked for
        self.ste_layer = -1

    def old_weight(self, index: int, part: slice) -> Tensor:
        """W of one layer: a copy, or to rounding W⁺ + μ·π, which costs no memory while the network runs."""
        if self.olds:
            return self.olds[index][part]
        if self.lr_factors is None:
            return torch.add(self.news[index][part], self.moved[index][part], alpha=self.lr)
        return torch.addcmul(self.news[index][part], self.moved[index][part], self.lr_factors[index], value=self.lr)

    def cotangent(self, index: int, part: slice) -> Tensor:
        """−μ·π'·∇W⁺ of one layer, the layer's learning-rate factor in it, and ∂Ŵ/∂W where it multiplies f_ψ."""
        scale = -self.lr * self.prime if isinstance(self.prime, float) else -self.lr
        cotangent = self.grads[index][part] * scale
        if self.primes:
            cotangent.mul_(self.primes[index][part])
        ste = self._ste_factor(index)
        if ste is not None:
            cotangent.mul_(ste[part])
        return cotangent if self.lr_factors is None else cotangent.mul_(self.lr_factors[index])

    def _ste_factor(self, index: int) -> Tensor | None:
        """Both factors of a layer, multiplied out; None where both are 1."""
        if self.factors is None:
            return None
        if index != self.ste_layer:
            old, new = self.old_factors[index], self.factors(index, self.params[index].detach())
            self.ste_layer = index
            self.ste = None
            if old is not None and new is not None:
                self.ste = flat(laid_out_like(old * new, self.params[index]))
        return self.ste
