from __future__ import annotations

from collections.abc import Callable
from typing import Any

from bench.config import CellConfig, as_plain
from bench.records.schema import RunRecord
from reports.render import render_html, render_markdown
from reports.reproduce import reproduce_command
from tests.reports.pages import Make, page_of


def test_commands_name_the_suite_the_variant_and_the_seeds(demo_records: Make) -> None:
    commands = page_of(demo_records(["fp32", "uint8_int8"], seeds=(0, 1))).sections[0].commands
    assert commands == (
        "metagrad-bench run suite=demo device=cpu seed=0,1",
        "metagrad-bench run suite=demo variant=fp32 device=cpu seed=0,1",
        "metagrad-bench run suite=demo variant=uint8_int8 device=cpu seed=0,1",
    )


def test_the_commit_stands_beside_the_digest_of_the_code_or_why_there_is_none(demo_records: Make) -> None:
    def code(**package: Any) -> str:
        return page_of(demo_records(["fp32"], environment={"package": package})).sections[0].code

    version = "Code version 0.1.0+0123abcd (digest of the code); "
    assert code(git_commit="f00d", git_dirty=False) == f"{version}git commit f00d"
    assert code(git_commit="f00d", git_dirty=True) == f"{version}git commit f00d with uncommitted changes"
    assert code(git_commit={"reason": "git could not be run"}) == f"{version}git commit n/a (git could not be run)"
    assert code() == f"{version}git commit n/a (not recorded)"
    page = page_of(demo_records(["fp32"]))
    assert "git commit f00dcafef00dcafe" in render_html(page)
    assert "git commit f00dcafef00dcafe" in render_markdown(page)


def test_a_suite_with_several_models_names_the_model(demo_records: Make) -> None:
    records = [*demo_records(["fp32"]), *demo_records(["fp32"], model_name="vgg16", key="v")]
    commands = [command for view in page_of(records).sections for command in view.commands]
    assert "metagrad-bench run suite=demo variant=fp32 model=vgg16 device=cpu seed=0" in commands


def test_a_cell_without_a_variant_is_repeated_by_what_it_changes(make_record: Callable[..., RunRecord]) -> None:
    cell = CellConfig(error_bits=8)
    cell.method.name = "uint8"
    cell.protocol.epochs = 3
    record = make_record(variant="custom", suite="single", cell=as_plain(cell))
    command = reproduce_command(record, with_model=False, with_data=False, seeds=[0])
    assert command == "metagrad-bench run error_bits=8 method=uint8 protocol.epochs=3 device=cpu seed=0"


def test_a_cell_of_a_preset_is_repeated_by_it_and_by_its_variants_file(make_record: Callable[..., RunRecord]) -> None:
    cell = as_plain(CellConfig(preset_name="metaquant_fig6_adam"))
    for label, variant in (
        ("metaquant_w1_lstm_fc_bwn_adam", "metaquant_w1_lstm_fc"),
        ("fp32", "fp32"),
        ("of_a_user", "of_a_user"),
    ):
        record = make_record(variant=label, suite="metaquant_convergence", model_name="resnet20", cell=cell)
        command = reproduce_command(record, with_model=True, with_data=True, seeds=[0])
        words = f"suite=metaquant_convergence variant={variant} preset=metaquant_fig6_adam device=cpu seed=0"
        assert command == f"metagrad-bench run {words}"


def test_a_hostile_name_is_quoted_in_a_command(make_record: Callable[..., RunRecord]) -> None:
    record = make_record(variant="x; rm -rf ~")
    command = reproduce_command(record, with_model=False, with_data=False, seeds=[0])
    assert "'variant=x; rm -rf ~'" in command
