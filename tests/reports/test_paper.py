from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

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
        "momentum 0.9, batch 64, 4 epochs, edge layers same: the paper states none of these",
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
        data=dataclasses.replace(record.data, name="cifar10", train_samples=50_000),
        method=dataclasses.replace(record.method, hypernet_form="literal", hidden=150),
        cell={**record.cell, "optimizer": {"lr": 0.01, "momentum": 0.9, "weight_decay": 1e-4}},
    )
    ours = paper_tables(build_sections([record]))[0].rows[1].ours[0]
    assert ours.sameness == "same as far as stated"
    assert ours.differences == ("momentum 0.9, batch 64, 4 epochs, edge layers same: the paper states none of these",)


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
        "batch not recorded, paper 128", "crop and flip not recorded, paper yes",
        "learning-rate schedule not recorded, paper step", "meta learning rate not recorded, paper 0.001",
        "2 epochs, paper 100",
    )  # fmt: skip
    assert table_5.rows[0].ours[0].where == "demo, digits, cpu, beside the published slim"
    table_6 = tables["metaquant_table_6_multi_fc_resnet20_cifar10_adam_dorefa"]
    assert {row.published[0] for row in table_6.rows if row.ours} == {"100"}


def test_metaquants_own_recipe_is_called_the_same_and_any_change_of_it_is_named(
    make_record: Callable[..., RunRecord],
) -> None:
    base = make_record()
    assert base.data is not None
    assert base.accuracy is not None
    method = dataclasses.replace(
        base.method, name="metaquant", hypernet="multi_fc", hidden=100, strategy="retain", weight_bits=1,
        activation_bits=32, error_quantizer="none", error_bits=32, grad_bits=32, optimizer="sgd",
        hypernet_form="literal",
    )  # fmt: skip
    recipe = {
        "protocol": {"batch_size": 128, "augment": True, "pretrain_epochs": 200},
        "optimizer": {"lr": 0.001, "schedule": "step"},
        "hypernet": {"meta_lr": 0.001},
    }
    record = make_record(
        method=method, cell=recipe, data_name="cifar10",
        data=dataclasses.replace(base.data, name="cifar10", train_samples=50_000),
        accuracy=dataclasses.replace(base.accuracy, epochs=100),
    )  # fmt: skip
    key = "metaquant_table_5_slim_resnet20_cifar10_sgd_dorefa"
    (ours,) = next(t for t in paper_tables(build_sections([record])) if t.key == key).rows[0].ours
    assert (ours.sameness, ours.differences) == ("same", ())
    assert ours.where.endswith("beside the published non-slim")
    changed = {**recipe, "protocol": {"batch_size": 64, "augment": False, "pretrain_epochs": 0}}
    record = dataclasses.replace(record, cell=changed, method=dataclasses.replace(method, hidden=30))
    (ours,) = next(t for t in paper_tables(build_sections([record])) if t.key == key).rows[0].ours
    assert ours.sameness == "differs"
    assert ours.differences == (
        "hidden size 30, paper 100", "batch 64, paper 128", "crop and flip no, paper yes",
        "started from random weights, paper from an FP32 model",
    )  # fmt: skip


def test_no_published_figure_stands_where_ours_do(demo_records: Make) -> None:
    ours = {f"{record.accuracy.test_accuracy_pct:.2f}" for record in demo_records() if record.accuracy is not None}
    for table in paper_tables(build_sections(demo_records())):
        for row in table.rows:
            for one in row.ours:
                shown = [part for part in (one.accuracy, one.accuracy_vs_fp32) if isinstance(part, Estimate)]
                assert f"{shown[0].value:.2f}" in ours
                assert not {f"{part.value:.2f}" for part in shown} & set(row.published)
