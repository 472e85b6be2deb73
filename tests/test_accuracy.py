from __future__ import annotations

from pathlib import Path

import pytest

from bench.records.store import find_records
from tools.cli import main

SEEDS = (0, 1, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_the_demos_accuracies_are_those_of_real_training_over_three_seeds(tmp_path: Path) -> None:
    code = main(
        [
            "run", "suite=demo", "variant=fp32,metagrad_int8_recompute,metagrad_int4_recompute",
            f"seed={','.join(map(str, SEEDS))}", "protocol.passes=[accuracy]", f"output_dir={tmp_path}", "device=cpu",
        ]
    )  # fmt: skip
    assert code == 0
    found, problems = find_records([tmp_path / "demo"])
    assert not problems
    accuracy = {
        (item.record.variant, item.record.seed): item.record.accuracy.test_accuracy_pct
        for item in found
        if item.record.accuracy is not None
    }
    assert len(accuracy) == 9
    for seed in SEEDS:
        fp32 = accuracy["fp32", seed]
        assert fp32 >= 97.0
        assert accuracy["metagrad_int8_recompute", seed] >= fp32 - 2.0
        assert accuracy["metagrad_int4_recompute", seed] >= fp32 - 5.0
