from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import OutOfMemoryError, UserError
from bench.update import STRATEGIES as KNOWN
from tools.hypernets import verb
from tools.hypernets.measure import QUICK
from tools.hypernets.results import CaseResult
from tools.hypernets.verb import main

KEYS = (
    "recompute_speedup", "recompute_memory_ratio", "tabulate_step_ratio", "tabulate_extra_peak",
    "tabulate_extra_bytes_per_weight", "tabulate_same_codes",
)  # fmt: skip


def test_a_quick_case_measures_everything_and_writes_the_named_keys_also_where_the_next_case_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target, measure = tmp_path / "hypernets.json", verb.measure_case

    def measure_the_first(name: str, *rest: Any) -> CaseResult:
        if name == "vgg16_h11":
            raise OutOfMemoryError("The step pass ran out of memory.")
        return measure(name, *rest)

    monkeypatch.setattr(verb, "measure_case", measure_the_first)
    kept = re.escape(f"ran out of memory. {target} holds what was measured before: resnet20_h100.")
    with pytest.raises(OutOfMemoryError, match=kept):
        main(["--quick", "--json", str(target), "--device", "cpu"])
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
    assert retain["update_ms"]["n"] == QUICK.rounds
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
