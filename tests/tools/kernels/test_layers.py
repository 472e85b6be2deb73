from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import nn

from bench.kernels.int_mm import GemmCall
from bench.kernels.spans import Span
from bench.layers.convert import KeptLayer, QuantSpec, quantize_model
from bench.units import Absent
from tests.tools.kernels.works import CEILINGS, tiny_work
from tools.kernels.layers import OTHER, SHARED, LayerWork, join, measure_float_layers
from tools.kernels.sides import make_batches


def test_a_row_joins_the_log_the_spans_and_the_ceilings() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4, 2))
    swapped = quantize_model(model, QuantSpec(error="uniform", error_bits=8)).swapped
    layers = [
        LayerWork(name="0", macs=10**6, needs_dgrad=False, fp32_ms={"fprop": 2.0}, bf16_ms={"fprop": 1.0}),
        LayerWork(name="elsewhere", macs=5, needs_dgrad=True, fp32_ms={}, bf16_ms={}),
    ]  # fmt: skip
    call = GemmCall(gemm="fprop", layer="0", m=100, k=20, n=10, padded=(100, 24, 16), path="int_mm", macs=9)
    small = dataclasses.replace(call, m=50, padded=(50, 24, 16), macs=5)
    floating = GemmCall(gemm="wgrad", layer="0", m=10, k=10, n=10, padded=(10, 10, 10), path="float32", macs=1000)

    def step(gemm_ms: float) -> list[Span]:
        return [
            Span(piece="quantize", layer="0", gemm="fprop", span_ms=0.25),
            Span(piece="gemm", layer="0", gemm="fprop", span_ms=gemm_ms / 2),
            Span(piece="gemm", layer="0", gemm="fprop", span_ms=gemm_ms / 2),
            Span(piece="gemm", layer="0", gemm="wgrad", span_ms=0.5),
            Span(piece="quantize", layer="0", gemm="", span_ms=0.125),
            Span(piece="norm", layer="1", gemm="", span_ms=1.0),
        ]

    detail = join(
        layers, swapped, [KeptLayer(name="elsewhere", kind="conv2d", reason="edge layer")],
        [small, call, floating], [step(0.5), step(0.75), step(40.0)], CEILINGS,
        traced_ms=(10.0, 11.0, 12.0), untraced_ms=(10.0, 10.0, 10.0),
    )  # fmt: skip
    rows = {(row.layer, row.gemm): row for row in detail.layers}
    assert set(rows) == {
        ("0", "fprop"), ("0", "wgrad"), ("0", SHARED),
        ("elsewhere", "fprop"), ("elsewhere", "dgrad"), ("elsewhere", "wgrad"),
    }  # fmt: skip
    fprop = rows["0", "fprop"]
    assert (fprop.calls, fprop.shape, fprop.padded, fprop.path) == (2, (100, 20, 10), (100, 24, 16), "int_mm")
    assert (fprop.gemm_ms, fprop.all_ms, fprop.fp32_ms, fprop.bf16_ms) == (0.75, 1.0, 2.0, 1.0)
    assert fprop.why == "int_mm: dispatch=integer"
    assert fprop.useful_gops == pytest.approx(2 * 10**6 / 0.75e-3 / 1e9)
    assert fprop.ceiling == "int8_gops"
    assert fprop.ceiling_share_pct == pytest.approx(100 * fprop.useful_gops / 1000)
    moved = (100 * 24 + 24 * 16 + 4 * 100 * 16) + (50 * 24 + 24 * 16 + 4 * 50 * 16)
    assert fprop.copy_share_pct == pytest.approx(100 * moved / 0.75e-3 / 1e9 / 10)
    wgrad = rows["0", "wgrad"]
    assert (wgrad.path, wgrad.ceiling) == ("float32", "fp32_gflops")
    assert wgrad.ceiling_share_pct == pytest.approx(100 * (2 * 10**6 / 0.5e-3 / 1e9) / 100)
    assert isinstance(wgrad.copy_share_pct, Absent)
    assert rows["0", SHARED].all_ms == 0.125
    assert isinstance(rows["0", SHARED].gemm_ms, Absent)
    assert isinstance(rows["elsewhere", "dgrad"].shape, Absent)
    assert (rows["elsewhere", "dgrad"].path, rows["elsewhere", "dgrad"].why) == ("float", "edge layer")
    pieces = {piece: value for piece, value in detail.pieces_ms.items() if not isinstance(value, Absent)}
    assert pieces == {"quantize": 0.375, "gemm": 1.25, "norm": 1.0, OTHER: 11.0 - 2.625}
    assert detail.tracing_overhead_pct == pytest.approx(10.0)


def test_layers_are_measured_alone_in_the_order_of_execution_with_their_own_sizes() -> None:
    images, _ = make_batches(tiny_work(), torch.device("cpu"))[0]
    shared = nn.Conv2d(4, 4, 3, padding=1, groups=2)
    model = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), shared, shared, nn.Flatten(), nn.Linear(64, 10))
    first, twice, last = measure_float_layers(model, images)
    assert [work.name for work in (first, twice, last)] == ["0", "1", "4"]
    assert first.macs == 2 * 4 * 4 * 4 * 27
    assert twice.macs == 2 * (2 * 4 * 4 * 4 * 2 * 9), "it runs twice a step, on half of the channels"
    assert last.macs == 2 * 64 * 10
    assert set(first.fp32_ms) == set(first.bf16_ms) == {"fprop", "wgrad"}, "the images need no gradient"
    assert set(twice.fp32_ms) == {"fprop", "dgrad", "wgrad"}
    assert all(value > 0 for work in (first, twice, last) for value in (*work.fp32_ms.values(), *work.bf16_ms.values()))
    assert all(parameter.requires_grad for parameter in model.parameters()), "it times copies"
