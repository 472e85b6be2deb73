"""The profile of a side: its pieces, its products and a trace that other tools open."""

from __future__ import annotations

import gzip
import itertools
import json
import statistics
from pathlib import Path

import pytest
import torch

from bench.app import parse_arguments, plan_cells
from bench.data import build_data
from bench.data.loader import TrainBatches
from bench.profilers.span_timer import REST, Place
from bench.profilers.trace import range_name
from bench.records.schema import Ceilings, SideProfile
from bench.training.assemble import build_parts
from bench.training.profile import profile_side, trace_steps

CPU = torch.device("cpu")
CEILINGS = Ceilings(int8_gops=1000.0, fp32_gflops=100.0, bf16_gflops=100.0, copy_gb_s=10.0)


def profile_of(variant: str, folder: Path, *, steps: int = 1) -> SideProfile:
    (cell,) = plan_cells(parse_arguments([f"variant={variant}", "hypernet.hidden=2"])).cells
    data = build_data("digits", train_limit=64, test_limit=64)
    parts = build_parts(cell, data, CPU)
    stream = itertools.cycle([TrainBatches(data, batch_size=8, seed=0, device=CPU).batch(0, 0)])
    return profile_side(
        parts, stream, 0.01, CPU, steps=steps, ceilings=CEILINGS,
        trace=lambda: trace_steps(parts, stream, 0.01, CPU, folder=folder, worker=variant, steps=2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("trace")


@pytest.fixture(scope="module")
def metagrad(folder: Path) -> SideProfile:
    return profile_of("metagrad_int8_recompute", folder)


def test_every_product_of_a_quantized_network_has_its_time(metagrad: SideProfile) -> None:
    assert len(metagrad.products) == 59
    for product in metagrad.products:
        assert product.kind == "int8"
        for value in (product.product_ms, product.gops, product.ceiling_share_pct, product.copy_share_pct):
            assert isinstance(value, float), product
            assert value > 0
        assert product.all_ms > product.product_ms, "quantizing and dequantizing for it come on top"  # type: ignore[operator]


def test_the_spans_of_a_step_add_up_to_it_and_name_every_piece(metagrad: SideProfile) -> None:
    assert sum(span.span_ms for span in metagrad.spans) == pytest.approx(metagrad.spanned_step_ms[0])
    assert metagrad.span_rest_ms == pytest.approx(0, abs=1e-6), "of a single step nothing is left"
    pieces = {span.piece for span in metagrad.spans}
    assert pieces >= {
        "quantize", "gemm", "dequantize", "norm", "hypernet_forward", "meta_gradient", REST,
    }  # fmt: skip
    assert {span.phase for span in metagrad.spans} >= {"forward", "backward", "meta", "optimizer"}
    assert {span.gemm for span in metagrad.spans if span.piece == "gemm"} <= {"fprop", "dgrad", "wgrad"}
    phases = {work.phase for work in metagrad.work if not work.layer}
    assert phases == {"data", "forward", "backward", "meta", "optimizer"}
    layers = {work.layer for work in metagrad.work if work.phase == "backward"}
    assert {"conv1", "bn1", "fc"} <= layers


@pytest.mark.parametrize("variant", ["fp32", "ste_int8"])
def test_products_in_floating_point_have_their_time_too(variant: str, folder: Path) -> None:
    side = profile_of(variant, folder)
    kinds = {gemm: {row.kind for row in side.products if row.gemm == gemm} for gemm in ("fprop", "dgrad", "wgrad")}
    assert kinds == {"fprop": {"fp32" if variant == "fp32" else "int8"}, "dgrad": {"fp32"}, "wgrad": {"fp32"}}
    assert all(isinstance(row.product_ms, float) for row in side.products)


def test_the_trace_names_its_ranges_by_phase_layer_product_and_piece(metagrad: SideProfile, folder: Path) -> None:
    assert metagrad.trace is not None
    events = json.loads(gzip.decompress((folder.parent / metagrad.trace.file).read_bytes()))["traceEvents"]
    ranges = {event["name"] for event in events if event.get("cat") == "user_annotation"}
    assert ranges >= {
        "forward", "forward/blocks.0.conv1/fprop/gemm", "backward/blocks.0.conv1/dgrad/gemm",
        "backward/blocks.0.conv1/wgrad/gemm", "backward/blocks.0.conv1/quantize", "forward/bn1/norm", "optimizer",
        "meta/hypernet_forward", "meta/meta_gradient",
    }  # fmt: skip
    rows = sorted(
        ((e["tid"], e["ts"], -e["dur"], e["name"]) for e in events if e.get("cat") == "user_annotation"),
    )
    open_ranges: list[tuple[int, float, str]] = []
    for thread, start, length, name in rows:
        open_ranges = [outer for outer in open_ranges if outer[0] == thread and outer[1] > start + 0.01]
        assert name not in {outer for *_, outer in open_ranges}, f"{name} lies in a range of its own name"
        open_ranges.append((thread, start - length, name))
    assert range_name(Place("backward", "conv1", "", REST)) == "backward/conv1"


def test_the_ten_most_expensive_operators_are_in_the_record(metagrad: SideProfile) -> None:
    trace = metagrad.trace
    assert trace is not None
    assert trace.steps == 2
    assert len(trace.operators) == 10
    shares = [operator.share_pct for operator in trace.operators]
    assert shares == sorted(shares, reverse=True)
    assert sum(shares) <= 100
    counted = {operator.name: operator.calls for operator in trace.operators}
    assert counted["_ConvFunctionBackward"] == 19, "calls of one step"


def test_tensorboards_profiler_plugin_shows_both_traces(metagrad: SideProfile, folder: Path) -> None:
    from torch_tb_profiler.io.cache import Cache
    from torch_tb_profiler.profiler.loader import RunLoader

    profile_of("fp32", folder)
    cache = Cache()
    with cache:
        run = RunLoader("trace", str(folder), cache).load()
    workers = {profile.worker for profile in run.profiles.values()}
    assert workers >= {"metagrad_int8_recompute", "fp32"}
    for profile in run.profiles.values():
        assert profile.operation_table_by_name is not None


def test_work_and_time_of_slim_are_of_one_layer_of_about_mean_size(folder: Path) -> None:
    side = profile_of("metagrad_int8_slim", folder, steps=3)
    assert isinstance(side.span_rest_ms, float)
    spans_ms = sum(span.span_ms for span in side.spans)
    assert spans_ms + side.span_rest_ms == pytest.approx(statistics.median(side.spanned_step_ms))
    assert side.drawn_layer == "blocks.3.conv2", "9,216 weights where the mean is 13,523"
    assert profile_of("metagrad_int8_recompute", folder).drawn_layer == ""
