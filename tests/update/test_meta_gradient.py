from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from bench.hypernets import HYPERNETS
from bench.update import DelayedUpdate
from tests.update.iterations import (
    OPTIMIZERS,
    RATES,
    STRATEGIES,
    assert_close,
    build,
    iterate,
    meta_grads,
    randomised,
)

POINTS = {"fc_grad": 129, "multi_fc": 129, "lstm_fc": 129, "dual_lstm_fc": 17}  # of the first grid


def follow(update: DelayedUpdate, problem: SimpleNamespace, other: Any, relative: float) -> None:
    """Run both for all iterations, comparing the meta-gradient, psi and the weights after each."""
    generator = torch.Generator().manual_seed(5)
    slim = hasattr(update.strategy, "generator")
    for t, lr in enumerate(RATES):
        only = int(torch.randint(2, (), generator=generator)) if slim and t > 0 else None
        expected = other.iterate(t, lr, only=only)
        iterate(update, problem, t, lr)
        if t > 0:
            assert max(float(grad.abs().max()) for grad in expected) > 0
            assert_close(meta_grads(update), expected, relative)
        assert_close([p.detach() for p in update.hypernet.parameters()], list(other.psi.values()), relative)
        assert_close([p.detach() for p in update.params], other.weights, relative)


def restate(
    plain: SimpleNamespace, problem: SimpleNamespace, hypernet: torch.nn.Module, name: str, form: str, optimizer: str,
    **more: Any,
) -> Any:  # fmt: skip
    """The plain twin of ``build``'s update with that hypernetwork, at four bits."""
    return plain.PlainUpdate(
        name, form, dict(hypernet.named_parameters()), problem.weights, problem.loss,
        optimizer=optimizer, weight_decay=OPTIMIZERS[optimizer][1]["weight_decay"], bits=4, **more,
    )  # fmt: skip


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("form", ["residual", "literal"])
@pytest.mark.parametrize("name", HYPERNETS)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_meta_gradient_equals_autograd_through_the_restated_update(
    plain: SimpleNamespace, name: str, form: str, optimizer: str, strategy: str, dtype: torch.dtype, relative: float
) -> None:
    problem = plain.make_problem(dtype)
    hypernet = randomised(name, form, dtype)
    other = restate(plain, problem, hypernet, name, form, optimizer)
    follow(build(plain, problem, hypernet, strategy, optimizer), problem, other, relative)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("form", ["residual", "literal"])
@pytest.mark.parametrize("name", HYPERNETS)
@pytest.mark.parametrize(("dtype", "relative"), [(torch.float64, 1e-10), (torch.float32, 1e-4)])
def test_tabulates_meta_gradient_equals_autograd_through_the_restated_interpolated_update(
    plain: SimpleNamespace, name: str, form: str, optimizer: str, dtype: torch.dtype, relative: float
) -> None:
    problem = plain.make_problem(dtype)
    hypernet = randomised(name, form, dtype)
    other = restate(plain, problem, hypernet, name, form, optimizer, points=POINTS[name])
    coarse = {"max_nodes": 2}  # stays at its first grid
    follow(build(plain, problem, hypernet, "tabulate", optimizer, arguments=coarse), problem, other, relative)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("name", ["fc_grad", "multi_fc"])
def test_meta_gradient_holds_for_deep_bent_fully_connected_hypernets(
    plain: SimpleNamespace, name: str, activation: str, strategy: str
) -> None:
    problem = plain.make_problem(torch.float64)
    hypernet = randomised(name, "residual", torch.float64, depth=4, activation=activation)
    other = restate(plain, problem, hypernet, name, "residual", "adam", activation=activation)
    follow(build(plain, problem, hypernet, strategy, "adam"), problem, other, 1e-10)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("form", ["residual", "literal"])
@pytest.mark.parametrize("name", ["lstm_fc", "dual_lstm_fc"])
def test_meta_gradient_holds_with_a_state_carried_across_iterations(
    plain: SimpleNamespace, name: str, form: str, strategy: str
) -> None:
    problem = plain.make_problem(torch.float64)
    hypernet = randomised(name, form, torch.float64, state="carry")
    other = restate(plain, problem, hypernet, name, form, "momentum", carry=True)
    follow(build(plain, problem, hypernet, strategy, "momentum"), problem, other, 1e-10)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_learning_rate_factors_belong_to_the_gradient_they_were_measured_with(
    plain: SimpleNamespace, optimizer: str
) -> None:
    problem = plain.make_problem(torch.float64)
    hypernet = randomised("dual_lstm_fc", "residual", torch.float64)
    factors = [torch.ones((), dtype=torch.float64), torch.ones((), dtype=torch.float64)]
    update = build(plain, problem, hypernet, "recompute", optimizer, lr_factors=lambda: factors)
    other = restate(plain, problem, hypernet, "dual_lstm_fc", "residual", optimizer)
    for t, lr in enumerate(RATES):
        values = [1.0 / (t + 1), 0.1 + 0.2 * t]
        for factor, value in zip(factors, values, strict=True):
            factor.fill_(value)  # in place, as a layer does
        expected = other.iterate(t, lr, factors=values)
        iterate(update, problem, t, lr)
        if t > 0:
            assert_close(meta_grads(update), expected, 1e-10)
        assert_close([p.detach() for p in update.params], other.weights, 1e-10)
