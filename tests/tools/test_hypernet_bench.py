from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from rich.console import Console

from bench.errors import UserError
from bench.models import build_model
from bench.records.schema import Summary
from bench.units import Absent
from bench.update import STRATEGIES as KNOWN
from bench.update import build_strategy
from tools import hypernet_bench, hypernet_passes
from tools.hypernet_bench import CaseResult, Cost, StepCost, as_plain_result, fitting_stride, main, render
from tools.hypernet_passes import Work, build_operands, count_weights, strategies_pass, update

KEYS = (
    "recompute_speedup", "recompute_memory_ratio", "tabulate_step_ratio", "tabulate_extra_peak",
    "tabulate_extra_bytes_per_weight", "tabulate_same_codes",
)  # fmt: skip
SMALL = Work(model="resnet20", hidden=3, stride=200, device="cpu")


@pytest.fixture
def result() -> CaseResult:
    summary = Summary(median=2.0, q1=1.0, q3=3.0, n=7)
    return CaseResult(
        recompute_speedup=6.5, recompute_memory_ratio=16.0, tabulate_step_ratio=1.05,
        tabulate_extra_peak=0.04, tabulate_extra_bytes_per_weight=4.2, tabulate_same_codes=1.0,
        tabulate_meta_gradient_error=5e-6, tabulate_grid_points=129, model="vgg16", hidden=11,
        num_weights=14_714_688, compared_num_weights=1_471_471, note="retain does not fit: said why.",
        strategies=(Cost(strategy="retain", num_weights=10, update_ms=summary, extra_bytes=1024),),
        step=StepCost(
            batch_size=128, metagrad_ms=summary, plain_ms=summary, grid_points=33, metagrad_peak_bytes=2048,
            plain_peak_bytes=Absent("no peak here"),
        ),
    )  # fmt: skip


def test_a_quick_case_measures_everything_and_writes_the_named_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "160")
    target = tmp_path / "hypernets.json"
    assert main(["--quick", "--case", "resnet20_h100", "--json", str(target), "--device", "cpu"]) == 0
    figures = json.loads(target.read_text(encoding="utf-8"))
    case = figures["resnet20_h100"]
    assert "vgg16_h11" not in figures
    assert figures["quick"] is True
    assert figures["environment"]["torch"]["version"] == torch.__version__
    assert all(case[key] is not None for key in KEYS)
    assert case["recompute_speedup"] > 0
    assert case["tabulate_step_ratio"] > 0
    assert case["step"]["grid_points"] >= 17
    assert case["tabulate_same_codes"] > 0.999
    assert [row["strategy"] for row in case["strategies"]] == list(KNOWN)
    assert all(row["num_weights"] == case["num_weights"] for row in case["strategies"])
    retain = case["strategies"][0]
    assert retain["extra_bytes"] > 0
    assert retain["update_ms"]["n"] == hypernet_bench.QUICK.rounds
    out, err = capsys.readouterr()
    assert "resnet20_h100: --quick, not to be quoted: DualLSTMFC, H = 8" in out
    assert "--quick, not to be quoted: the step with tabulate takes" in out
    assert "resnet20_h100" in err, "progress is shown"


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--case", "resnet21"], "resnet20_h100 or vgg16_h11"),
        (["--rounds", "0"], "--rounds 0"),
        (["--steps", "-1"], "--steps -1"),
        (["--json", "/nonexistent/folder/h.json"], "/nonexistent/folder/h.json"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_measured(argv: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        main(argv)


def test_what_does_not_fit_is_compared_at_a_tenth_or_less() -> None:
    assert fitting_stride(1, needed_bytes=60, free_bytes=100) == 1
    assert fitting_stride(1, needed_bytes=80, free_bytes=100) == 10
    assert fitting_stride(50, needed_bytes=8000, free_bytes=100) == 50_000


def test_retain_that_does_not_fit_is_said_and_leaves_the_whole_to_the_others() -> None:
    def run(function: object, *, work: Work, name: str) -> hypernet_passes.MemoryAnswer:
        assert (name, work.stride) == ("retain", 100)
        return hypernet_passes.MemoryAnswer(num_weights=100, extra_bytes=10**6, free_bytes=10**9)

    whole = Work(model="resnet20", hidden=100, stride=1, device="cpu")
    compared, note = hypernet_bench._fitting(whole, run)  # type: ignore[arg-type]
    assert compared.stride == 10, "2.7 GB of 1 GB free, 270 MB at a tenth"
    assert "retain does not fit: it would take about 2.5" in note
    assert "1 in 10 weights" in note


def test_the_operands_are_every_layer_of_the_network_thinned_evenly() -> None:
    operands = build_operands(SMALL)
    model = build_model("resnet20", num_classes=10, in_channels=3, image_size=32)
    sizes = [p.numel() for name, p in model.named_parameters() if p.dim() > 1]
    assert [w.numel() for w in operands.weights] == [-(-size // SMALL.stride) for size in sizes]
    assert operands.num_weights == count_weights(SMALL)
    assert all(bool(grad.any()) for grad in operands.grads)
    assert not torch.equal(operands.grads[0], operands.new_grads[0])


def test_an_update_leaves_the_same_gradient_by_psi_whatever_the_exact_strategy() -> None:
    operands = build_operands(SMALL)
    taken = {}
    for name in ("retain", "recompute"):
        update(build_strategy(name), operands)
        # with a zero state nothing reaches the hidden-to-hidden weights
        taken[name] = [torch.zeros_like(p) if p.grad is None else p.grad for p in operands.hypernet.parameters()]
    assert sum(float(grad.norm()) for grad in taken["retain"]) > 0
    for one, other in zip(*taken.values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-9)


def test_every_strategy_gets_the_same_number_of_rounds_and_the_warm_up_does_not_count() -> None:
    times = strategies_pass(report=lambda _: None, work=SMALL, names=("recompute", "tabulate"), rounds=3)
    assert {name: len(samples) for name, samples in times.items()} == {"recompute": 3, "tabulate": 3}


def test_free_memory_is_what_the_system_says() -> None:
    assert 0 < hypernet_passes.free_bytes(torch.device("cpu")) < 2**50


def test_unknown_figures_are_shown_and_saved_with_their_reason(result: CaseResult) -> None:
    console = Console(record=True, width=160)
    render("vgg16_h11", result, console)
    text = console.export_text()
    assert "retain does not fit: said why." in text
    assert "n/a (no peak here)" in text
    assert "6.50× faster, 16.00× less extra memory" in text
    assert "4.2 bytes a weight" in text
    assert as_plain_result(result)["step"]["plain_peak_bytes"] == {"reason": "no peak here"}
