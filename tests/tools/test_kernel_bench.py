from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torch.nn import functional as F

from bench.errors import UserError
from bench.kernels.int_mm import GemmCall
from bench.kernels.spans import PIECES, Span
from bench.layers.convert import KeptLayer, QuantSpec, quantize_model
from bench.profilers.ceilings import Ceilings
from bench.profilers.memory import AllocationTracker
from bench.units import Absent
from tools import kernel_bench
from tools.kernel_bench import (
    NOT_COMPILED,
    ModelResult,
    as_plain_result,
    busy_before,
    compare_lean,
    compare_width,
    main,
    side_times,
    write_json,
)
from tools.kernel_layers import OTHER, SHARED, LayerWork, WidthDetail, join, measure_float_layers
from tools.kernel_passes import (
    MIN_ROUNDS,
    SIDES,
    SavedBytes,
    StepTimes,
    Work,
    build_side,
    count_saved,
    make_batches,
    steps_pass,
    turn_order,
)
from tools.kernel_tables import headline, render

RATIOS = ("step_vs_fp32", "step_vs_bf16", "step_vs_fp32_compiled", "step_vs_bf16_compiled", "step_vs_fp32_compact")
MEMORY_RATIOS = ("saved_vs_fp32", "saved_vs_fp32_compact", "peak_vs_fp32", "peak_vs_fp32_compact")
TINY = ["--quick", "--batch", "2", "--image-size", "8", "--no-progress", "--device", "cpu"]
OWN_NET = """
from torch import nn
def make(num_classes):
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
def too_wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(7, 10))
def frozen(num_classes):
    return make(num_classes).requires_grad_(False)
"""
CEILINGS = Ceilings(int8_gops=1000.0, fp32_gflops=100.0, bf16_gflops=500.0, copy_gb_s=10.0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def own_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user's, with a tools/ of its own, as the working folder."""
    (tmp_path / "kernelnet.py").write_text(OWN_NET, encoding="utf-8")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("raise RuntimeError('the wrong tools')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tiny_work(**changes: object) -> Work:
    work = Work(
        model="resnet20", factory=None, batch_size=2, image_size=8, dispatch="integer", device="cpu", threads=None
    )
    return dataclasses.replace(work, **changes)  # type: ignore[arg-type]


def times_of(**step_ms: tuple[float, ...]) -> StepTimes:
    return StepTimes(
        step_ms=step_ms,
        phases_ms={side: {"forward": samples} for side, samples in step_ms.items()},
        first_step_s=dict.fromkeys(step_ms, 0.5),
        from_compile_cache={},
        absent={"bf16_compiled": Absent("torch.compile failed here: no compiler")},
        not_finite=(),
        labels={"int8": "integer", "int4": "emulated"},
        threads=2,
    )


@pytest.fixture
def result() -> ModelResult:
    times = times_of(
        fp32=(10.0, 12.0, 11.0), bf16=(5.0, 6.0, 5.5), fp32_compiled=(9.0, 8.0, 8.0), int8=(4.0, 5.0, 6.0),
        int4=(5.0, 5.0, 5.0), int8_compact=(6.0, 6.0, 7.0), int4_compact=(6.0, 6.0, 6.0), fp32_lean=(9.0, 8.0, 9.9),
    )  # fmt: skip
    sizes = {"fp32": 800, "bf16": 500, "int8": 600, "int4": 600, "int8_compact": 400, "int4_compact": 300}
    saved = {side: SavedBytes(total_bytes=size, by_dtype={"int8": size}) for side, size in sizes.items()}
    peaks = {**sizes, "int4": Absent("no peak here")}
    rows = join(
        [LayerWork(name="features[0]", macs=10**6, needs_dgrad=False, fp32_ms={"fprop": 2.0}, bf16_ms={"fprop": 1.0})],
        quantize_model(nn.Sequential(nn.Conv2d(3, 4, 3)), QuantSpec()).swapped, (),
        [GemmCall(gemm="fprop", layer="features[0]", m=64, k=28, n=5, padded=(64, 32, 8), path="int_mm", macs=9)],
        [[Span(piece="gemm", layer="features[0]", gemm="fprop", span_ms=0.5)]],
        CEILINGS, traced_ms=(4.0,), untraced_ms=(3.2,),
    )  # fmt: skip
    widths = {width: compare_width(width, times, saved, peaks, rows) for width in ("int8", "int4")}  # type: ignore[arg-type]
    return ModelResult(
        model="vgg16", batch=2, image_size=8, images="synthetic", dispatch="integer", device="cpu", threads=2,
        steps={side: side_times(side, times) for side in SIDES}, saved=saved, peak_bytes=peaks,  # type: ignore[arg-type]
        peak_meaning="growth", ceilings=CEILINGS, fp32_lean=compare_lean(times), int8=widths["int8"],
        int4=widths["int4"], notices=("The machine was busy.",),
    )  # fmt: skip


def test_a_quick_run_measures_everything_and_its_ratios_are_those_of_the_stored_medians(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "kernels.json"
    assert main([*TINY, "--model", "resnet20", "--no-compile", "--json", str(target)]) == 0
    figures = json.loads(target.read_text(encoding="utf-8"))
    assert (figures["model"], figures["batch"], figures["image_size"], figures["device"]) == ("resnet20", 2, 8, "cpu")
    assert "synthetic" in figures["images"]
    assert figures["threads"] >= 1
    assert figures["versions"]["torch"] == torch.__version__
    assert figures["quick"] is True
    medians = {side: times["step_ms"]["median"] for side, times in figures["steps"].items() if "step_ms" in times}
    for side in medians:
        samples = figures["steps"][side]["samples_ms"]
        assert len(samples) == kernel_bench.QUICK.steps
        assert medians[side] == pytest.approx(sorted(samples)[len(samples) // 2])
    for width in ("int8", "int4"):
        found = figures[width]
        assert set(found) >= {*RATIOS, *MEMORY_RATIOS, "layers", "pieces_ms", "label"}
        assert found["step_vs_fp32"] == pytest.approx(medians[width] / medians["fp32"])
        assert found["step_vs_bf16"] == pytest.approx(medians[width] / medians["bf16"])
        assert found["step_vs_fp32_compact"] == pytest.approx(medians[f"{width}_compact"] / medians["fp32"])
        assert found["step_vs_fp32_compiled"] == found["step_vs_bf16_compiled"] == {"reason": NOT_COMPILED.reason}
        assert found["intervals"]["step_vs_fp32"]["low"] <= found["step_vs_fp32"]
        saved = {side: entry["total_bytes"] for side, entry in figures["saved"].items()}
        assert found["saved_vs_fp32"] == pytest.approx(saved[width] / saved["fp32"])
        assert found["saved_vs_fp32_compact"] == pytest.approx(saved[f"{width}_compact"] / saved["fp32"])
        assert found["peak_vs_fp32"] > 0
        products = {(row["layer"], row["gemm"]) for row in found["layers"] if row["gemm"] != SHARED}
        assert len(products) == 20 * 3 - 1, "the images need no gradient"
        assert all(row["calls"] > 0 and row["fp32_ms"] > 0 and row["bf16_ms"] > 0
                   for row in found["layers"] if row["gemm"] != SHARED)  # fmt: skip
        once = {row["layer"] for row in found["layers"] if row["gemm"] == SHARED}
        assert once == {layer for layer, gemm in products if gemm == "dgrad"}, "an error signal is quantized once"
        assert set(found["pieces_ms"]) == {*PIECES, OTHER}
    assert figures["int4"]["label"] == "emulated"
    lean = figures["fp32_lean"]
    assert lean["step_vs_fp32"] == pytest.approx(medians["fp32_lean"] / medians["fp32"])
    assert lean["interval"]["low"] <= lean["step_vs_fp32"] <= lean["interval"]["high"]
    out = capsys.readouterr().out
    assert "INT4 (emulated): the step takes" in out
    assert "n/a (--no-compile was given)" in out
    assert "how much of INT8's and INT4's ratio is those kernels, not integer products" in " ".join(out.split())


def test_a_users_network_is_measured_from_a_folder_with_a_tools_package_of_its_own(own_net: Path) -> None:
    target = own_net / "kernels.json"
    options = ["--model", "kernelnet:make", "--dispatch", "simulate", "--threads", "1", "--steps", "4", "--no-compile"]
    assert main([*TINY, *options, "--json", str(target)]) == 0
    figures = json.loads(target.read_text(encoding="utf-8"))
    assert (figures["model"], figures["threads"], figures["dispatch"]) == ("kernelnet:make", 1, "simulate")
    assert figures["steps"]["int8"]["step_ms"]["n"] == 4
    assert figures["int8"]["label"] == "simulated"
    assert {row["path"] for row in figures["int8"]["layers"] if row["gemm"] != SHARED} == {"simulated"}
    assert all("reason" in row["shape"] for row in figures["int8"]["layers"]), "no integer product ran"


def test_with_auto_every_product_has_a_row_with_its_path_and_why_it_was_chosen(own_net: Path) -> None:
    target = own_net / "kernels.json"
    options = ["--model", "kernelnet:make", "--dispatch", "auto", "--threads", "1", "--no-compile"]
    assert main([*TINY, *options, "--json", str(target)]) == 0
    rows = [row for row in json.loads(target.read_text(encoding="utf-8"))["int8"]["layers"] if row["gemm"] != SHARED]
    assert len(rows) == 3 * 3 - 1
    for row in rows:
        assert row["path"] in ("int_mm", "direct", "float32")
        assert row["calls"] > 0
        assert row["gemm_ms"] > 0
        assert row["why"].startswith(f"{row['path']}: ")
    assert any("fastest of int_mm" in row["why"] for row in rows)
    assert {row["why"] for row in rows if row["layer"] == "6"} == {"int_mm: the only path of a linear layer"}


@pytest.mark.slow
def test_compiled_sides_run_and_say_how_long_compiling_took(own_net: Path) -> None:
    target = own_net / "kernels.json"
    assert main([*TINY, "--model", "kernelnet:make", "--json", str(target)]) == 0
    figures = json.loads(target.read_text(encoding="utf-8"))
    for side in ("fp32_compiled", "bf16_compiled"):
        times = figures["steps"][side]
        assert times["first_step_s"] > times["step_ms"]["median"] / 1e3
        assert times["from_compile_cache"] in (True, False)
        assert figures["int8"][f"step_vs_{side}"] == pytest.approx(
            figures["steps"]["int8"]["step_ms"]["median"] / times["step_ms"]["median"]
        )


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's compiler uses what torch deprecates
def test_without_a_compiler_the_compiled_sides_are_absent_with_the_reason(
    own_net: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch._inductor.config as inductor

    monkeypatch.setattr(inductor.cpp, "cxx", (None, "/nonexistent/g++"))
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    monkeypatch.syspath_prepend(str(own_net))
    answer = steps_pass(
        report=lambda _: None, work=tiny_work(model="custom", factory="kernelnet:make"),
        names=("fp32", "fp32_compiled"), steps=1, warmup_steps=0, budget_s=1.0,
    )  # fmt: skip
    assert set(answer.step_ms) == {"fp32"}
    assert "torch.compile failed here" in answer.absent["fp32_compiled"].reason
    assert "compiler" in answer.absent["fp32_compiled"].reason


def test_rounds_end_when_the_budget_is_spent_but_not_before_three() -> None:
    answer = steps_pass(
        report=lambda _: None, work=tiny_work(), names=("fp32", "int8"), steps=50, warmup_steps=0, budget_s=1e-9
    )
    assert {side: len(samples) for side, samples in answer.step_ms.items()} == {"fp32": MIN_ROUNDS, "int8": MIN_ROUNDS}
    assert answer.labels == {"int8": "integer"}
    assert answer.not_finite == ()


def test_everybody_begins_equally_often_and_nobody_always_follows_the_same_one() -> None:
    names = list(SIDES)
    orders = [turn_order(names, turn) for turn in range(2 * len(names))]
    assert all(sorted(order) == sorted(names) for order in orders)
    firsts = [order[0] for order in orders]
    assert all(firsts.count(name) == 2 for name in names)
    for name in names:
        before = {order[order.index(name) - 1] for order in orders if order[0] != name}
        assert len(before) > 1


def test_all_sides_start_from_the_same_weights_and_see_the_same_images() -> None:
    work = tiny_work()
    images, labels = make_batches(work, torch.device("cpu"))[0]
    assert torch.equal(images, make_batches(work, torch.device("cpu"))[0][0])
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert images.shape == (2, 3, 8, 8)
    assert labels.shape == (2,)
    fp32, int4 = (build_side(name, work, images).model.state_dict() for name in ("fp32", "int4"))
    assert all(torch.equal(value, int4[key]) for key, value in fp32.items())


def test_bytes_saved_are_those_of_a_network_counted_by_hand() -> None:
    model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.ReLU(), nn.Linear(3, 5, bias=False))
    x = torch.randn(6, 4)
    # ReLU keeps its result, which is the second layer's input: 6 × 3 float32, once. Weights and x do not count.
    found = count_saved(lambda: model(x).sum(), apart=[x, *model.parameters()])
    assert found == SavedBytes(total_bytes=6 * 3 * 4, by_dtype={"float32": 72})
    # Cross-entropy adds log-probabilities 6 × 5 float32, the labels 6 int64 and the sum of weights, one float32.
    labels = torch.zeros(6, dtype=torch.int64)
    found = count_saved(lambda: F.cross_entropy(model(x), labels), apart=[x, *model.parameters()])
    assert found == SavedBytes(total_bytes=72 + 120 + 48 + 4, by_dtype={"float32": 196, "int64": 48})


def test_a_saved_view_holds_its_whole_storage_and_counts_once() -> None:
    weight = torch.randn(100, requires_grad=True)

    def forward() -> Tensor:
        doubled = weight * 2
        return (doubled[:10] ** 2).sum() + (doubled[5:20] ** 2).sum()

    assert count_saved(forward, apart=[weight]).total_bytes == 100 * 4


@pytest.mark.parametrize("side", ["fp32", "int8", "int4_compact"])
def test_no_side_keeps_memory_for_backward_that_the_count_does_not_see(side: str) -> None:
    work = tiny_work(batch_size=8)
    images, labels = make_batches(work, torch.device("cpu"))[0]
    parts = build_side(side, work, images)
    alive = [images, labels, *parts.model.parameters(), *parts.model.buffers()]
    with AllocationTracker():  # workspaces are there from now on, also those of code that a tracker runs eagerly
        F.cross_entropy(parts.model(images), labels).backward()
    saved = count_saved(lambda: F.cross_entropy(parts.model(images), labels), apart=alive)
    with AllocationTracker(alive) as tracker:
        loss = F.cross_entropy(parts.model(images), labels)
        held = tracker.live_bytes - tracker.baseline_bytes
    assert loss.requires_grad
    # Beside what is saved only the loss and numbers of that size are alive.
    assert held <= saved.total_bytes + 4096


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


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--model", "vgg61"], "vgg16"),
        (["--model", "vgg61"], "your own as package.module:function"),
        (["--model", "custom"], "package.module:function"),
        (["--model", "nowhere_at_all:make"], "nowhere_at_all"),
        (["--model", "resnet18", "--image-size", "16"], "--image-size 16"),
        (["--batch", "1"], "--batch 1"),
        (["--steps", "0"], "--steps 0"),
        (["--threads", "0"], "--threads 0"),
        (["--budget-s", "-1"], "--budget-s -1"),
        (["--budget-s", "nan"], "--budget-s nan"),
        (["--dispatch", "magic"], "magic"),
        (["--json", "/nonexistent/folder/k.json"], "/nonexistent/folder/k.json"),
        (["--device", "tpu"], "tpu"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_is_measured(argv: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named) as caught:
        main(argv)
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(("factory", "named"), [("too_wide", "2×3×8×8"), ("frozen", "without a parameter to train")])
def test_a_network_that_cannot_be_trained_is_refused_in_a_sentence(factory: str, named: str, own_net: Path) -> None:
    target = own_net / "kernels.json"
    with pytest.raises(UserError, match=named) as caught:
        main([*TINY, "--model", f"kernelnet:{factory}", "--json", str(target)])
    assert len(str(caught.value).splitlines()) == 1
    assert not target.exists()


def test_an_interrupted_run_says_so_once_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> ModelResult:
        raise KeyboardInterrupt

    monkeypatch.setattr(kernel_bench, "measure_model", interrupted)
    assert main([*TINY, "--model", "resnet20", "--json", str(tmp_path / "k.json")]) == 130
    assert capsys.readouterr().err.strip() == "metagrad-bench: Interrupted; no file was written."
    assert list(tmp_path.iterdir()) == []


def test_a_busy_machine_is_said_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.7, 0.0, 0.0))
    (warning,) = busy_before()
    assert "load average 1.7" in warning
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 9.0, 9.0))
    assert busy_before() == []


def test_several_networks_stand_under_their_names_and_one_at_the_top(result: ModelResult, tmp_path: Path) -> None:
    environment = {
        "package": {"version": "1", "git_commit": "abc"},
        "python": {"version": "3"},
        "torch": {"version": "2"},
    }
    one, several = tmp_path / "one.json", tmp_path / "several.json"
    write_json(one, {"vgg16": result}, quick=False, environment=environment)
    write_json(several, {"vgg16": result, "other": result}, quick=False, environment=environment)
    flat, nested = (json.loads(path.read_text(encoding="utf-8")) for path in (one, several))
    assert flat["int8"] == nested["vgg16"]["int8"] == nested["other"]["int8"]
    assert flat["int8"]["step_vs_fp32"] == pytest.approx(5 / 11)
    assert flat["model"] == "vgg16"
    assert flat["versions"] == nested["versions"]
    assert flat["versions"] == {"metagrad_bench": "1", "git_commit": "abc", "python": "3", "torch": "2"}


def test_what_could_not_be_had_is_shown_and_saved_with_its_reason(result: ModelResult) -> None:
    plain = as_plain_result(result)
    assert plain["int8"]["step_vs_bf16_compiled"] == {"reason": "torch.compile failed here: no compiler"}
    assert plain["int4"]["peak_vs_fp32"] == {"reason": "no peak here"}
    assert plain["int8"]["peak_vs_fp32"] == 0.75
    assert plain["int8"]["layers"][0]["shape"] == [64, 28, 5]
    console = Console(record=True, width=200)
    render(result, console)
    text = console.export_text()
    parts = (
        "features[0]", "64×28×5", "64×32×8", "int_mm", "0.500 ms", "tracing adds 25.0 % to INT8's",
        "n/a (torch.compile failed here: no compiler)", "n/a (no peak here)", "The machine was busy.",
    )  # fmt: skip
    for part in parts:
        assert part in text, part


@pytest.mark.parametrize(("why", "printed"), [("int_mm: dispatch=integer", False), ("direct: fastest of both", True)])
def test_reasons_are_printed_where_they_differ(result: ModelResult, why: str, printed: bool) -> None:
    one, other = result.int8.detail.layers
    rows = (
        dataclasses.replace(one, path="direct", why=why),
        dataclasses.replace(other, why="int_mm: dispatch=integer"),
    )
    width = dataclasses.replace(result.int8, detail=dataclasses.replace(result.int8.detail, layers=rows))
    console = Console(record=True, width=200)
    render(dataclasses.replace(result, int8=width), console)
    text = console.export_text()
    assert ("INT8: why this path" in text) == printed
    assert ("fastest of both" in text) == printed


def test_the_headline_holds_all_four_ratios(result: ModelResult) -> None:
    assert headline(result, "int8") == (
        "vgg16, batch 2, INT8: the step takes 0.45× FP32's time (0.62× compiled FP32's) and 0.91× bf16 autocast's "
        "(n/a compiled bf16's); it keeps 0.75× FP32's bytes for backward (0.50× with compact), peak 0.75× "
        "(n/a: torch.compile failed here: no compiler)."
    )
    assert "INT4 (emulated)" in headline(result, "int4")


def test_the_detail_of_a_width_is_what_the_table_shows(result: ModelResult) -> None:
    detail: WidthDetail = result.int8.detail
    (fprop, wgrad) = detail.layers
    assert (fprop.gemm, wgrad.gemm) == ("fprop", "wgrad")
    assert detail.pieces_ms[OTHER] == pytest.approx(3.5)
