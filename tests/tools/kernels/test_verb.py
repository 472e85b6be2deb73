from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import OutOfMemoryError, UserError
from bench.kernels.spans import PIECES
from tools.kernels import verb
from tools.kernels.layers import OTHER, SHARED
from tools.kernels.measure import QUICK
from tools.kernels.results import NOT_COMPILED, ModelResult
from tools.kernels.verb import busy_before, main

RATIOS = ("step_vs_fp32", "step_vs_bf16", "step_vs_fp32_compiled", "step_vs_bf16_compiled", "step_vs_fp32_compact")
MEMORY_RATIOS = ("saved_vs_fp32", "saved_vs_fp32_compact", "peak_vs_fp32", "peak_vs_fp32_compact")
TINY = ["--quick", "--batch", "2", "--image-size", "8", "--no-progress", "--device", "cpu"]


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
        assert len(samples) == QUICK.steps
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


def test_a_users_network_is_measured_from_a_folder_with_a_tools_package_and_kept_where_the_next_fails(
    own_net: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target, measure = own_net / "kernels.json", verb.measure_model
    measured: list[ModelResult] = []
    errors: list[BaseException] = [KeyboardInterrupt(), OutOfMemoryError("The peak pass ran out of memory.")]

    def measure_the_first(name: str, *rest: Any, **options: Any) -> ModelResult:
        if name != "kernelnet:make":
            raise errors.pop(0)
        measured.append(measured[0] if measured else measure(name, *rest, **options))
        return measured[0]

    monkeypatch.setattr(verb, "measure_model", measure_the_first)
    options = ["--model", "kernelnet:make", "--dispatch", "simulate", "--threads", "1", "--steps", "4", "--no-compile"]
    argv = [*TINY, *options, "--json", str(target)]
    assert main(argv) == 0
    figures = json.loads(target.read_text(encoding="utf-8"))
    assert (figures["model"], figures["threads"], figures["dispatch"]) == ("kernelnet:make", 1, "simulate")
    assert figures["steps"]["int8"]["step_ms"]["n"] == 4
    assert figures["int8"]["label"] == "simulated"
    assert {row["path"] for row in figures["int8"]["layers"] if row["gemm"] != SHARED} == {"simulated"}
    assert all("reason" in row["shape"] for row in figures["int8"]["layers"]), "no integer product ran"

    capsys.readouterr()
    kept = f"{target} holds what was measured before: kernelnet:make."
    target.unlink()
    assert main([*argv, "--model", "resnet20"]) == 130
    assert capsys.readouterr().err == f"metagrad-bench: {kept}\nmetagrad-bench: Interrupted.\n"
    assert json.loads(target.read_text(encoding="utf-8"))["steps"] == figures["steps"]
    target.unlink()
    with pytest.raises(OutOfMemoryError, match=re.escape(f"ran out of memory. {kept}")):
        main([*argv, "--model", "resnet20"])
    assert json.loads(target.read_text(encoding="utf-8"))["steps"] == figures["steps"]


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


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["--model", "vgg61"], "vgg16"),
        (["--model", "vgg61"], "your own as package.module:function"),
        (["--model", "custom"], "package.module:function"),
        (["--model", "nowhere_at_all:make"], "nowhere_at_all"),
        (["--model", "resnet18", "--image-size", "16"], "--image-size 16"),
        (["--batch", "1"], "--batch 1"),
        (["--batch", "9" * 23], "it must be 1,048,576 or less"),
        (["--steps", "0"], "--steps 0"),
        (["--threads", "0"], "--threads 0"),
        (["--threads", "5000"], "must be 4,096 or less"),
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

    monkeypatch.setattr(verb, "measure_model", interrupted)
    assert main([*TINY, "--model", "resnet20", "--json", str(tmp_path / "k.json")]) == 130
    assert capsys.readouterr().err.strip() == "metagrad-bench: Interrupted; no file was written."
    assert list(tmp_path.iterdir()) == []


def test_a_busy_machine_is_said_before_anything_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getloadavg", lambda: (1.7, 0.0, 0.0))
    (warning,) = busy_before()
    assert "load average 1.7" in warning
    monkeypatch.setattr(os, "getloadavg", lambda: (0.1, 9.0, 9.0))
    assert busy_before() == []
