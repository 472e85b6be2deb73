from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from bench import native
from bench.hypernets import build_hypernet
from bench.kernels.int_mm import GemmCall, record_gemms
from bench.layers import QuantSpec, quantize_model
from bench.layers.dispatch import PathChoice
from bench.profilers.gemm_count import FloatProductCounter, integer_layers, record_layer_macs
from bench.units import Absent


def small_net() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=4), nn.Flatten(), nn.Linear(8 * 16, 5)
    )


def run(model: nn.Module, floats: FloatProductCounter) -> None:
    with floats:
        with floats.phases("forward"):
            loss = model(torch.rand(2, 4, 6, 6)).square().sum()
        with floats.phases("backward"):
            loss.backward()


def test_floating_point_products_are_counted_by_kind() -> None:
    floats = FloatProductCounter()
    run(small_net(), floats)
    assert floats.calls == {"fprop": 3, "dgrad": 2, "wgrad": 3}, "the first layer's input needs no gradient"
    assert floats.hypernet_macs == 0


def test_a_layers_multiply_accumulates_follow_from_its_shapes() -> None:
    model = small_net()
    with record_layer_macs(model) as macs:
        model(torch.rand(2, 4, 6, 6))
    # batch 2: 36 pixels x 8 channels x 4·9 terms; 16 pixels x 8 channels x 2·9 terms (4 groups); 5 outputs x 128 terms
    assert macs == {"0": 2 * 36 * 8 * 36, "2": 2 * 16 * 8 * 18, "4": 2 * 5 * 128}


def test_integer_products_are_counted_by_layer_however_many_calls_they_take() -> None:
    model = small_net()
    quantize_model(model, QuantSpec(error="uniform", error_bits=8))
    floats = FloatProductCounter()
    with record_gemms() as calls:
        run(model, floats)
    assert integer_layers(calls) == {"fprop": {"0", "2", "4"}, "dgrad": {"2", "4"}, "wgrad": {"0", "2", "4"}}
    assert floats.calls == {"fprop": 0, "dgrad": 0, "wgrad": 0}


def test_a_product_with_a_floating_point_part_is_not_an_integer_one() -> None:
    call = GemmCall(gemm="dgrad", layer="a", m=20, k=8, n=8, padded=(20, 8, 8), path="int_mm, K in 2 parts", macs=1280)
    calls = [
        call,
        dataclasses.replace(call, layer="b", path="direct"),
        dataclasses.replace(call, layer="c"),
        dataclasses.replace(call, layer="c", path="float32"),
        dataclasses.replace(call, layer="d", path="float64", gemm="wgrad"),
    ]
    assert integer_layers(calls) == {"fprop": set(), "dgrad": {"a", "b"}, "wgrad": set()}


@pytest.mark.parametrize("path", ["int_mm", "direct", "float32"])
def test_whatever_path_auto_takes_every_product_is_counted_once_as_what_it_was(path: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, groups=8, padding=1))
    quantize_model(model, QuantSpec(weight_bits=4, activation_bits=4, error="uniform", error_bits=4, dispatch="auto"))
    x = torch.rand(2, 3, 6, 6)
    with record_layer_macs(model) as macs, record_gemms() as calls:
        model(x).square().sum().backward()
    layer = model[1]
    ran = {(call.layer, call.gemm, call.path) for call in calls if call.layer in ("0", "1")}  # no self-check
    chosen = {(name, gemm, model[int(name)].paths[gemm].path) for name, gemm, _ in ran}
    assert ran == chosen, "trials are not products of the step"
    assert set(layer.paths) == {"fprop", "dgrad", "wgrad"}
    if path == "direct" and isinstance(native.compiled(), Absent):
        pytest.skip("direct sums need a C compiler")
    assert all(path in choice.reason for choice in layer.paths.values()), "it was tried and agreed"
    for gemm in layer.paths:
        layer.paths[gemm] = PathChoice(path=path, reason="asked for")
    floats = FloatProductCounter()
    with record_gemms() as calls, floats:
        with floats.phases("forward"):
            loss = model(x).square().sum()
        with floats.phases("backward"):
            loss.backward()
    own = [call for call in calls if call.layer == "1"]
    assert {call.gemm: call.path for call in own} == dict.fromkeys(layer.paths, path)
    assert all(sum(call.macs for call in own if call.gemm == gemm) == macs["1"] for gemm in layer.paths)
    integer = path != "float32"
    assert [("1" in names) for names in integer_layers(calls).values()] == [integer] * 3
    facts = layer.facts()
    assert facts.fprop == facts.dgrad == facts.wgrad == ("emulated" if integer else "simulated")
    assert facts.fprop_path == f"{path}: asked for"


def test_the_hypernetworks_products_are_counted_apart() -> None:
    hypernet = build_hypernet("dual_lstm_fc", hidden=5)
    floats = FloatProductCounter()
    with floats, floats.phases("meta"):
        output = hypernet(torch.rand(70), torch.rand(70))
        forward = floats.hypernet_macs
        output.sum().backward()
    # per weight: 4H gates over 2 inputs and H states, then H terms of the last layer
    assert forward == 70 * (4 * 5 * (2 + 5) + 5)
    assert floats.hypernet_macs > 2 * forward
    assert floats.calls == {"fprop": 0, "dgrad": 0, "wgrad": 0}


def test_a_product_into_a_given_tensor_counts_too() -> None:
    counter = FloatProductCounter()
    a, b = torch.ones(12, 3), torch.ones(3, 1000)
    with counter, counter.phases("meta"):
        torch.mm(a, b, out=torch.empty(12, 1000))
        torch.addmm(torch.ones(12, 1000), a, b, out=torch.empty(12, 1000))
    assert counter.hypernet_macs == 2 * 12 * 3 * 1000
