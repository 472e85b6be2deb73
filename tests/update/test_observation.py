from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch

from bench.units import Absent
from bench.update import read_observation
from tests.update.iterations import (
    build,
    iterate,
    meta_grads,
    randomised,
)


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
    assert table["meta_grad_norm"] == pytest.approx(norm)


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
        assert isinstance(table["meta_grad_norm"], Absent)
        assert table["zero_share"]["first"] == pytest.approx(float(update.observation.zero_share[0]))
