"""Conversion of a whole model: what is swapped, what stays and why, what is refused."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from bench.errors import ConfigError, ShapeError
from bench.layers import IntegerConv2d, IntegerLinear, QuantSpec, quantize_model, quantized_layers
from bench.quantizers import CyclicPrecision

INT8 = QuantSpec(error="uniform", error_bits=8)


def test_every_layer_is_swapped_and_keeps_its_parameters(small_resnet):
    model = small_resnet()
    before = dict(model.named_parameters())
    conversion = quantize_model(model, INT8)
    names = ["stem", "block1.conv1", "block1.conv2", "block2.conv1", "block2.conv2", "block2.shortcut", "depthwise"]
    assert [facts.name for facts in conversion.swapped] == [*names, "classifier"]
    assert list(quantized_layers(model)) == [*names, "classifier"]
    assert conversion.kept == ()
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    assert all(after[name] is before[name] for name in before)
    assert isinstance(model.stem, IntegerConv2d)
    assert isinstance(model.classifier, IntegerLinear)
    assert model.stem.name == "stem"


def test_the_facts_name_quantizers_bits_and_labels(small_resnet):
    spec = QuantSpec(weight_bits=4, activation_bits=4, error="uint8", error_bits=4, error_rounding="stochastic")
    facts = {row.name: row for row in quantize_model(small_resnet(), spec).swapped}
    row = facts["block1.conv1"]
    assert (row.kind, row.weight, row.activation) == (
        "conv2d",
        "dorefa, 4 bits, nearest, per tensor",
        "dorefa, 4 bits, nearest, per tensor",
    )
    assert row.error == "uint8 clip, 4 bits, stochastic, per tensor, refreshed every 100 iterations"
    assert (row.fprop, row.dgrad, row.wgrad) == ("emulated", "emulated", "emulated")
    assert facts["stem"].activation == "uniform, 4 bits, nearest, per tensor"
    assert (facts["classifier"].kind, facts["classifier"].error_bits) == ("linear", 4)


@pytest.mark.parametrize(
    ("spec", "labels"),
    [
        (QuantSpec(), ("integer", "float", "float")),
        (INT8, ("integer", "integer", "integer")),
        (QuantSpec(weight_bits=4, activation_bits=4), ("emulated", "float", "float")),
        (
            QuantSpec(weight_bits=4, activation_bits=8, error="uniform", error_bits=4),
            ("integer", "emulated", "integer"),
        ),
        (QuantSpec(error="uniform", error_bits=8, dispatch="simulate"), ("simulated", "simulated", "simulated")),
        (QuantSpec(activation_bits=32, dispatch="simulate"), ("simulated", "float", "float")),
        (
            QuantSpec(forward="bwn", weight_bits=1, activation_bits=32, dispatch="simulate"),
            ("simulated", "float", "float"),
        ),
        (QuantSpec(forward="bwn", weight_bits=1, activation_bits=8), ("integer", "float", "float")),
        (
            QuantSpec(forward="bwn_f", weight_bits=1, activation_bits=8, error="uniform", error_bits=8),
            ("integer", "integer", "integer"),
        ),
    ],
)
def test_labels_say_what_each_product_is(small_resnet, spec, labels):
    row = quantize_model(small_resnet(), spec).swapped[1]
    assert (row.fprop, row.dgrad, row.wgrad) == labels


def test_edge_layers_stay_float_take_eight_bits_or_the_same(small_resnet):
    low = {"weight_bits": 4, "activation_bits": 4, "error": "uniform", "error_bits": 4}
    full = quantize_model(small_resnet(), QuantSpec(edge_layers="full", **low))
    assert [(layer.name, layer.reason) for layer in full.kept] == [
        ("stem", "edge_layers=full"),
        ("classifier", "edge_layers=full"),
    ]
    rows = {row.name: row for row in quantize_model(small_resnet(), QuantSpec(edge_layers="int8", **low)).swapped}
    bits = {name: (row.weight_bits, row.activation_bits, row.error_bits) for name, row in rows.items()}
    assert bits["stem"] == bits["classifier"] == (8, 8, 8)
    assert bits["block1.conv1"] == (4, 4, 4)
    ste = quantize_model(small_resnet(), QuantSpec(weight_bits=4, activation_bits=4, edge_layers="int8")).swapped[0]
    assert (ste.weight_bits, ste.error_bits) == (8, 32)


def test_edge_layers_of_a_one_bit_network_take_dorefas_eight_bits():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), nn.Flatten(), nn.Linear(64, 2))
    spec = QuantSpec(forward="bwn_f", weight_bits=1, edge_layers="int8", error="uniform", error_bits=8)
    rows = quantize_model(model, spec).swapped
    assert [row.weight for row in rows] == [
        "dorefa, 8 bits, nearest, per tensor",
        "bwn_f, 1 bits, α·sign(W), one α per output filter",
        "dorefa, 8 bits, nearest, per tensor",
    ]
    assert [row.error_quantizations for row in rows] == [1, 2, 1]


class Reordered(nn.Module):
    """Registers its layers in another order than it calls them; one input follows a linear bottleneck."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Conv2d(4, 4, 1)
        self.middle = nn.Conv2d(4, 4, 1)
        self.early = nn.Conv2d(3, 4, 1)

    def forward(self, x):
        bottleneck = self.middle(torch.relu(self.early(x)))
        return self.late(bottleneck)


def test_a_sample_input_shows_the_order_and_the_signed_inputs():
    torch.manual_seed(0)
    model = Reordered().train()
    spec = QuantSpec(edge_layers="int8", weight_bits=4, activation_bits=4)
    conversion = quantize_model(model, spec, sample_input=torch.rand(2, 3, 4, 4))
    rows = {row.name: row for row in conversion.swapped}
    assert rows["early"].weight_bits == 8
    assert rows["late"].weight_bits == 4
    assert rows["early"].activation.startswith("dorefa")  # these images lie in [0, 1]
    assert rows["middle"].activation.startswith("dorefa")
    assert rows["late"].activation.startswith("uniform")
    assert model.training
    assert not model.early._forward_pre_hooks


def test_layers_that_might_compute_something_else_are_kept_with_the_reason():
    class Own(nn.Conv2d):
        pass

    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        Own(4, 4, 3),
        nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"),
        nn.Linear(4, 4).double(),
        nn.Linear(4, 4),
        nn.Linear(4, 2),
    )
    conversion = quantize_model(model, INT8, keep=lambda name, _: name == "4")
    assert [row.name for row in conversion.swapped] == ["0", "5"]
    assert {layer.name: layer.reason for layer in conversion.kept} == {
        "1": "Own is a subclass that may compute something else",
        "2": "padding_mode=reflect",
        "3": "its weight is torch.float64, not float32",
        "4": "the caller's filter",
    }


def test_a_layer_used_in_two_places_stays_one_layer():
    shared = nn.Linear(6, 6)
    model = nn.Sequential(shared, nn.ReLU(), nn.Sequential(shared), nn.Linear(6, 2))
    assert len(quantize_model(model, INT8).swapped) == 2
    assert model[0] is model[2][0]
    model(torch.rand(3, 6)).sum().backward()
    assert shared.weight.grad is not None


def test_daint8_says_that_it_quantizes_twice_and_keeps_its_maxima_in_the_state(small_resnet, images, labels):
    model = small_resnet()
    rows = quantize_model(model, QuantSpec(error="daint8", error_bits=6)).swapped
    assert {row.error for row in rows} == {
        "daint8, 6 bits, nearest, two quantizations: per tensor for dgrad, per output channel for wgrad"
    }
    assert {row.error_quantizations for row in rows} == {2}
    nn.functional.cross_entropy(model(images), labels).backward()
    state = model.state_dict()
    assert state["block2.conv1.error_quantizer.channel_clip.moving"].shape == (24,)
    assert (state["block2.conv1.error_quantizer.channel_clip.moving"] > 0).any()
    assert state["block2.conv1.error_quantizer.tensor_clip.moving"] > 0
    assert [row.error_quantizations for row in quantize_model(small_resnet(), INT8).swapped][:2] == [1, 1]
    assert quantize_model(small_resnet(), QuantSpec()).swapped[0].error_quantizations == 0


@pytest.mark.parametrize(
    ("spec", "error", "labels", "quantizations"),
    [
        (QuantSpec(forward="minmax", error="sbm", error_bits=8), "16 bits, nearest, as two int8 grids", "integer", 2),
        (QuantSpec(forward="wageubn", error="wageubn", error_bits=8), "a flag as two int8 grids", "integer", 1),
        (QuantSpec(forward="fixed_point", error="afp", error_bits=8), "afp, 8 bits", "integer", 1),
        (
            QuantSpec(weight_bits=4, activation_bits=4, error="fp4", error_bits=4),
            "radix 4 as two int8 grids",
            "integer",  # codes of 64 are no INT4 values
            2,
        ),
    ],
)
def test_error_signals_that_are_sums_of_grids_say_so_and_are_integer(small_resnet, spec, error, labels, quantizations):
    row = quantize_model(small_resnet(), spec).swapped[1]
    assert error in row.error
    assert (row.dgrad, row.wgrad, row.error_quantizations) == (labels, labels, quantizations)


def test_fp4s_edge_layers_at_eight_bits_take_the_uniform_quantizer(small_resnet):
    spec = QuantSpec(weight_bits=4, activation_bits=4, error="fp4", error_bits=4, edge_layers="int8")
    rows = {row.name: row.error for row in quantize_model(small_resnet(), spec).swapped}
    assert rows["stem"] == rows["classifier"] == "uniform, 8 bits, nearest, per tensor"
    assert rows["block1.conv1"].startswith("fp4")


def test_a_model_with_cyclic_precision_holds_one_schedule_that_steps_and_evaluates(small_resnet, images):
    model = small_resnet()
    precision = CyclicPrecision(3, 4)
    spec = QuantSpec(forward="minmax", error="uniform", error_bits=8, edge_layers="int8")
    rows = {row.name: row for row in quantize_model(model, spec, precision=precision).swapped}
    assert rows["block1.conv1"].weight.startswith("cyclic from 3: minmax, 8 bits")
    assert rows["stem"].weight == "minmax, 8 bits, nearest, per tensor"
    twin = copy.deepcopy(model)
    outputs = []
    for _ in range(4):
        precision.advance()
        outputs.append(model(images))
    assert not torch.equal(outputs[0], outputs[3])
    assert model.state_dict()["stem.precision._extra_state"] == 3
    assert twin.stem.precision.step == -1
    fixed = small_resnet()
    quantize_model(fixed, spec)
    torch.testing.assert_close(model.eval()(images), fixed.eval()(images), rtol=0.05, atol=0.05)


def test_uint8_exposes_its_learning_rate_factor_per_layer(small_resnet, images, labels):
    model = small_resnet()
    quantize_model(model, QuantSpec(error="uint8", error_bits=4, error_rounding="stochastic"))
    nn.functional.cross_entropy(model(images), labels).backward()
    factors = {name: layer.lr_factor.item() for name, layer in quantized_layers(model).items()}
    assert all(0.1 <= factor < 1 for factor in factors.values())
    assert len(set(factors.values())) > 1
    assert "stem.error_quantizer.clip" in model.state_dict()
    plain = small_resnet()
    quantize_model(plain, INT8)
    assert {layer.lr_factor.item() for layer in quantized_layers(plain).values()} == {1.0}


def test_a_copy_of_a_converted_model_draws_its_own_roundings(small_resnet, images):
    model = small_resnet()
    quantize_model(model, QuantSpec(error="uniform", error_bits=8, error_rounding="stochastic"))
    twin = copy.deepcopy(model)
    generators = {id(layer.error_quantizer.generator) for layer in quantized_layers(twin).values()}
    assert len(generators) == 1
    assert generators != {id(layer.error_quantizer.generator) for layer in quantized_layers(model).values()}
    model(images).sum().backward()
    twin(images).sum().backward()
    assert torch.equal(model.stem.weight.grad, twin.stem.weight.grad)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            {"weight_bits": 32, "error": "uniform", "error_bits": 8},
            "weights must have 1 to 8 and activations 2 to 8 bits",
        ),
        ({"weight_bits": 32}, "use dispatch=simulate"),
        ({"activation_bits": 32}, "use dispatch=simulate"),
        ({"weight_bits": 32, "activation_bits": 32}, "an FP32 method for an unquantized model"),
        ({"weight_bits": 9}, "weight_bits: 9 bits; choose 2 to 8, or 32 for float"),
        ({"activation_bits": 1}, "activation_bits: 1 bits; choose 2 to 8, or 32 for float"),
        ({"forward": "bwn", "weight_bits": 8}, "set weight_bits=1, or quantizer=dorefa for 8 bits"),
        (
            {"forward": "bwn_f", "weight_bits": 1, "error": "uint8", "error_bits": 8},
            "take forward=bwn, or error=uniform, dorefa or daint8",
        ),
        (
            {"forward": "bwn_f", "weight_bits": 1, "error": "fp4", "error_bits": 4},
            "error=fp4 keeps one state per layer; take forward=bwn",
        ),
        ({"forward": "minmax", "weight_bits": 1}, "take quantizer=dorefa, bwn or bwn_f for one bit"),
        ({"error": "fp4", "error_bits": 8}, "set error_bits=4"),
        ({"error": "afp", "error_bits": 6}, "set error_bits=8"),
        ({"activation_bits": 16}, "activation_bits: 16 bits"),
        ({"error": "uniform"}, "error=uniform with error_bits=32"),
        ({"error_bits": 8}, "error=none with error_bits=8"),
        ({"error": "unit8", "error_bits": 8}, "did you mean 'uint8'"),
        ({"forward": "bvn"}, "forward quantizer 'bvn' is unknown"),
        ({"edge_layers": "half"}, "choose one of: full, int8, same"),
        ({"dispatch": "fastest"}, "choose one of: integer, auto, simulate"),
        ({"error": "uniform", "error_bits": 8, "error_rounding": "up"}, "rounding 'up' is unknown"),
        ({"error": "uniform", "error_bits": 8, "error_granularity": "sample"}, "one scale per sample cannot leave"),
        (
            {"error": "uint8", "error_bits": 8, "error_granularity": "channel", "dispatch": "simulate"},
            "takes one scale per tensor",
        ),
        ({"error": "dorefa", "error_bits": 4, "error_granularity": "sample"}, "one scale per sample cannot leave"),
        (
            {"error": "dorefa", "error_bits": 4, "error_granularity": "channel", "dispatch": "simulate"},
            "one scale per tensor or per sample, not per channel",
        ),
        (
            {"error": "daint8", "error_bits": 8, "error_granularity": "channel", "dispatch": "simulate"},
            "leave method.error_granularity=tensor",
        ),
    ],
)
def test_specs_that_cannot_run_are_refused_in_a_sentence(small_resnet, options, words):
    with pytest.raises(ConfigError) as refusal:
        quantize_model(small_resnet(), QuantSpec(**options))
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Linear(3, 3), "wrap it in nn.Sequential"),
        (nn.Sequential(nn.ReLU()), "holds no Conv2d or Linear"),
        (nn.Sequential(nn.Linear(3, 3).double()), "every layer of the model stays float"),
    ],
)
def test_models_without_a_layer_to_swap_are_refused(model, words):
    with pytest.raises(ConfigError, match=words):
        quantize_model(model, INT8)


def test_inputs_that_do_not_fit_are_refused_in_a_sentence():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2))
    quantize_model(model, INT8)
    with pytest.raises(ShapeError, match=r"layer 0: the input is torch\.int64"):
        model(torch.zeros(1, 3, 4, 4, dtype=torch.int64))
    with pytest.raises(ShapeError, match="5 channels and the weight wants 3"):
        model(torch.zeros(1, 5, 4, 4))
    with pytest.raises(ShapeError, match=r"layer 2: .* its last size must be 16"):
        model[2](torch.zeros(1, 15))
