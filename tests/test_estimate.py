from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from bench.app import parse_arguments, plan_cells
from bench.config import CellConfig
from bench.data import build_data
from bench.data.loader import TrainBatches
from bench.errors import ConfigError
from bench.estimate import REACH, CellShapes, distinct_cells, find_largest_batch, select_gpus, step_range_ms
from bench.hardware.peaks import find_gpu
from bench.kernels.selfcheck import check_device
from bench.kernels.workspace import clear_workspace
from bench.profilers.work import Operator
from bench.training.assemble import build_parts
from bench.training.drawn_layer import take_largest_layer
from bench.training.memory import track_steps
from bench.training.shapes import bound_hypernet_bytes
from bench.units import Absent
from tools.estimate import TITLE, main

CPU = torch.device("cpu")
BATCH = 48


def cell_of(*argv: str) -> CellConfig:
    (cell,) = plan_cells(parse_arguments(list(argv))).cells
    return cell


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "argv",
    [
        ["variant=fp32"],
        ["variant=metagrad_int4_recompute", "hypernet.hidden=4"],
        ["variant=metagrad_int4_retain", "hypernet.hidden=4"],
        pytest.param(["variant=bf16"], marks=SLOW),
        pytest.param(["variant=uint8_int8"], marks=SLOW),
        pytest.param(["variant=metagrad_int8_slim", "hypernet.hidden=4"], marks=SLOW),
        pytest.param(["variant=metagrad_int8_tabulate", "hypernet.hidden=4"], marks=SLOW),
        pytest.param(["variant=metagrad_int4_recompute", "hypernet.hidden=4", "optimizer=adam"], marks=SLOW),
        pytest.param(["variant=ste_int8", "model=mobilenet_v2", "data.image_size=16"], marks=SLOW),
    ],
)
def test_on_the_cpu_the_estimate_agrees_with_measurement_within_five_percent(argv: list[str]) -> None:
    cell = cell_of(*argv)
    estimate = CellShapes(cell).on_cpu(BATCH)
    data = build_data("digits", train_limit=BATCH * 3, test_limit=64, image_size=cell.data.image_size)
    clear_workspace()
    check_device(CPU)  # once per process, and no part of a step
    parts = build_parts(cell, data, CPU)
    take_largest_layer(parts)
    drawn = TrainBatches(data, batch_size=BATCH, seed=0, device=CPU)
    tracker = track_steps(parts, [drawn.batch(0, step) for step in range(3)], 0.01, CPU)
    measured = {phase.phase: phase for phase in tracker.profile().phases}
    assert estimate.peak_allocated_bytes == pytest.approx(tracker.peak_allocated_bytes, rel=0.05)
    for phase in estimate.phases:
        assert phase.peak_bytes == pytest.approx(measured[phase.phase].peak_bytes, rel=0.05), phase.phase
        for category, held in phase.categories.items():
            near = 0.05 * measured[phase.phase].peak_bytes
            assert held == pytest.approx(measured[phase.phase].categories[category], abs=near), (phase.phase, category)


@pytest.mark.parametrize("strategy", ["retain", pytest.param("recompute", marks=SLOW)])
def test_the_hypernetworks_bound_holds_what_it_adds_and_is_close_where_it_makes_the_peak(strategy: str) -> None:
    cell = cell_of(f"variant=metagrad_int4_{strategy}", "hypernet.hidden=4")
    shapes, plain = CellShapes(cell), CellShapes(cell_of("variant=uniform_int4"))
    extra = shapes.on_cpu(BATCH).peak_allocated_bytes - plain.on_cpu(BATCH).peak_allocated_bytes
    bound = bound_hypernet_bytes(shapes._track(BATCH, "cpu"), shapes.parts)
    assert not isinstance(bound, Absent)
    assert 0 < extra <= bound
    if strategy == "retain":
        assert extra > 0.95 * bound


def test_running_on_shapes_leaves_the_cells_parts_and_the_self_check_as_they_were() -> None:
    shapes = CellShapes(cell_of("variant=ste_int8"))
    before = {name: value.clone() for name, value in shapes.parts.model.state_dict().items()}
    shapes.on_cuda(4, 90)
    after = shapes.parts.model.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert all(parameter.device.type == "cpu" for parameter in shapes.parts.model.parameters())
    check_device("cpu", again=True)


def test_memory_on_a_gpu_grows_with_the_batch_and_holds_the_allowances() -> None:
    shapes = CellShapes(cell_of("variant=fp32", "data=cifar10"))
    small, large = shapes.on_cuda(16, 80), shapes.on_cuda(64, 80)
    first, second = (max(memory.phases, key=lambda phase: phase.peak_bytes) for memory in (small, large))
    assert small.peak_allocated_bytes >= first.peak_bytes, "rounded up to 512 bytes"
    assert small.peak_allocated_bytes == pytest.approx(first.peak_bytes, rel=0.05)
    assert isinstance(small.peak_reserved_bytes, int)
    assert small.peak_reserved_bytes >= small.peak_allocated_bytes
    assert 3 < second.categories["activations"] / first.categories["activations"] < 4.5
    assert small.needed_bytes - small.peak_reserved_bytes == small.allowance_bytes
    assert shapes.on_cuda(16, 90).allowance_bytes > small.allowance_bytes, "cuBLAS takes more from sm_90 on"


def test_the_largest_batch_is_found_where_memory_is_nearly_linear() -> None:
    def needed(size: int) -> int:
        return 1000 + 7 * size + size % 5 * 3

    for limit in (1200, 5000, 10**5, 10**6):
        largest = find_largest_batch(needed, limit, 16)
        assert needed(largest) <= limit
        share = 18 if largest > REACH * 16 else 60  # beyond what was run a twentieth is left
        assert needed(largest + max(6, largest // share)) > limit
    assert find_largest_batch(needed, 999, 16) == 0
    assert find_largest_batch(lambda size: 1, 10, 16) == 2**20


def test_the_largest_batch_takes_few_tries() -> None:
    tried: list[int] = []

    def needed(size: int) -> int:
        tried.append(size)
        return 10**6 + 7000 * size

    largest = find_largest_batch(needed, 5 * 10**6, 64)
    assert len(tried) == 3, "the batch that was asked for, sixteen times it, and the answer"
    assert needed(largest) <= 5 * 10**6 < needed(largest + largest // 100)
    tried.clear()
    largest = find_largest_batch(needed, 10**9, 64)
    assert tried == [64, 1024] or tried == [1024, 64], "the line through them points far beyond"
    assert needed(largest) <= 10**9 < needed(largest + largest // 18), "a twentieth is left"


def test_where_a_phase_that_does_not_grow_hides_one_that_does_the_latter_tells_the_largest_batch() -> None:
    def phases(size: int) -> dict[str, int]:
        return {"forward": 5000 * size, "meta": 6 * 10**6 + size}

    largest = find_largest_batch(lambda size: max(phases(size).values()), 10**9, 64, phase_bytes=phases)
    assert max(phases(largest).values()) <= 10**9 < max(phases(largest + largest // 15).values())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "hidden"),
    [("fp32", 4), ("uint8_int8", 4), ("metagrad_int4_recompute", 4), ("metagrad_int4_recompute", 100)],
)
def test_beyond_the_batches_that_are_run_the_line_through_them_holds(variant: str, hidden: int) -> None:
    shapes = CellShapes(cell_of(f"variant={variant}", f"hypernet.hidden={hidden}"))
    size = 200 * 64
    largest = find_largest_batch(
        lambda size: shapes.on_cuda(size, 90).needed_bytes, shapes.on_cuda(size, 90).needed_bytes, 64,
        phase_bytes=lambda size: {phase.phase: phase.peak_bytes for phase in shapes.on_cuda(size, 90).phases},
    )  # fmt: skip
    assert 0.9 * size < largest <= size, "the margin that is left beyond what was run is enough"


def test_the_roofline_is_that_of_paper_and_pencil() -> None:
    gpu = find_gpu("a100-sxm-80gb")
    assert not isinstance(gpu, Absent)
    product = Operator("aten._int_mm", "int8", 624 * 10**9, 10**6)  # 1 ms of 624 TOP/s
    copy = Operator("aten.copy_", "none", 0, 2039 * 10**6)  # 1 ms of 2039 GB/s
    low, high = step_range_ms([product, copy], gpu)
    assert low == pytest.approx(2.0)
    assert high == pytest.approx(1 / 0.3 + 1 / 0.6 + 0.02)
    v100 = find_gpu("v100-sxm2-16gb")
    assert not isinstance(v100, Absent)
    assert isinstance(step_range_ms([product], v100)[0], Absent), "no INT8 peak is published"


def test_a_gpu_is_named_by_its_key_or_by_the_beginning_of_several() -> None:
    assert [gpu.key for gpu in select_gpus("h100")] == ["h100-sxm", "h100-pcie", "h100-nvl"]
    assert [gpu.key for gpu in select_gpus("t4,h100-nvl")] == ["t4", "h100-nvl"]
    assert len(select_gpus("all")) > 30
    for wrong in ("h1000", "", "t4,"):
        with pytest.raises(ConfigError, match="is not in the table of GPUs: choose from v100-sxm2-16gb"):
            select_gpus(wrong)


def test_a_step_on_shapes_runs_only_where_it_has_not_and_its_operators_are_real_ones() -> None:
    asked: list[int] = []
    shapes = CellShapes(cell_of("variant=fp32"), on_run=asked.append)
    shapes.on_cuda(8, 90)
    operators = shapes.operators(8)
    shapes.on_cuda(8, 80)
    assert asked == [8]
    assert not [operator.name for operator in operators if operator.name.startswith("prim")]
    assert sum(operator.name == "aten.convolution" for operator in operators) == 19
    assert shapes.operators(16) != operators
    assert asked == [8, 16]


def test_seeds_of_a_cell_are_estimated_once() -> None:
    cells = plan_cells(parse_arguments(["--multirun", "variant=fp32,ste_int8", "seed=0,1"])).cells
    assert [(cell.variant_name, cell.seed) for cell in distinct_cells(cells)] == [("fp32", 0), ("ste_int8", 0)]


def test_a_network_that_looks_at_values_is_refused_in_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "picky_net.py").write_text(
        "from torch import nn\n"
        "class Picky(nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return super().forward(x.flatten(1)[:, x.flatten().nonzero()[:64, 0]])\n"
        "def make(num_classes, in_channels, image_size):\n"
        "    return Picky(64, num_classes)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    shapes = CellShapes(cell_of("variant=fp32", "model=custom", "model.factory=picky_net:make"))
    with pytest.raises(ConfigError, match="picky_net:make does not run on tensor shapes") as caught:
        shapes.on_cpu(8)
    assert "\n" not in str(caught.value)


def test_the_verb_prints_and_writes_estimates_that_say_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = tmp_path / "estimate.json"
    assert main(["variant=fp32", "gpu=t4", "batch=32", "--json", str(target)]) == 0
    printed, progress = capsys.readouterr()
    assert any("t4 " in line and " ms to " in line for line in printed.splitlines()), "a row stays in one piece"
    assert "estimating fp32 on resnet20, cell 1 of 1" in progress
    assert printed.startswith(TITLE)
    assert printed.count("estimated") >= 2, "both tables say so"
    assert "CUDA context" in printed
    document = json.loads(target.read_text(encoding="utf-8"))
    (cell,) = document["cells"]
    assert document["kind"] == "estimate"
    assert (cell["variant"], cell["memory"]["batch_size"], cell["gpus"][0]["gpu"]) == ("fp32", 32, "t4")
    assert cell["gpus"][0]["largest_batch"] > 32
    assert cell["gpus"][0]["fits"] is True


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["variant=fp32"], "Which GPU"),
        (["variant=fp32", "gpu=rtx9999"], "gpu=rtx9999 is not in the table"),
        (["gpu=t4", "batch=many"], "batch=many is not possible: give a whole number"),
        (["--json", "e.json", "gpu=t4", "--config-dir", "configs", "batch=0"], "batch=0 is not possible"),
        (["gpu=t4", "gpu=a10"], "gpu= is given 2 times"),
        (["gpu=t4", "variant=fp32,nope"], "There is no variant 'nope'"),
        (["gpu=t4", "variant=nope"], "There is no variant 'nope'"),
        (["gpu=t4", "data=nope"], "There is no data 'nope'"),
    ],
)
def test_bad_input_is_one_sentence(argv: list[str], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence) as caught:
        main(argv)
    assert "\n" not in str(caught.value)
