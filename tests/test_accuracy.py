from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from bench.app import parse_arguments, plan_cells
from bench.config import CellConfig
from bench.data import build_data
from bench.data.base import DataSet
from bench.data.loader import EvalBatches, TrainBatches
from bench.methods import METHODS
from bench.records.find import find_records
from bench.training.assemble import Parts, build_parts, for_pretraining
from bench.training.loop import evaluate, fit
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


# One variant of each method, and the accuracy in percent that six epochs on digits must reach; chance is 10.
LEAST_PCT = {
    "fp32": 97.0,
    "bf16": 97.0,
    "ste_int8": 95.0,
    "uniform_int8": 95.0,
    "dorefa_int8": 95.0,
    "uint8_int8": 95.0,
    "daint8_int8": 95.0,
    "sbm_int8": 97.0,
    "wageubn_int8": 88.0,
    "afp_int8": 97.0,
    "cpt_int8": 97.0,
    "fp4": 93.0,
    "metaquant_multi_fc_recompute": 95.0,
    "metagrad_int8_recompute": 95.0,
}
CPU = torch.device("cpu")


def small_cell(variant: str) -> CellConfig:
    argv = [
        f"variant={variant}", "protocol=demo", "protocol.epochs=6", "optimizer.lr=0.03", "optimizer.schedule=cosine",
        "edge_layers=int8", "hypernet.hidden=4",
    ]  # fmt: skip
    (cell,) = plan_cells(parse_arguments(argv)).cells
    return cell


def trained(cell: CellConfig, data: DataSet, state: dict[str, Tensor] | None) -> Parts:
    parts = build_parts(cell, data, CPU, initial_state=state)
    batches = TrainBatches(data, batch_size=cell.protocol.batch_size, seed=cell.seed, device=CPU)
    fit(
        parts, batches, None, cell.optimizer, epochs=cell.protocol.epochs, phase="training", report=lambda _: None
    )  # fmt: skip
    return parts


@pytest.fixture(scope="module")
def digits() -> DataSet:
    return build_data("digits")


@pytest.fixture(scope="module")
def pretrained(digits: DataSet) -> dict[str, Tensor]:
    torch.set_num_threads(1)
    return trained(for_pretraining(small_cell("fp32")), digits, None).model.state_dict()


def test_the_accuracies_below_are_asked_of_every_method() -> None:
    assert {small_cell(variant).method.name for variant in LEAST_PCT} == set(METHODS)


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("variant", LEAST_PCT)
def test_every_method_trains_on_digits_to_a_sane_accuracy(
    variant: str, digits: DataSet, pretrained: dict[str, Tensor]
) -> None:
    parts = trained(small_cell(variant), digits, pretrained)
    assert evaluate(parts, EvalBatches(digits, batch_size=64, device=CPU)) >= LEAST_PCT[variant]
