from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from bench.composing.cells import compose_variants
from bench.config import CellConfig
from bench.data.base import DataSet
from bench.data.loader import TrainBatches
from bench.kernels.int_mm import record_gemms
from bench.layers.fixed_point_norm import FixedPointBatchNorm2d
from bench.layers.range_norm import RangeBatchNorm2d
from bench.optim.fixed_point import FixedPointSGD
from bench.profilers.base import NO_PHASES
from bench.profilers.gemm_count import FloatProductCounter, integer_layers
from bench.quantizers.cyclic import cyclic_bits
from bench.training.assemble import Parts, as_fp32, build_parts, without_hypernet
from bench.training.step import train_step

CPU = torch.device("cpu")
MakeCell = Callable[..., CellConfig]


def assemble(cell: CellConfig, data: DataSet) -> tuple[Parts, TrainBatches]:
    batches = TrainBatches(data, batch_size=cell.protocol.batch_size, seed=cell.seed, device=CPU)
    return build_parts(cell, data, CPU), batches


@pytest.mark.parametrize("edge_layers", ["same", "int8"])
@pytest.mark.parametrize(
    "variant",
    [
        "uint8_int8", "daint8_int4", "dorefa_int6", "uniform_int4", "metagrad_int8_recompute", "metagrad_int4_retain",
        "sbm_int8", "wageubn_int8", "afp_int8", "cpt_int8", "fp4",
    ],
)  # fmt: skip
def test_every_product_of_a_cell_with_low_bit_errors_is_an_integer_one(
    variant: str, edge_layers: str, make_cell: MakeCell, digits: DataSet
) -> None:
    parts, batches = assemble(make_cell(f"variant={variant}", f"edge_layers={edge_layers}"), digits)
    assert parts.conversion is not None
    names = {layer.name for layer in parts.conversion.swapped}
    assert len(names) == 20, "19 convolutions and the classifier of a ResNet-20"
    images, labels = batches.batch(0, 0)
    floats = FloatProductCounter()
    with record_gemms() as calls, floats:
        train_step(parts, images, labels, 0.01, floats.phases)
    assert integer_layers(calls) == {"fprop": names, "dgrad": names - {"conv1"}, "wgrad": names}, (
        "the first layer's input needs no dgrad"
    )
    assert floats.calls == {"fprop": 0, "dgrad": 0, "wgrad": 0}


def test_ste_runs_integer_products_forward_only(make_cell: MakeCell, digits: DataSet) -> None:
    parts, batches = assemble(make_cell("variant=ste_int4"), digits)
    assert parts.conversion is not None
    images, labels = batches.batch(0, 0)
    floats = FloatProductCounter()
    with record_gemms() as calls, floats:
        train_step(parts, images, labels, 0.01, floats.phases)
    assert {call.gemm for call in calls} == {"fprop"}
    assert {call.layer for call in calls} == {layer.name for layer in parts.conversion.swapped}
    assert floats.calls == {"fprop": 0, "dgrad": 19, "wgrad": 20}


def test_a_floating_point_cell_runs_no_integer_product(make_cell: MakeCell, digits: DataSet) -> None:
    parts, batches = assemble(make_cell("variant=fp32"), digits)
    images, labels = batches.batch(0, 0)
    floats = FloatProductCounter()
    with record_gemms() as calls, floats:
        train_step(parts, images, labels, 0.01, floats.phases)
    assert calls == []
    assert floats.calls == {"fprop": 20, "dgrad": 19, "wgrad": 20}


def test_the_fp32_step_equals_torchs_own_training(make_cell: MakeCell, digits: DataSet) -> None:
    cell = make_cell("variant=fp32", "optimizer.lr=0.05")
    parts, batches = assemble(cell, digits)
    twin, _ = assemble(cell, digits)
    twin.model.train()
    optimizer = torch.optim.SGD(twin.model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-4)
    for images, labels in batches.epoch(0):
        ours = train_step(parts, images, labels, 0.05, NO_PHASES)
        optimizer.zero_grad()
        theirs = F.cross_entropy(twin.model(images), labels)
        theirs.backward()
        optimizer.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("variant", sorted(compose_variants()))
def test_every_variant_trains_a_few_steps_to_finite_losses(variant: str, make_cell: MakeCell, digits: DataSet) -> None:
    parts, batches = assemble(make_cell(f"variant={variant}"), digits)
    before = [parameter.detach().clone() for parameter in parts.model.parameters()]
    losses = [float(train_step(parts, images, labels, 0.01, NO_PHASES)) for images, labels in batches.epoch(0)]
    assert all(0 < loss < 100 for loss in losses)
    moved = [not torch.equal(a, b) for a, b in zip(before, parts.model.parameters(), strict=True)]
    assert all(moved), "every parameter is trained"


def test_retain_and_recompute_train_alike(make_cell: MakeCell, digits: DataSet) -> None:
    losses = {}
    for strategy in ("retain", "recompute"):
        parts, batches = assemble(make_cell(f"variant=metagrad_int8_{strategy}"), digits)
        losses[strategy] = [float(train_step(parts, x, y, 0.01, NO_PHASES)) for x, y in batches.epoch(0)]
    assert losses["retain"] == pytest.approx(losses["recompute"], rel=1e-3)


def test_uint8_lowers_its_layers_learning_rate(make_cell: MakeCell, digits: DataSet) -> None:
    parts, batches = assemble(make_cell("variant=uint8_int4"), digits)
    train_step(parts, *batches.batch(0, 0), 0.01, NO_PHASES)
    assert parts.lr_factors is not None
    factors = torch.stack(parts.lr_factors())
    assert factors.numel() == len(list(parts.model.parameters()))
    assert factors.min() < 1
    assert factors.max() == 1


@pytest.mark.parametrize("rounding", ["nearest", "stochastic"])
@pytest.mark.parametrize("name", ["uniform", "dorefa", "uint8", "daint8"])
@pytest.mark.parametrize("bits", [8, 6, 4])
def test_every_gradient_quantizer_runs_on_the_weight_gradient_alone(
    name: str, bits: int, rounding: str, make_cell: MakeCell, digits: DataSet
) -> None:
    cell = make_cell(
        f"method={name}", "method.error_quantizer=none", f"method.grad_quantizer={name}", f"grad_bits={bits}",
        f"method.grad_rounding={rounding}", "weight_bits=8", "activation_bits=8", "protocol.batch_size=16",
    )  # fmt: skip
    parts, batches = assemble(cell, digits)
    train_step(parts, *batches.batch(0, 0), 0.01, NO_PHASES)
    for weight in parts.weights:
        assert weight.grad is not None
        values = weight.grad[0].unique()  # one output channel: DAINT8's scale is of that
        assert values.numel() <= 2**bits
        assert (0.0 in values) or name == "dorefa" or values.numel() < 2**bits


def test_a_gradient_quantizer_runs_on_the_error_signal_and_the_weight_gradient_alike(
    make_cell: MakeCell, digits: DataSet
) -> None:
    cell = make_cell(
        "method=daint8",
        "method.grad_quantizer=daint8",
        "weight_bits=4",
        "activation_bits=4",
        "error_bits=4",
        "grad_bits=4",
    )
    parts, batches = assemble(cell, digits)
    with record_gemms() as calls:
        losses = [float(train_step(parts, x, y, 0.01, NO_PHASES)) for x, y in batches.epoch(0)]
    assert {call.gemm for call in calls} == {"fprop", "dgrad", "wgrad"}
    assert all(0 < loss < 100 for loss in losses)
    assert "conv1.grad_quantizer.clip.channel_clip.moving" in parts.model.state_dict()


@pytest.mark.parametrize(("quantizer", "bits"), [("dorefa", 1), ("dorefa", 4), ("bwn", 1), ("bwn_f", 1)])
def test_metaquant_starts_at_the_straight_through_estimator_one_step_later(
    quantizer: str, bits: int, make_cell: MakeCell, digits: DataSet
) -> None:
    common = (f"quantizer={quantizer}", f"weight_bits={bits}", "dispatch=simulate", "optimizer=sgd")
    meta, batches = assemble(make_cell("method=metaquant", "hypernet=multi_fc", "strategy=recompute", *common), digits)
    ste, _ = assemble(make_cell("method=ste", *common), digits)
    assert meta.delayed is not None
    train_step(meta, *batches.batch(0, 0), 0.01, NO_PHASES)
    train_step(ste, *batches.batch(0, 0), 0.01, NO_PHASES)
    meta.delayed.preview(0.01)  # residual form: f_ψ(∇Ŵ)·∂Ŵ/∂W is at first the plain ∇W
    for ours, theirs in zip(meta.weights, ste.weights, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)


def test_the_twins_of_a_cell_differ_only_where_they_should(make_cell: MakeCell) -> None:
    cell = make_cell("variant=metagrad_int4_slim")
    plain, fp32 = without_hypernet(cell), as_fp32(cell)
    assert (plain.method.grad_quantizer, plain.grad_bits, plain.error_bits) == ("uniform", 4, 4)
    assert (plain.hypernet.name, plain.strategy.name) == ("none", "none")
    metaquant = without_hypernet(make_cell("variant=metaquant_fc_grad_slim"))
    assert (metaquant.method.name, metaquant.method.grad_quantizer, metaquant.hypernet.name) == ("ste", "none", "none")
    assert {fp32.weight_bits, fp32.activation_bits, fp32.error_bits, fp32.grad_bits} == {32}
    assert plain.model == fp32.model == cell.model
    assert plain.optimizer == fp32.optimizer == cell.optimizer


def test_simulated_products_give_nearly_the_loss_of_integer_ones(make_cell: MakeCell, digits: DataSet) -> None:
    losses = []
    for dispatch in ("integer", "simulate"):
        parts, batches = assemble(make_cell("variant=uniform_int8", f"dispatch={dispatch}"), digits)
        losses.append(float(train_step(parts, *batches.batch(0, 0), 0.01, NO_PHASES)))
    # Not bit for bit: a last bit before a quantizer can move a code by one.
    assert losses[0] == pytest.approx(losses[1], rel=2e-3)


def test_cyclic_precision_rises_over_the_whole_training_whatever_the_epochs(
    make_cell: MakeCell, digits: DataSet
) -> None:
    cell = dataclasses.replace(make_cell("variant=cpt_int8", "protocol.epochs=4"))
    cell.method.cycles = 2
    parts, batches = assemble(cell, digits)
    assert parts.precision is not None
    assert parts.precision.cycle_steps == 6, "4 epochs of 3 steps in 2 cycles"
    seen = []
    for _ in range(2):
        for images, labels in batches.epoch(0):
            train_step(parts, images, labels, 0.01, NO_PHASES)
            seen.append(parts.precision.bits(8))
    assert seen == [cyclic_bits(step, cycle_steps=6, low=3, high=8) for step in range(6)]


def test_wageubn_rounds_weights_buffers_and_normalisation(make_cell: MakeCell, digits: DataSet) -> None:
    parts, batches = assemble(make_cell("variant=wageubn_int8"), digits)
    for images, labels in batches.epoch(0):
        train_step(parts, images, labels, 0.05, NO_PHASES)
    assert isinstance(parts.optimizer, FixedPointSGD)
    assert any(isinstance(module, FixedPointBatchNorm2d) for module in parts.model.modules())
    assert not any(isinstance(module, nn.BatchNorm2d) for module in parts.model.modules())
    for weight in parts.weights:
        assert weight.grad is not None
        assert torch.equal(weight.grad * 2**14, (weight.grad * 2**14).round()), "∇W in steps of 2^-14"
        assert weight.grad.abs().max() < 2**-7
        assert weight.abs().max() < 1
    for buffer in parts.optimizer.buffers:
        assert torch.equal(buffer * 2**12, (buffer * 2**12).round())


def test_sbm_normalises_by_the_range(make_cell: MakeCell, digits: DataSet) -> None:
    parts, _ = assemble(make_cell("variant=sbm_int8"), digits)
    kinds = [type(module) for module in parts.model.modules() if "Norm" in type(module).__name__]
    assert kinds == [RangeBatchNorm2d] * 19


@pytest.mark.parametrize("variant", ["sbm_int8", "wageubn_int8", "afp_int8", "cpt_int8", "fp4"])
def test_what_a_method_of_the_related_work_remembers_travels_in_the_state_dict(
    variant: str, make_cell: MakeCell, digits: DataSet
) -> None:
    cell = make_cell(f"variant={variant}")
    parts, batches = assemble(cell, digits)
    for images, labels in batches.epoch(0):
        train_step(parts, images, labels, 0.01, NO_PHASES)
    restored, _ = assemble(cell, digits)
    restored.model.load_state_dict(parts.model.state_dict())
    restored.optimizer.load_state_dict(parts.optimizer.state_dict())
    for one in (parts, restored):
        assert one.conversion is not None
        one.conversion.generator.manual_seed(5)
        train_step(one, *batches.batch(0, 0), 0.01, NO_PHASES)
    for ours, theirs in zip(parts.model.parameters(), restored.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
