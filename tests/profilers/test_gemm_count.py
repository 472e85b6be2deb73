from __future__ import annotations

import torch
from torch import nn

from bench.hypernets import build_hypernet
from bench.kernels.int_mm import record_gemms
from bench.layers import QuantSpec, quantize_model
from bench.profilers.gemm_count import FloatProductCounter, integer_layers, record_layer_macs


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
