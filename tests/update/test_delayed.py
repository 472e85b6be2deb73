from __future__ import annotations

import copy
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.hypernets import HYPERNETS, build_hypernet
from bench.optim import build_optimizer
from bench.units import Absent
from bench.update import DelayedUpdate, build_strategy, read_observation
from bench.update.base import WHOLE
from bench.update.delayed import _MetaOperands

# weight decay 0 leaves zero codes with a zero second moment; a large eps keeps autograd's own rounding below 1e-10
OPTIMIZERS: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd": ("sgd", {"weight_decay": 0.02}),
    "momentum": ("sgd", {"weight_decay": 0.02, "momentum": 0.9}),
    "nesterov": ("sgd", {"weight_decay": 0.02, "momentum": 0.9, "nesterov": True}),
    "adam": ("adam", {"weight_decay": 0.0, "eps": 1e-3}),
    "adam_decay": ("adam", {"weight_decay": 0.02, "eps": 1e-3}),
    "adam_one": ("adam", {"weight_decay": 0.02, "eps": 1e-3, "pi_prime": "one"}),
}
STRATEGIES: dict[str, dict[str, Any]] = {"retain": {}, "slim": {"seed": 5}, "recompute": {"chunk": 7}}
# `tabulate` is exact for another function, the interpolated one (test_tabulate.py); the rest holds for it too
ALL_STRATEGIES: dict[str, dict[str, Any]] = {**STRATEGIES, "tabulate": {"check_every": 2}}
POINTS = {"fc_grad": 129, "multi_fc": 129, "lstm_fc": 129, "dual_lstm_fc": 17}  # of the first grid
RATES = [0.05, 0.08, 0.03, 0.06, 0.05]


def randomised(name: str, form: str, dtype: torch.dtype, **options: Any) -> nn.Module:
    """A hypernetwork away from its special starting point."""
    torch.manual_seed(11)
    hypernet = build_hypernet(name, hidden=5, form=form, **options).to(dtype)
    for param in hypernet.parameters():
        nn.init.normal_(param, std=0.4)
    return hypernet


def build(
    plain: SimpleNamespace,
    problem: SimpleNamespace,
    hypernet: nn.Module,
    strategy: str = "recompute",
    optimizer: str = "momentum",
    bits: int = 4,
    arguments: dict[str, Any] | None = None,
    **options: Any,
) -> DelayedUpdate:
    params = [nn.Parameter(weight.clone()) for weight in problem.weights]
    name, settings = OPTIMIZERS[optimizer]
    return DelayedUpdate(
        params,
        optimizer=build_optimizer(name, params, lr=0.0, **settings),
        hypernet=hypernet,
        strategy=build_strategy(strategy, **(ALL_STRATEGIES[strategy] if arguments is None else arguments)),
        quantize=lambda g: plain.uniform(g, bits),
        **options,
    )


def iterate(update: DelayedUpdate, problem: SimpleNamespace, t: int, lr: float) -> Tensor:
    """One iteration as a training loop runs it; answers the loss."""
    update.preview(lr)
    loss = problem.loss(update.params, t)
    loss.backward()
    update.meta_step()
    update.commit()
    return loss.detach()


def meta_grads(update: DelayedUpdate) -> list[Tensor]:
    return [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in update.hypernet.parameters()]


def assert_close(ours: list[Tensor], theirs: list[Tensor], relative: float) -> None:
    for one, other in zip(ours, theirs, strict=True):
        error = (one - other).abs().max()
        assert error <= relative * other.abs().max(), f"off by {error:.2e} of {other.abs().max():.2e}"


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
    other = plain.PlainUpdate(
        name,
        form,
        dict(hypernet.named_parameters()),
        problem.weights,
        problem.loss,
        optimizer=optimizer,
        weight_decay=OPTIMIZERS[optimizer][1]["weight_decay"],
        bits=4,
    )
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
    other = plain.PlainUpdate(
        name,
        form,
        dict(hypernet.named_parameters()),
        problem.weights,
        problem.loss,
        optimizer=optimizer,
        weight_decay=OPTIMIZERS[optimizer][1]["weight_decay"],
        bits=4,
        points=POINTS[name],
    )
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
    other = plain.PlainUpdate(
        name,
        "residual",
        dict(hypernet.named_parameters()),
        problem.weights,
        problem.loss,
        optimizer="adam",
        weight_decay=0.0,
        bits=4,
        activation=activation,
    )
    follow(build(plain, problem, hypernet, strategy, "adam"), problem, other, 1e-10)


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("form", ["residual", "literal"])
@pytest.mark.parametrize("name", ["lstm_fc", "dual_lstm_fc"])
def test_meta_gradient_holds_with_a_state_carried_across_iterations(
    plain: SimpleNamespace, name: str, form: str, strategy: str
) -> None:
    problem = plain.make_problem(torch.float64)
    hypernet = randomised(name, form, torch.float64, state="carry")
    other = plain.PlainUpdate(
        name,
        form,
        dict(hypernet.named_parameters()),
        problem.weights,
        problem.loss,
        optimizer="momentum",
        weight_decay=0.02,
        bits=4,
        carry=True,
    )
    follow(build(plain, problem, hypernet, strategy, "momentum"), problem, other, 1e-10)


def test_tabulate_refuses_a_carried_state(plain: SimpleNamespace) -> None:
    hypernet = randomised("lstm_fc", "residual", torch.float32, state="carry")
    with pytest.raises(ConfigError, match="tabulate needs a zero LSTM state"):
        build(plain, plain.make_problem(torch.float32), hypernet, "tabulate")


@pytest.mark.parametrize("optimizer", ["momentum", "adam"])
def test_learning_rate_factors_belong_to_the_gradient_they_were_measured_with(
    plain: SimpleNamespace, optimizer: str
) -> None:
    problem = plain.make_problem(torch.float64)
    hypernet = randomised("dual_lstm_fc", "residual", torch.float64)
    factors = [torch.ones((), dtype=torch.float64), torch.ones((), dtype=torch.float64)]
    update = build(plain, problem, hypernet, "recompute", optimizer, lr_factors=lambda: factors)
    other = plain.PlainUpdate(
        "dual_lstm_fc",
        "residual",
        dict(hypernet.named_parameters()),
        problem.weights,
        problem.loss,
        optimizer=optimizer,
        weight_decay=OPTIMIZERS[optimizer][1]["weight_decay"],
        bits=4,
    )
    for t, lr in enumerate(RATES):
        values = [1.0 / (t + 1), 0.1 + 0.2 * t]
        for factor, value in zip(factors, values, strict=True):
            factor.fill_(value)  # in place, as a layer does
        expected = other.iterate(t, lr, factors=values)
        iterate(update, problem, t, lr)
        if t > 0:
            assert_close(meta_grads(update), expected, 1e-10)
        assert_close([p.detach() for p in update.params], other.weights, 1e-10)


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


def test_observation_tells_amplification_cosine_zeros_and_meta_gradient(plain: SimpleNamespace) -> None:
    problem = plain.make_problem(torch.float64)
    hypernet = randomised("dual_lstm_fc", "residual", torch.float64)
    update = build(plain, problem, hypernet, observe=True)
    iterate(update, problem, 0, 0.1)
    assert update.observation is None
    assert update.pending is not None
    pending, weights = update.pending, [param.detach().clone() for param in update.params]
    psi = {key: value.detach().clone() for key, value in hypernet.named_parameters()}
    iterate(update, problem, 1, 0.1)
    assert update.observation is not None
    table = read_observation(update.observation, ["first", "second"])
    for name, grad, weight in zip(["first", "second"], pending, weights, strict=True):
        tilde = plain.uniform(plain.plain_hypernet("dual_lstm_fc", "residual", psi, grad, weight, "none"), 4)
        assert table["amplification"][name] == pytest.approx(float(tilde.norm() / grad.norm()))
        cosine = float((tilde * grad).sum() / tilde.norm() / grad.norm())
        assert table["cosine"][name] == pytest.approx(cosine)
        assert table["zero_share"][name] == pytest.approx(float((tilde == 0).double().mean()))
    norm = float(torch.cat([grad.reshape(-1) for grad in meta_grads(update)]).norm())
    assert table["meta_gradient_norm"] == pytest.approx(norm)


def test_observation_of_a_zero_gradient_is_absent_where_undefined(plain: SimpleNamespace) -> None:
    problem = plain.make_problem(torch.float32)
    problem.weights = [torch.zeros_like(weight) for weight in problem.weights]
    for form, zero_share in (("residual", 1.0), ("literal", 0.0)):  # the literal form makes something out of nothing
        update = build(plain, problem, randomised("dual_lstm_fc", form, torch.float32), observe=True)
        iterate(update, problem, 0, 0.1)
        iterate(update, problem, 1, 0.1)
        assert update.observation is not None
        table = read_observation(update.observation, ["first", "second"])
        assert isinstance(table["amplification"]["first"], Absent)
        assert isinstance(table["cosine"]["first"], Absent)
        assert table["zero_share"]["first"] == zero_share


def test_a_meta_gradient_that_is_not_finite_has_no_norm(plain: SimpleNamespace) -> None:
    for value in (math.nan, math.inf):
        problem = plain.make_problem(torch.float32)
        update = build(plain, problem, randomised("dual_lstm_fc", "residual", torch.float32), observe=True)
        iterate(update, problem, 0, 0.1)
        update.preview(0.1)
        for param in update.params:
            param.grad = torch.full_like(param, value)
        update.meta_step()
        assert update.observation is not None
        table = read_observation(update.observation, ["first", "second"])
        assert isinstance(table["meta_gradient_norm"], Absent)
        assert table["zero_share"]["first"] == pytest.approx(float(update.observation.zero_share[0]))


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
