"""What only a GPU can show of the profile pass: events, kernels, tensor cores, NVTX."""

from __future__ import annotations

import gzip
import itertools
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from bench.app import parse_arguments, plan_cells
from bench.cell import locate, run_cell
from bench.data import build_data
from bench.data.loader import TrainBatches
from bench.profilers.ceilings import measure_ceilings
from bench.profilers.span_timer import Places, SpanTimer, watch_places
from bench.records.schema import SideProfile
from bench.training.assemble import build_parts
from bench.training.profile import profile_side, trace_steps

pytestmark = pytest.mark.gpu


def profile_of(variant: str, folder: Path) -> SideProfile:
    device = torch.device("cuda", 0)
    (cell,) = plan_cells(parse_arguments([f"variant={variant}", "data=synthetic", "hypernet.hidden=8"])).cells
    data = build_data("synthetic", train_limit=256)
    parts = build_parts(cell, data, device)
    stream = itertools.cycle([TrainBatches(data, batch_size=256, seed=0, device=device).batch(0, 0)])
    return profile_side(
        parts, stream, 0.01, device, steps=5, ceilings=measure_ceilings(device, budget_s=0.3),
        trace=lambda: trace_steps(parts, stream, 0.01, device, folder=folder, worker=variant),
    )  # fmt: skip


@pytest.mark.parametrize("variant", ["fp32", "bf16", "uniform_int8", "metagrad_int8_recompute"])
def test_spans_products_and_kernels_of_a_gpu_are_whole(variant: str, tmp_path: Path) -> None:
    side = profile_of(variant, tmp_path / "trace")
    assert sum(span.span_ms for span in side.spans) == pytest.approx(sum(side.spanned_step_ms) / 5, rel=0.2)
    kind = {"fp32": "fp32", "bf16": "bf16"}.get(variant, "int8")
    for product in side.products:
        assert product.kind == kind
        assert isinstance(product.ceiling_share_pct, float)
        assert product.ceiling_share_pct > 0
        # torch lets cuDNN take TF32 for a convolution in float32, whose ceiling is FP32's without it
        assert variant == "fp32" or product.ceiling_share_pct < 110, product
    assert side.trace is not None
    assert isinstance(side.trace.kernels, tuple)
    assert len(side.trace.kernels) == 10
    assert isinstance(side.trace.tensor_core_share_pct, float)
    assert variant == "fp32" or side.trace.tensor_core_share_pct > 0
    events = json.loads(gzip.decompress((tmp_path / side.trace.file).read_bytes()))["traceEvents"]
    assert any("wgrad/gemm" in event.get("name", "") for event in events)


class _Waits(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, *grads: Tensor) -> Tensor:
        torch.cuda._sleep(50_000_000)  # cycles: more than 10 ms
        return grads[0]


class Waits(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = _Waits.apply(x)
        return y


def test_a_layer_that_keeps_the_gpu_waiting_in_backward_shows_there() -> None:
    device = torch.device("cuda", 0)
    model = nn.Sequential(nn.Linear(64, 64), Waits(), nn.Linear(64, 8)).to(device)
    timer = SpanTimer(device)
    for _ in range(2):
        places = Places(timer)
        with watch_places(places, model), places.step():
            with places("forward"):
                loss = model(torch.randn(32, 64, device=device)).sum()
            with places("backward"):
                loss.backward()
    most = max(timer.read()[-1].items(), key=lambda item: item[1])
    assert (most[0].phase, most[0].layer) == ("backward", "1")
    assert most[1] > 5


def test_a_cells_record_on_a_gpu_has_its_profile_and_traces(tmp_path: Path) -> None:
    argv = (
        "variant=uniform_int8", "protocol=tiny", "device=cuda", f"output_dir={tmp_path}", "data=synthetic",
        "data.train_limit=256", "progress=false", "protocol.passes=[profile]", "protocol.pretrain_epochs=0",
    )  # fmt: skip
    (cell,) = plan_cells(parse_arguments(list(argv))).cells
    record = run_cell(cell)
    assert record.profile is not None, record.missing
    for side in (record.profile.cell, record.profile.fp32):
        assert side.trace is not None
        assert (locate(cell)[0] / side.trace.file).is_file()
        assert isinstance(side.span_overhead_pct, float)
