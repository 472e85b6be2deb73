"""Operations and bytes by phase and layer, and what follows from them and the times."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from bench import native
from bench.app import parse_arguments, plan_cells
from bench.data import build_data
from bench.data.loader import TrainBatches
from bench.profilers.span_timer import Place
from bench.profilers.step_work import NO_SPAN, StepWork, phase_work, products_of
from bench.records.schema import Ceilings, PhaseWork
from bench.training.assemble import Parts, build_parts
from bench.training.profile import count_step
from bench.units import Absent

CPU = torch.device("cpu")
CEILINGS = Ceilings(int8_gops=200.0, fp32_gflops=100.0, bf16_gflops=Absent("no bf16 here"), copy_gb_s=10.0)


def parts_of(*argv: str) -> tuple[Parts, TrainBatches]:
    (cell,) = plan_cells(parse_arguments(["hypernet.hidden=2", *argv])).cells
    data = build_data("digits", train_limit=64, test_limit=64)
    return build_parts(cell, data, CPU), TrainBatches(data, batch_size=8, seed=0, device=CPU)


def counted(*argv: str) -> StepWork:
    parts, batches = parts_of(*argv)
    parts.model.train()
    stream = (batches.batch(0, step) for step in range(3))
    count_step(parts, stream, 0.01)  # a hypernetwork first acts in the second
    return count_step(parts, stream, 0.01)


def totals(work: StepWork, phase: str) -> Counter[str]:
    return sum((found for (name, _), found in work.operations.items() if name == phase), Counter())


def test_fp32_operations_are_those_of_torchs_own_counter() -> None:
    parts, batches = parts_of("variant=fp32")
    images, labels = batches.batch(0, 0)
    with FlopCounterMode(display=False) as torchs:
        loss = F.cross_entropy(parts.model(images), labels)
    forward = torchs.get_total_flops()
    with FlopCounterMode(display=False) as torchs:
        loss.backward()
    work = counted("variant=fp32")
    assert totals(work, "forward") == {"fp32": forward}
    assert totals(work, "backward") == {"fp32": torchs.get_total_flops()}


def test_a_quantized_step_computes_the_same_operations_as_integers() -> None:
    fp32, int8 = counted("variant=fp32"), counted("variant=metagrad_int8_slim")
    for phase in ("forward", "backward"):
        assert totals(int8, phase) == {"int8": totals(fp32, phase)["fp32"]}
        assert {layer for (name, layer), found in int8.operations.items() if name == phase and found} == set(
            int8.layers
        )
    assert totals(int8, "meta")["fp32"] > 0, "the hypernetwork's"


def test_what_the_compiled_pieces_move_counts_too() -> None:
    if isinstance(native.pieces(CPU), Absent):
        pytest.skip("no C compiler here")
    compiled = counted("variant=uniform_int8")
    layer = "blocks.0.bn1"
    values = 8 * 16 * 8 * 8
    assert compiled.num_bytes["forward", layer] >= 2 * 4 * values, "the input and the output in float32"
    assert compiled.num_bytes["forward", layer] < 8 * 4 * values


def test_a_products_rate_and_shares_follow_from_sizes_and_times() -> None:
    work = counted("variant=uniform_int8")
    layer = "blocks.0.conv1"
    times = Counter({Place("forward", layer, "fprop", "gemm"): 0.5, Place("forward", layer, "fprop", "quantize"): 0.25})
    rows = {(row.layer, row.gemm): row for row in products_of(work, times, CEILINGS)}
    assert len(rows) == 3 * 20 - 1, "the first layer's input needs no gradient"
    row = rows[layer, "fprop"]
    values, weights = 8 * 16 * 8 * 8, 16 * 16 * 9
    assert row.kind == "int8"
    assert row.path == "int_mm"
    assert row.operations == 2 * values * 16 * 9
    assert row.num_bytes == values + weights + 4 * values
    assert (row.product_ms, row.all_ms) == (0.5, 0.75)
    assert row.gops == pytest.approx(row.operations / 0.5e-3 / 1e9)
    assert row.ceiling_share_pct == pytest.approx(100 * row.operations / 0.5e-3 / 1e9 / 200)
    assert row.copy_share_pct == pytest.approx(100 * row.num_bytes / 0.5e-3 / 1e9 / 10)
    other = rows[layer, "wgrad"]
    assert other.num_bytes == 2 * values + 4 * weights
    assert (other.product_ms, other.gops) == (NO_SPAN, NO_SPAN)


def test_a_product_in_bfloat16_is_held_against_that_ceiling() -> None:
    parts, batches = parts_of("variant=bf16")
    parts.model.train()
    work = count_step(parts, iter([batches.batch(0, 0)]), 0.01)
    rows = products_of(work, Counter(), CEILINGS)
    assert {(row.kind, row.path) for row in rows} == {("bf16", "bfloat16")}
    layer = Counter({Place("forward", rows[0].layer, "fprop", "gemm"): 1.0})
    assert products_of(work, layer, CEILINGS)[0].ceiling_share_pct == Absent("no bf16 here")


def test_a_phases_work_is_held_against_the_ceilings_of_its_kinds() -> None:
    work = StepWork()
    work.operations["forward", "a"] = Counter(int8=400_000_000, fp32=100_000_000)
    work.num_bytes["forward", "a"] = 30_000_000
    work.num_bytes["forward", ""] = 10_000_000
    rows = phase_work(
        work, {"forward": 10.0, "data": 1.0, "unattributed": 1.0}, Counter({Place("forward", "a", "", "x"): 5.0}),
        CEILINGS,
    )  # fmt: skip
    forward, layer, data = rows
    assert (forward.phase, forward.layer, layer.layer, data.phase) == ("forward", "", "a", "data")
    assert forward.gops == pytest.approx(50)
    assert forward.ceiling_share_pct == pytest.approx(30), "2 ms of integers and 1 ms of FP32 in 10 ms"
    assert forward.copy_share_pct == pytest.approx(40)
    assert (layer.num_bytes, layer.time_ms) == (30_000_000, 5.0)
    assert isinstance(data, PhaseWork)
    assert (data.operations, data.num_bytes, data.ceiling_share_pct) == ({}, 0, 0.0)
