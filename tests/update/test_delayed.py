from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch

from bench.errors import ConfigError
from bench.hypernets import HYPERNETS, build_hypernet
from bench.update.base import WHOLE
from bench.update.delayed import _MetaOperands
from tests.update.iterations import (
    ALL_STRATEGIES,
    OPTIMIZERS,
    RATES,
    STRATEGIES,
    assert_close,
    build,
    iterate,
    meta_grads,
    randomised,
)


def test_tabulate_refuses_a_carried_state(plain: SimpleNamespace) -> None:
    hypernet = randomised("lstm_fc", "residual", torch.float32, state="carry")
    with pytest.raises(ConfigError, match="tabulate needs a zero LSTM state"):
        build(plain, plain.make_problem(torch.float32), hypernet, "tabulate")


@pytest.mark.parametrize("strategy", ALL_STRATEGIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_first_iteration_changes_nothing(plain: SimpleNamespace, optimizer: str, strategy: str) -> None:
    problem = plain.make_problem(torch.float32)
    update = build(plain, problem, randomised("dual_lstm_fc", "residual", torch.float32), strategy, optimizer)
    parts = (update.optimizer, update.meta_optimizer, update.hypernet)
    before = copy.deepcopy([part.state_dict() for part in parts])
    generator = copy.deepcopy(update.strategy.state_dict())
    iterate(update, problem, 0, 0.1)
    torch.testing.assert_close([part.state_dict() for part in parts], before, rtol=0, atol=0)
    torch.testing.assert_close(update.strategy.state_dict(), generator, rtol=0, atol=0)
    for param, weight in zip(update.params, problem.weights, strict=True):
        assert torch.equal(param, weight)


@pytest.mark.parametrize("name", HYPERNETS)
def test_residual_form_starts_at_the_plain_quantizer(plain: SimpleNamespace, name: str) -> None:
    problem = plain.make_problem(torch.float32)
    torch.manual_seed(0)
    for strategy in ALL_STRATEGIES:
        hypernet = build_hypernet(name, hidden=5)
        update = build(plain, problem, hypernet, strategy, "sgd")
        iterate(update, problem, 0, 0.1)
        assert update.pending is not None
        expected = [
            weight - 0.1 * (plain.uniform(grad, 4) + 0.02 * weight)
            for grad, weight in zip(update.pending, problem.weights, strict=True)
        ]
        update.preview(0.1)
        torch.testing.assert_close([p.detach() for p in update.params], expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("strategy", ALL_STRATEGIES)
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("name", HYPERNETS)
def test_zero_gradients_and_zero_weights_give_no_nan(
    plain: SimpleNamespace, name: str, optimizer: str, strategy: str
) -> None:
    problem = plain.make_problem(torch.float32)
    problem.weights = [torch.zeros_like(weight) for weight in problem.weights]  # both layers' gradients vanish
    update = build(plain, problem, randomised(name, "residual", torch.float32), strategy, optimizer)
    for t in range(4):
        assert torch.isfinite(iterate(update, problem, t, 0.1))
    for tensor in [*update.params, *update.hypernet.parameters(), *meta_grads(update)]:
        assert torch.isfinite(tensor).all()


def test_a_gradient_that_is_not_finite_reaches_weights_and_loss(plain: SimpleNamespace) -> None:
    for strategy in ALL_STRATEGIES:
        problem = plain.make_problem(torch.float32)
        update = build(plain, problem, randomised("dual_lstm_fc", "residual", torch.float32), strategy)
        iterate(update, problem, 0, 0.1)
        assert update.pending is not None
        update.pending[0][0, 0] = float("nan")
        assert torch.isnan(iterate(update, problem, 1, 0.1))


@pytest.mark.parametrize(
    ("strategy", "state"), [*((name, "zero") for name in ALL_STRATEGIES), *((name, "carry") for name in STRATEGIES)]
)
@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize("cut", [0, 1, 3])
def test_resume_is_bitwise(plain: SimpleNamespace, optimizer: str, strategy: str, cut: int, state: str) -> None:
    problem = plain.make_problem(torch.float32)
    update = build(
        plain, problem, randomised("dual_lstm_fc", "residual", torch.float32, state=state), strategy, optimizer
    )
    for t in range(cut):
        iterate(update, problem, t, RATES[t])
    saved = copy.deepcopy(update.state_dict())
    resumed_problem = SimpleNamespace(weights=[p.detach().clone() for p in update.params], loss=problem.loss)
    resumed = build(plain, resumed_problem, build_hypernet("dual_lstm_fc", hidden=5, state=state), strategy, optimizer)
    resumed.load_state_dict(saved)
    for t in range(cut, 5):
        assert torch.equal(iterate(update, problem, t, RATES[t]), iterate(resumed, problem, t, RATES[t]))
    for one, other in zip(update.hypernet.parameters(), resumed.hypernet.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
@pytest.mark.parametrize("strategy", ALL_STRATEGIES)
def test_weights_and_gradients_may_lie_in_any_order_in_memory(
    plain: SimpleNamespace, strategy: str, optimizer: str
) -> None:
    problem = plain.make_problem(torch.float64)
    updates = []
    for transposed in (False, True):
        update = build(plain, problem, randomised("dual_lstm_fc", "residual", torch.float64), strategy, optimizer)
        if transposed:  # the first weight alone; its gradients stay as they come
            update.params[0].data = update.params[0].data.t().contiguous().t()
        updates.append(update)
    for t, lr in enumerate(RATES):
        losses = [iterate(update, problem, t, lr) for update in updates]
        torch.testing.assert_close(losses[0], losses[1], rtol=1e-9, atol=0)
        assert_close(meta_grads(updates[1]), meta_grads(updates[0]), 1e-8)


def test_weights_keep_their_storage_and_gradients_are_handed_over(plain: SimpleNamespace) -> None:
    problem = plain.make_problem(torch.float32)
    update = build(plain, problem, randomised("dual_lstm_fc", "residual", torch.float32))
    places = [param.data_ptr() for param in update.params]
    for t in range(2):
        update.preview(0.1)
        problem.loss(update.params, t).backward()
        gradients = [param.grad.data_ptr() for param in update.params]
        update.meta_step()
        update.commit()
        assert [param.data_ptr() for param in update.params] == places
        assert [grad.data_ptr() for grad in update.pending or []] == gradients
        assert all(param.grad is None for param in update.params)


def test_momentum_needs_no_copy_of_the_old_weights(plain: SimpleNamespace) -> None:
    copies = {"sgd": 2, "momentum": 0, "nesterov": 2, "adam": 2}
    for optimizer, count in copies.items():
        problem = plain.make_problem(torch.float64)
        update = build(plain, problem, randomised("dual_lstm_fc", "residual", torch.float64), "recompute", optimizer)
        iterate(update, problem, 0, 0.1)
        before = [param.detach().clone() for param in update.params]
        update.preview(0.2)
        assert len(update.old_weights) == count
        operands = _MetaOperands(update, [torch.zeros_like(weight) for weight in before])
        for index, weight in enumerate(before):
            assert not torch.equal(update.params[index], weight)
            old = operands.old_weight(index, WHOLE).view(weight.shape)
            torch.testing.assert_close(old, weight, rtol=1e-14, atol=1e-16)


def test_phases_are_entered_in_the_order_of_the_step(plain: SimpleNamespace) -> None:
    entered: list[str] = []

    class Span:
        def __init__(self, name: str) -> None:
            self.name = name

        def __enter__(self) -> None:
            entered.append(self.name)

        def __exit__(self, *_: object) -> None:
            entered.append(f"/{self.name}")

    problem = plain.make_problem(torch.float32)
    update = build(plain, problem, randomised("multi_fc", "residual", torch.float32), phases=Span)
    iterate(update, problem, 0, 0.1)
    assert entered == []  # nothing is pending yet
    iterate(update, problem, 1, 0.1)
    spans = ["hypernet_forward", "optimizer", "meta_gradient"]
    assert entered == [mark for name in spans for mark in (name, f"/{name}")]


def test_calls_out_of_order_are_refused(plain: SimpleNamespace) -> None:
    problem = plain.make_problem(torch.float32)
    update = build(plain, problem, randomised("multi_fc", "residual", torch.float32))
    with pytest.raises(AssertionError, match="preview comes first"):
        update.meta_step()
    update.preview(0.1)
    with pytest.raises(AssertionError, match="commit the last iteration first"):
        update.preview(0.1)
    with pytest.raises(AssertionError, match="save between two iterations"):
        update.state_dict()
    update.meta_step()
    with pytest.raises(AssertionError, match="have no gradient"):
        update.commit()
