from __future__ import annotations

import pytest
import torch

from bench.app import parse_arguments, plan_cells
from bench.data import build_data
from bench.data.loader import TrainBatches
from bench.kernels.int_mm import record_gemms
from bench.passes import accuracy_pass
from bench.profilers.base import NO_PHASES
from bench.records.schema import LayerFacts
from bench.training.assemble import build_parts
from bench.training.facts import layer_facts
from bench.training.step import train_step


def layers_of(*argv: str) -> dict[str, LayerFacts]:
    """The record's layer table after one step."""
    (cell,) = plan_cells(parse_arguments([*argv, "hypernet.hidden=3"])).cells
    data, cpu = build_data("digits", train_limit=64, test_limit=64), torch.device("cpu")
    parts = build_parts(cell, data, cpu)
    images, labels = TrainBatches(data, batch_size=16, seed=0, device=cpu).batch(0, 0)
    with record_gemms() as calls:
        train_step(parts, images, labels, 0.01, NO_PHASES)
    return {facts.name: facts for facts in layer_facts(parts, calls)}


@pytest.mark.parametrize(
    ("variant", "dispatch", "first", "others"),
    [
        ("daint8_int8", "integer", 1, 2),  # the first layer's input needs no dgrad, hence no second quantization
        ("daint8_int4", "simulate", 1, 2),
        ("uniform_int8", "integer", 1, 1),
        ("ste_int8", "integer", 0, 0),
        ("wageubn_int8", "integer", 1, 1),
        ("afp_int8", "integer", 1, 1),
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


def test_the_layers_say_which_bits_an_adaptive_quantizer_has_come_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.quantizers.afp.THRESHOLD", 0.0)  # no width is ever good enough
    for facts in layers_of("variant=afp_int8").values():
        assert facts.error_bits == 24
        assert facts.error.startswith("afp, 24 bits so far")
        assert (facts.fprop, facts.wgrad) == ("integer", "integer")


def test_a_product_of_fp4_error_signals_is_integer_beside_an_emulated_forward() -> None:
    layers = layers_of("variant=fp4")
    assert {(facts.fprop, facts.wgrad, facts.error_bits) for facts in layers.values()} == {("emulated", "integer", 4)}


def test_training_counts_the_bits_of_adaptive_error_signals_and_of_no_others() -> None:
    small = ("protocol=tiny", "data.train_limit=64", "data.test_limit=64", "protocol.batch_size=16")
    for variant, counted in (("afp_int8", True), ("sbm_int8", False)):
        (cell,) = plan_cells(parse_arguments([f"variant={variant}", *small])).cells
        answer = accuracy_pass(report=lambda _: None, cell=cell, device="cpu", weights=None)
        assert bool(answer.error_bits_used) == counted
        for used in answer.error_bits_used.values():
            assert set(used) == {"8", "16", "24"}
            assert sum(used.values()) == 4, "steps of one epoch"


def test_a_network_that_draws_from_the_global_generators_trains_the_same_in_every_run() -> None:
    small = ("protocol=tiny", "data.train_limit=64", "data.test_limit=64", "protocol.batch_size=16")
    network = ("variant=fp32", "model=custom", "model.factory=tools.faults.nets:SmallNet")  # with dropout
    (cell,) = plan_cells(parse_arguments([*network, *small])).cells
    digests = set()
    for seed in (1, 2):
        torch.manual_seed(seed)  # as different as two processes
        digests.add(accuracy_pass(report=lambda _: None, cell=cell, device="cpu", weights=None).weights_digest)
    assert len(digests) == 1
