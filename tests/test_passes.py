from __future__ import annotations

import pytest
import torch

from bench.app import parse_arguments, plan_cells
from bench.data import build_data
from bench.data.loader import TrainBatches
from bench.kernels.int_mm import record_gemms
from bench.passes import _layer_facts
from bench.profilers.base import NO_PHASES
from bench.records.schema import LayerFacts
from bench.training.assemble import build_parts
from bench.training.step import train_step


def layers_of(*argv: str) -> dict[str, LayerFacts]:
    """The record's layer table after one step."""
    (cell,) = plan_cells(parse_arguments([*argv, "hypernet.hidden=3"])).cells
    data, cpu = build_data("digits", train_limit=64, test_limit=64), torch.device("cpu")
    parts = build_parts(cell, data, cpu)
    images, labels = TrainBatches(data, batch_size=16, seed=0, device=cpu).batch(0, 0)
    with record_gemms() as calls:
        train_step(parts, images, labels, 0.01, NO_PHASES)
    return {facts.name: facts for facts in _layer_facts(parts, calls)}


@pytest.mark.parametrize(
    ("variant", "dispatch", "first", "others"),
    [
        ("daint8_int8", "integer", 1, 2),  # the first layer's input needs no dgrad, hence no second quantization
        ("daint8_int4", "simulate", 1, 2),
        ("uniform_int8", "integer", 1, 1),
        ("ste_int8", "integer", 0, 0),
    ],
)
def test_the_layers_say_how_many_quantizations_of_the_error_signal_ran(
    variant: str, dispatch: str, first: int, others: int
) -> None:
    layers = layers_of(f"variant={variant}", f"dispatch={dispatch}")
    assert layers["conv1"].error_quantizations == first
    assert {facts.error_quantizations for name, facts in layers.items() if name != "conv1"} == {others}
    words = {facts.error for facts in layers.values()}
    assert any("two quantizations" in error for error in words) == (others == 2)
    assert ("" in words) == (others == 0)
