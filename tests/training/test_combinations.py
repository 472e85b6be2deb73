"""Every gradient quantizer at every width and place composes, passes the check and trains; the others are refused."""

from __future__ import annotations

import pytest
import torch

from bench.app import parse_arguments, plan_cells
from bench.config import CellConfig
from bench.data import build_data, train_batches
from bench.errors import ConfigError
from bench.methods import describe
from bench.precheck import check_cells
from bench.profilers.base import NO_PHASES
from bench.quantizers import GRAD_QUANTIZERS
from bench.training.assemble import build_parts
from bench.training.step import train_step

W8A8 = ("weight_bits=8", "activation_bits=8")
WAGEUBN = ("method=wageubn", "quantizer=wageubn", "optimizer.momentum=0.75")
ANYWHERE = [name for name in GRAD_QUANTIZERS if name != "wageubn"]  # whose method quantizes all or nothing
PLACES = {"error": (True, False), "grad": (False, True), "both": (True, True)}


def cell_of(name: str, bits: int, place: str, *more: str) -> CellConfig:
    """A cell of that method, its gradients quantized in that place."""
    on_error, on_grad = PLACES[place]
    argv = [
        f"method={name}", f"weight_bits={bits}", f"activation_bits={bits}",
        f"method.error_quantizer={name if on_error else 'none'}", f"error_bits={bits if on_error else 32}",
        f"method.grad_quantizer={name if on_grad else 'none'}", f"grad_bits={bits if on_grad else 32}",
        "method.error_rounding=stochastic" if on_error else "method.error_rounding=nearest", *more,
    ]  # fmt: skip
    return plan_cells(parse_arguments(argv)).cells[0]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bits", [8, 6, 4])
@pytest.mark.parametrize("name", ANYWHERE)
def test_a_gradient_quantizer_runs_a_step_at_any_width_and_place(name: str, bits: int, place: str) -> None:
    cell = cell_of(name, bits, place)
    check_cells([cell])
    device = torch.device("cpu")
    data = build_data("digits", train_limit=16, test_limit=4)
    parts = build_parts(cell, data, device)
    batches = train_batches(data, batch_size=8, seed=0, device=device)
    before = [weight.detach().clone() for weight in parts.weights]
    for step in range(2):
        loss = train_step(parts, *batches.batch(0, step), 0.01, NO_PHASES)
        assert torch.isfinite(loss)
    assert all(torch.isfinite(weight).all() for weight in parts.weights)
    assert all(not torch.equal(weight, old) for weight, old in zip(parts.weights, before, strict=True))
    on_error, on_grad = PLACES[place]
    assert parts.conversion is not None
    inner = [layer for layer in parts.conversion.swapped if layer.error_bits != 32]
    assert bool(inner) == on_error
    assert {layer.error_bits for layer in inner} <= {bits}
    assert len(parts.quantize_grads) == (len(parts.weights) if on_grad else 0)
    if on_grad and name != "daint8":  # which has a grid per output channel
        for weight in parts.weights:
            assert weight.grad is not None
            levels = weight.grad.unique()
            assert len(levels) <= 2**bits, "∇W lies on the quantizer's grid"


@pytest.mark.parametrize("bits", [8, 6, 4])
def test_wageubn_quantizes_both_gradients_at_any_width(bits: int) -> None:
    widths = [f"{key}_bits={bits}" for key in ("weight", "activation", "error", "grad")]
    cell = plan_cells(parse_arguments([*WAGEUBN, *widths])).cells[0]
    check_cells([cell])
    device = torch.device("cpu")
    data = build_data("digits", train_limit=16, test_limit=4)
    parts = build_parts(cell, data, device)
    batches = train_batches(data, batch_size=8, seed=0, device=device)
    for step in range(2):
        assert torch.isfinite(train_step(parts, *batches.batch(0, step), 0.01, NO_PHASES))
    assert parts.conversion is not None
    assert {layer.error_bits for layer in parts.conversion.swapped} == {bits}
    for weight in parts.weights:
        assert weight.grad is not None
        assert len(weight.grad.unique()) <= 2**bits, "∇W lies on the quantizer's grid"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (
            ("method=ste", "quantizer=bwn", *W8A8),
            "set weight_bits=1, or quantizer=dorefa",
        ),
        ((*WAGEUBN, *W8A8, "error_bits=8", "method.grad_quantizer=none"), "method.grad_quantizer of wageubn, not none"),
        (("variant=uint8_int8", "strategy=slim"), "leave strategy=none"),
        (
            ("variant=daint8_int8", "method.error_granularity=channel"),
            "per tensor for dgrad, which sums over the channels, and per output channel for wgrad",
        ),
        (
            ("method=dorefa", *W8A8, "error_bits=8", "method.grad_quantizer=uint8", "grad_bits=8"),
            "of none, uniform, dorefa, not uint8",
        ),
        (("method=dorefa", "weight_bits=4", "activation_bits=4", "error_bits=9"), "1 to 8, or 32"),
        (("variant=metagrad_int4_tabulate", "hypernet.state=carry"), "strategy=retain, slim or recompute"),
        (
            ("variant=metaquant_multi_fc_recompute", "hypernet.state=carry"),
            "take lstm_fc or dual_lstm_fc",
        ),
        (("variant=metagrad_int4_recompute", "optimizer.pi_prime=one"), "with optimizer=adam only"),
    ],
)
def test_an_impossible_combination_is_refused_with_the_valid_ones(argv: tuple[str, ...], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_cells(plan_cells(parse_arguments(list(argv))).cells)


@pytest.mark.parametrize("strategy", ["retain", "slim", "recompute"])
def test_a_carried_state_and_metaquants_derivative_reach_the_training(strategy: str) -> None:
    argv = [
        f"variant=metagrad_int4_{strategy}", "hypernet.state=carry", "hypernet.hidden=2",
        "optimizer=adam", "optimizer.lr=0.001", "optimizer.pi_prime=one",
    ]  # fmt: skip
    cell = plan_cells(parse_arguments(argv)).cells[0]
    check_cells([cell])
    device = torch.device("cpu")
    data = build_data("digits", train_limit=16, test_limit=4)
    parts = build_parts(cell, data, device)
    assert parts.delayed is not None
    batches = train_batches(data, batch_size=8, seed=0, device=device)
    for step in range(3):
        assert torch.isfinite(train_step(parts, *batches.batch(step // 2, step % 2), cell.optimizer.lr, NO_PHASES))
    states = parts.delayed.strategy.state_dict()["states"]
    assert [tuple(h.shape) for h, _ in states] == [(weight.numel(), 2) for weight in parts.weights]
    assert any(bool(h.any()) for h, _ in states)
    assert parts.delayed.optimizer.direction([torch.ones_like(w) for w in parts.weights]).pi_prime == 1.0
    facts = describe(cell)
    assert (facts.hypernet_state, facts.pi_prime) == ("carry", "one")
