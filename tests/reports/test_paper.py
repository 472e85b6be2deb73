from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.records.schema import RunRecord
from reports.paper import paper_tables
from reports.paper_settings import METAGRAD_PRESETS
from reports.rows import Estimate
from reports.sections import build_sections

Make = Callable[..., list[RunRecord]]
PUBLISHED = json.loads((Path(__file__).parents[2] / "reports" / "paper_tables.json").read_text())


def test_every_published_row_is_shown_even_without_ours() -> None:
    tables = paper_tables(())
    assert {table.key: len(table.rows) for table in tables} == {
        key: len(table["rows"]) for key, table in PUBLISHED.items() if key != "claims"
    }
    assert all(not row.ours for table in tables for row in table.rows)


def test_published_rows_hold_the_published_numbers_in_the_order_of_their_headers() -> None:
    table = paper_tables(())[0]
    assert table.headers == ("Model", "Method", "Published FP32", "Published accuracy", "Published Δ")
    assert table.rows[0].published == ("resnet20", "uint8", "91.36", "73.45", "−17.91")


def test_ours_stands_only_beside_the_same_model_method_and_bits(demo_records: Make) -> None:
    tables = {table.key: table for table in paper_tables(build_sections(demo_records()))}
    int4 = tables["metagrad_table_1_int4_cifar10"]
    assert [ours.label for ours in int4.rows[0].ours] == ["uint8_int4"]
    assert [ours.label for ours in int4.rows[1].ours] == [
        "metagrad_int4_retain", "metagrad_int4_slim", "metagrad_int4_recompute",
    ]  # fmt: skip
    assert not any(row.ours for row in int4.rows if row.published[0] != "resnet20")
    int8 = tables["metagrad_table_2_int8_cifar10"]
    assert [ours.label for row in int8.rows for ours in row.ours] == ["uint8_int8", "metagrad_int8_recompute"]
    hypernets = tables["metagrad_table_3_hypernetworks_int4_cifar10"]
    assert {row.published[1] for row in hypernets.rows if row.ours} == {"dual_lstm_fc"}
    assert not any(row.ours for key, table in tables.items() if key.startswith("metaquant") for row in table.rows)


def test_a_setting_that_differs_says_how(demo_records: Make) -> None:
    table = paper_tables(build_sections(demo_records()))[0]
    slim = table.rows[1].ours[1]
    assert slim.sameness == "differs"
    assert slim.differences == (
        "data digits (1,437 training images), paper CIFAR-10",
        "strategy slim, paper retain",
        "residual form, paper literal",
        "learning rate 0.03, paper 0.01",
        "hidden size 4, paper 150",
        "momentum 0.9, batch 64, 4 epochs, edge layers same, error signals of 4 bits, LSTM state not recorded: the "
        "paper states none of these",
    )


def test_a_setting_that_the_record_does_not_hold_is_never_called_the_same(demo_records: Make) -> None:
    records = demo_records(["uint8_int8"], cell={"protocol": {"batch_size": 64}})
    method = dataclasses.replace(records[0].method, optimizer="adam", edge_layers="full")
    table = paper_tables(build_sections([dataclasses.replace(records[0], method=method)]))[1]
    assert table.rows[0].ours[0].differences == (
        "data digits (1,437 training images), paper CIFAR-10",
        "optimizer adam, paper SGD with momentum",
        "learning rate not recorded, paper 0.01",
        "weight decay not recorded, paper 0.001",
        "batch 64, 4 epochs, edge layers full: the paper states none of these",
    )


def test_every_published_row_of_metagrads_own_runs_has_a_preset() -> None:
    for bits, key in ((4, "metagrad_table_1_int4_cifar10"), (8, "metagrad_table_2_int8_cifar10")):
        models = {row["model"] for row in PUBLISHED[key]["rows"] if row["method"] != "daint8"}
        assert models == set(METAGRAD_PRESETS[bits])
    assert METAGRAD_PRESETS[8]["resnet20"] == (0.01, 1e-3, 100)
    assert METAGRAD_PRESETS[4]["resnet110"] == (0.0001, 1e-4, 100)


def test_the_papers_own_setting_is_called_the_same_as_far_as_stated(demo_records: Make) -> None:
    (record,) = demo_records(["metagrad_int4_retain"], data_name="cifar10")
    assert record.data is not None
    record = dataclasses.replace(
        record,
        data=dataclasses.replace(record.data, name="cifar10", train_samples=50_000, test_samples=10_000),
        method=dataclasses.replace(record.method, hypernet_form="literal", hidden=150),
        cell={**record.cell, "optimizer": {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}},
    )
    record = dataclasses.replace(record, method=dataclasses.replace(record.method, hypernet_state="zero"))
    ours = paper_tables(build_sections([record]))[0].rows[1].ours[0]
    assert ours.sameness == "same as far as stated"
    assert ours.differences == (
        "momentum 0.9, batch 64, 4 epochs, edge layers same, error signals of 4 bits, LSTM state zero: the paper "
        "states none of these",
    )
    assert record.data is not None
    few = dataclasses.replace(record, data=dataclasses.replace(record.data, test_samples=100))
    ours = paper_tables(build_sections([few]))[0].rows[1].ours[0]
    assert (ours.sameness, ours.differences[0]) == ("differs", "100 test images, paper 10,000")


def test_metaquant_rows_need_its_method_hypernetwork_and_hidden_size(make_record: Callable[..., RunRecord]) -> None:
    base = make_record()
    method = dataclasses.replace(
        base.method, name="metaquant", hypernet="multi_fc", hidden=100, strategy="slim",
        weight_bits=1, activation_bits=32,
        error_quantizer="none", error_bits=32, grad_bits=32, optimizer="sgd", hypernet_form="literal",
    )  # fmt: skip
    tables = {t.key: t for t in paper_tables(build_sections([make_record(method=method)]))}
    table_5 = tables["metaquant_table_5_slim_resnet20_cifar10_sgd_dorefa"]
    assert [bool(row.ours) for row in table_5.rows] == [True, False, False]
    assert table_5.rows[0].ours[0].differences == (
        "data digits (1,437 training images), paper CIFAR-10", "learning rate not recorded, paper 0.001",
        "layers of the hypernetwork not recorded, paper 2", "batch not recorded, paper 128",
        "crop and flip not recorded, paper yes",
        "learning-rate schedule not recorded, paper step",
        "milestones not recorded, paper [0.3, 0.6, 0.9]", "meta learning rate not recorded, paper 0.001",
        "2 epochs, paper 100", "weight decay not recorded: the paper states none",
    )  # fmt: skip
    assert table_5.rows[0].ours[0].where == "demo, digits, cpu, beside the published slim"
    table_6 = tables["metaquant_table_6_multi_fc_resnet20_cifar10_adam_dorefa"]
    assert {row.published[0] for row in table_6.rows if row.ours} == {"100"}


TABLE_5 = "metaquant_table_5_slim_resnet20_cifar10_sgd_dorefa"
TABLE_6 = "metaquant_table_6_multi_fc_resnet20_cifar10_adam_dorefa"


def as_metaquant(make_record: Callable[..., RunRecord], **facts: Any) -> RunRecord:
    """A record of MetaQuant's own recipe, with changes of its method."""
    base = make_record()
    assert base.data is not None
    assert base.accuracy is not None
    method = dataclasses.replace(
        base.method, name="metaquant", hypernet="multi_fc", hidden=100, strategy="retain", weight_bits=1,
        activation_bits=32, error_quantizer="none", error_bits=32, grad_bits=32, optimizer="sgd",
        hypernet_form="literal", hypernet_depth=2, pi_prime="one",
    )  # fmt: skip
    method = dataclasses.replace(method, **facts)
    recipe = {
        "protocol": {"batch_size": 128, "augment": True, "pretrain_epochs": 200},
        "optimizer": {"lr": 0.001, "schedule": "step", "milestones": [0.3, 0.6, 0.9], "weight_decay": 0.0},
        "hypernet": {"meta_lr": 0.001},
    }
    return make_record(
        method=method, cell=recipe, data_name="cifar10",
        data=dataclasses.replace(base.data, name="cifar10", train_samples=50_000, test_samples=10_000),
        accuracy=dataclasses.replace(base.accuracy, epochs=100),
    )  # fmt: skip


def settings_of(record: RunRecord, key: str) -> tuple[str, tuple[str, ...]]:
    """What the table says of the one row beside a published one."""
    table = next(table for table in paper_tables(build_sections([record])) if table.key == key)
    ((ours, *more),) = (row.ours for row in table.rows if row.ours)
    assert not more
    return ours.sameness, ours.differences


UNSTATED = "weight decay 0.0: the paper states none"


def test_metaquants_own_recipe_is_called_the_same_as_far_as_stated_and_any_change_of_it_is_named(
    make_record: Callable[..., RunRecord],
) -> None:
    record = as_metaquant(make_record)
    assert settings_of(record, TABLE_5) == ("same as far as stated", (UNSTATED,))
    table = next(table for table in paper_tables(build_sections([record])) if table.key == TABLE_5)
    assert table.rows[0].ours[0].where.endswith("beside the published non-slim")
    changed = {**record.cell, "protocol": {"batch_size": 64, "augment": False, "pretrain_epochs": 0}}
    record = dataclasses.replace(record, cell=changed, method=dataclasses.replace(record.method, hidden=30))
    assert settings_of(record, TABLE_5) == ("differs", (
        "hidden size 30, paper 100", "batch 64, paper 128", "crop and flip no, paper yes",
        "started from random weights, paper from an FP32 model", UNSTATED,
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        ({}, None),
        ({"strategy": "slim"}, "strategy slim, paper retain"),
        ({"strategy": "tabulate"}, "strategy tabulate, paper retain"),
        ({"error_bits": 4}, "error signals of 4 bits, paper 32"),
        ({"hypernet_depth": 9}, "layers of the hypernetwork 9, paper 2"),
        ({"pi_prime": "analytic"}, "π′ analytic, paper’s code one"),
        ({"compact": True}, "batch-norm’s input kept in bfloat16, paper FP32"),
    ],
)
def test_a_setting_of_table_6_that_differs_is_never_called_the_same(
    make_record: Callable[..., RunRecord], facts: dict[str, Any], told: str | None
) -> None:
    record = as_metaquant(make_record, **{"optimizer": "adam"} | facts)
    assert settings_of(record, TABLE_6) == (
        ("same as far as stated", (UNSTATED,)) if told is None else ("differs", (told, UNSTATED))
    )


def test_a_setting_of_table_5_that_differs_is_never_called_the_same(make_record: Callable[..., RunRecord]) -> None:
    for facts, told in (
        ({"hypernet_activation": "relu"}, "activation relu, paper none"),
        ({"error_bits": 4}, "error signals of 4 bits, paper 32"),
        ({"hypernet": "lstm_fc", "hypernet_state": "carry"}, "LSTM state carry, paper zero"),
    ):
        assert settings_of(as_metaquant(make_record, **facts), TABLE_5) == ("differs", (told, UNSTATED))
    record = as_metaquant(make_record, optimizer="momentum")
    cell = {**record.cell, "optimizer": {**record.cell["optimizer"], "momentum": 0.9, "weight_decay": 0.1}}
    assert settings_of(dataclasses.replace(record, cell=cell), TABLE_5) == (
        "same as far as stated", ("momentum 0.9, weight decay 0.1: the paper states none of these",),
    )  # fmt: skip


def test_no_published_figure_stands_where_ours_do(demo_records: Make) -> None:
    ours = {f"{record.accuracy.test_accuracy_pct:.2f}" for record in demo_records() if record.accuracy is not None}
    for table in paper_tables(build_sections(demo_records())):
        for row in table.rows:
            for one in row.ours:
                shown = [part for part in (one.accuracy, one.accuracy_vs_fp32) if isinstance(part, Estimate)]
                assert f"{shown[0].value:.2f}" in ours
                assert not {f"{part.value:.2f}" for part in shown} & set(row.published)
