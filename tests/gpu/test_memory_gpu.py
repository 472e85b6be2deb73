"""What only a GPU can show of the memory accounting: it is held against the allocator's own numbers."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch

from bench.app import parse_arguments, plan_cells
from bench.cell import SNAPSHOT_FILE, locate, run_cell
from bench.config import CellConfig
from bench.data import build_data
from bench.data.loader import TrainBatches
from bench.estimate import CellShapes
from bench.kernels.workspace import clear_workspace
from bench.profilers.memory_categories import CategoryTracker
from bench.training.assemble import build_parts
from bench.training.drawn_layer import take_largest_layer
from bench.training.memory import snapshot_steps, track_steps
from bench.units import Absent

pytestmark = pytest.mark.gpu
BATCH = 512
LIBRARIES_BYTES = 160 * 1024**2  # cuBLAS's and cuDNN's workspaces, which no dispatcher sees


def cell_of(variant: str, *argv: str) -> CellConfig:
    settings = [f"variant={variant}", "data=synthetic", "hypernet.hidden=8", *argv]
    return plan_cells(parse_arguments(settings)).cells[0]


def tracked(cell: CellConfig) -> CategoryTracker:
    clear_workspace()
    torch.cuda.empty_cache()
    device = torch.device("cuda", 0)
    data = build_data("synthetic", train_limit=3 * BATCH)
    parts = build_parts(cell, data, device)
    take_largest_layer(parts)
    drawn = TrainBatches(data, batch_size=BATCH, seed=0, device=device)
    batches = [drawn.batch(0, step) for step in range(3)]
    del drawn
    return track_steps(parts, batches, 0.01, device)


@pytest.mark.parametrize("variant", ["fp32", "uniform_int8", "metagrad_int4_retain", "metagrad_int4_recompute"])
def test_the_categories_agree_with_cudas_allocator_at_every_phases_peak(variant: str) -> None:
    for phase in tracked(cell_of(variant)).profile().phases:
        assert isinstance(phase.allocator_bytes, int)
        beyond = phase.allocator_bytes - phase.peak_bytes
        assert -0.01 * phase.peak_bytes <= beyond <= 0.05 * phase.peak_bytes + LIBRARIES_BYTES, phase.phase
        assert 100 * phase.categories["other"] <= 5 * phase.peak_bytes


@pytest.mark.parametrize("variant", ["fp32", "uniform_int8", "metagrad_int4_recompute"])
def test_the_estimate_agrees_with_what_the_gpu_holds(variant: str) -> None:
    cell = cell_of(variant)
    estimate = CellShapes(cell).on_cuda(BATCH, 10 * torch.cuda.get_device_capability(0)[0])
    estimated_bytes = max(phase.peak_bytes for phase in estimate.phases)
    assert estimated_bytes == pytest.approx(tracked(cell).peak_allocated_bytes, rel=0.05)


def test_a_snapshot_holds_the_steps_allocations(tmp_path: Path) -> None:
    cell = cell_of("uniform_int8")
    device = torch.device("cuda", 0)
    data = build_data("synthetic", train_limit=BATCH)
    parts = build_parts(cell, data, device)
    batch = TrainBatches(data, batch_size=BATCH, seed=0, device=device).batch(0, 0)
    snapshot_steps(parts, [batch], 0.01, tmp_path / "snapshot.pickle")
    snapshot = pickle.loads((tmp_path / "snapshot.pickle").read_bytes())
    assert snapshot["segments"]
    assert any(event["action"] == "alloc" for trace in snapshot["device_traces"] for event in trace)


def test_a_cells_record_has_the_snapshot_beside_it(tmp_path: Path) -> None:
    cell = cell_of(
        "metagrad_int4_slim", "protocol=tiny", "device=cuda", f"output_dir={tmp_path}", "data.train_limit=256",
        "progress=false", "protocol.passes=[memory]", "protocol.pretrain_epochs=0",
    )  # fmt: skip
    record = run_cell(cell)
    assert record.memory is not None
    assert record.memory.snapshot == SNAPSHOT_FILE
    assert (locate(cell)[0] / SNAPSHOT_FILE).is_file()
    assert not isinstance(record.memory.hypernet_bound_bytes, Absent)
