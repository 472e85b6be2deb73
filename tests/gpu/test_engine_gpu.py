"""What only a GPU can show of the engine: exact products on the device, a whole step, a whole cell."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from bench.app import parse_arguments, plan_cells
from bench.cell import run_cell
from bench.data import build_data
from bench.data.loader import TrainBatches
from bench.kernels.int_mm import int_mm, record_gemms
from bench.kernels.reference import int_mm_reference
from bench.kernels.selfcheck import check_device
from bench.profilers.gemm_count import FloatProductCounter
from bench.training.assemble import build_parts
from bench.training.step import train_step

pytestmark = pytest.mark.gpu
VARIANTS = ("ste_int4", "uint8_int8", "uniform_int4", "metagrad_int8_recompute", "metagrad_int4_retain")


def test_the_devices_integer_product_passes_its_self_check() -> None:
    check_device("cuda", again=True)


@pytest.mark.parametrize(("m", "k", "n"), [(1, 1, 1), (17, 8, 8), (16, 27, 10), (300, 147, 65), (4096, 1152, 128)])
def test_int_mm_is_exact_for_full_range_operands(m: int, k: int, n: int) -> None:
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(-128, 128, (m, k), dtype=torch.int8, generator=generator)
    b = torch.randint(-128, 128, (n, k), dtype=torch.int8, generator=generator).t()
    expected = int_mm_reference(a, b)
    assert torch.equal(int_mm(a.cuda(), b.cuda()).cpu().long(), expected.long())


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_training_step_gives_the_cpus_loss_and_the_same_products(variant: str) -> None:
    (cell,) = plan_cells(parse_arguments([f"variant={variant}", "hypernet.hidden=3", "protocol.batch_size=64"])).cells
    data = build_data("digits", train_limit=192)
    losses, products = {}, {}
    for name in ("cpu", "cuda"):
        device = torch.device(name)
        parts = build_parts(cell, data, device)
        images, labels = TrainBatches(data, batch_size=64, seed=0, device=device).batch(0, 0)
        floats = FloatProductCounter()
        with record_gemms() as calls, floats:
            losses[name] = float(train_step(parts, images, labels, 0.01, floats.phases))
        products[name] = ({(call.gemm, call.layer) for call in calls}, floats.calls)
    assert losses["cuda"] == pytest.approx(losses["cpu"], rel=2e-2)
    assert products["cuda"] == products["cpu"]


@pytest.mark.parametrize("variant", ["fp32", "metagrad_int4_slim"])
def test_a_cell_runs_to_a_whole_record(variant: str, tmp_path: Path) -> None:
    argv = [f"variant={variant}", "protocol=tiny", "device=cuda", f"output_dir={tmp_path}", "hypernet.hidden=3"]
    record = run_cell(plan_cells(parse_arguments([*argv, "data.train_limit=256", "progress=false"])).cells[0])
    assert (record.status, record.reason, record.device) == ("ok", "", "cuda:0")
    assert record.timing is not None
    assert record.memory is not None
    assert isinstance(record.memory.peak_reserved_bytes, int)
    assert min(record.timing.repeats[0].step_ms) > 0
