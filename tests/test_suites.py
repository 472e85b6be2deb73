from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from bench.app import parse_arguments, plan_cells
from bench.composing.cells import compose_variants
from bench.composing.groups import group_options
from bench.config import CellConfig
from bench.methods import METHODS, build_method, describe
from bench.optim import build_schedule
from bench.precheck import check_cells

METAQUANT = ("method=metaquant", "strategy=slim", "weight_bits=1", "dispatch=simulate")
W8A8 = ("weight_bits=8", "activation_bits=8")
WAGEUBN = ("method=wageubn", "quantizer=wageubn", *W8A8, "error_bits=8", "grad_bits=8")


@pytest.fixture
def data_root(tmp_path: Path) -> Path:
    """A folder of data in which ImageNet's layout stands, with an image for each of two classes."""
    for part in ("train", "val"):
        for name in ("n01440764", "n01443537"):
            folder = tmp_path / "imagenet" / part / name
            folder.mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(folder / f"{name}_0.JPEG")
    return tmp_path


@pytest.mark.parametrize("suite", group_options("suite"))
def test_every_suite_composes_and_passes_the_check(suite: str, data_root: Path) -> None:
    cells = plan_cells(parse_arguments([f"suite={suite}", f"data.root={data_root}"])).cells
    check_cells(cells)
    assert {cell.suite_name for cell in cells} == {suite}


def test_every_variant_is_a_valid_cell_and_every_method_has_one() -> None:
    cells = compose_variants()
    for cell in cells.values():
        build_method(cell)
        assert describe(cell).name == cell.method.name
    assert {cell.method.name for cell in cells.values()} == set(METHODS)


@pytest.mark.parametrize(
    ("argv", "named"),
    [
        (["method=ste"], "weight_bits"),
        (["method=uint8", "weight_bits=8", "activation_bits=8"], "error_bits"),
        (["method=fp32", "weight_bits=8"], "weight_bits"),
        (["method=uniform", "weight_bits=8", "activation_bits=8", "error_bits=8", "grad_bits=32"], "grad_bits"),
        (["method=ste", "weight_bits=4", "activation_bits=4", "strategy=slim"], "strategy"),
        (["method=ste", "weight_bits=4", "activation_bits=4", "hypernet=lstm_fc"], "hypernet"),
        (["method=metagrad", "weight_bits=4", "activation_bits=4", "error_bits=4", "grad_bits=4"], "dual_lstm_fc"),
        (["method=ste", "weight_bits=4", "activation_bits=1"], "2 to 8"),
        (["method=ste", "weight_bits=1", "activation_bits=32"], "2 to 8, or 32 with dispatch=simulate"),
        (["method=ste", "quantizer=bwn", *W8A8], "set weight_bits=1, or quantizer=dorefa for 8 bits"),
        (
            ["method=uint8", "quantizer=bwn_f", "weight_bits=1", "activation_bits=8", "error_bits=8"],
            "take quantizer=bwn, or method.error_quantizer=uniform",
        ),
        (
            ["variant=daint8_int8", "method.error_granularity=channel"],
            "per tensor for dgrad, which sums over the channels, and per output channel for wgrad",
        ),
        (
            ["variant=dorefa_int4", "method.error_granularity=sample"],
            "leave method.error_granularity=tensor, or set dispatch=simulate",
        ),
        (
            ["variant=dorefa_int4", "method.error_granularity=channel", "dispatch=simulate"],
            "takes method.error_granularity of tensor, sample, not channel",
        ),
        (
            ["method=uint8", *W8A8, "error_bits=8", "method.grad_quantizer=daint8", "grad_bits=8"],
            "of none, uniform, uint8, not daint8",
        ),
        (["method=uint8", *W8A8, "method.error_quantizer=none"], "quantizes nothing with uint8"),
        ([*METAQUANT, "hypernet=dual_lstm_fc"], "takes hypernet of fc_grad, multi_fc, lstm_fc, not dual_lstm_fc"),
        ([*METAQUANT, "hypernet=lstm_fc", "hypernet.depth=3"], "choose one of fc_grad, multi_fc"),
        ([*METAQUANT, "hypernet=fc_grad", "method.grad_rounding=stochastic"], "rounds no weight gradient"),
        ([*METAQUANT, "hypernet=fc_grad", "grad_bits=4"], "leave grad_bits at 32"),
        (["method=fp32", "method.error_quantizer=uint8", "error_bits=8"], "method.error_quantizer"),
        (["method=fp4", *W8A8, "error_bits=8"], "takes error_bits of 4, not 8"),
        (["method=fp4", *W8A8, "error_bits=4", "method.error_rounding=stochastic"], "error_rounding of nearest"),
        (["method=fp4", *W8A8, "error_bits=4", "method.norm=range"], "takes method.norm of batch, not range"),
        (["method=fp4", *W8A8, "error_bits=4", "method.error_granularity=sample"], "of tensor, not sample"),
        (["method=afp", "quantizer=fixed_point", *W8A8, "error_bits=4"], "takes error_bits of 8, not 4"),
        (["method=afp", *W8A8, "error_bits=8", "quantizer=bwn"], "takes quantizer.name of fixed_point, dorefa"),
        (["method=sbm", *W8A8, "error_bits=8", "method.norm=batch"], "takes method.norm of range, not batch"),
        (["method=ste", "quantizer=minmax", "weight_bits=1", "activation_bits=8"], "take quantizer=dorefa, bwn"),
        (["method=ste", *W8A8, "method.cycles=4"], "leave method.cycle_min_bits and method.cycles out"),
        (["method=cpt", *W8A8, "error_bits=8", "method.cycles=null"], "needs method.cycle_min_bits"),
        (["method=cpt", "weight_bits=3", "activation_bits=8", "error_bits=8"], "which must be more and at most 8"),
        ([*WAGEUBN, "optimizer=adam"], "take optimizer=sgd or optimizer=momentum"),
        ([*WAGEUBN, "optimizer.momentum=0.9"], "set optimizer.momentum to one of 0, 0.25, 0.5, 0.75"),
        ([*WAGEUBN, "optimizer=sgd", "quantizer=dorefa"], "takes quantizer.name of wageubn, not dorefa"),
    ],
)
def test_a_combination_that_makes_no_sense_is_refused_with_the_valid_choice(argv: list[str], named: str) -> None:
    from bench.errors import ConfigError

    (cell,) = plan_cells(parse_arguments(argv)).cells
    with pytest.raises(ConfigError, match=named):
        check_cells([cell])


PRESETS = {  # docs/method.md section 6: learning rate, weight decay, H
    "metagrad_int8_resnet20": ("resnet20", 0.01, 1e-3, 100),
    "metagrad_int8_resnet32": ("resnet32", 0.005, 1e-4, 150),
    "metagrad_int8_mobilenet_v2": ("mobilenet_v2", 0.005, 1e-4, 11),
    "metagrad_int8_vgg16": ("vgg16", 0.005, 1e-4, 11),
    "metagrad_int4_resnet20": ("resnet20", 0.01, 1e-4, 150),
    "metagrad_int4_resnet32": ("resnet32", 0.005, 1e-4, 150),
    "metagrad_int4_resnet56": ("resnet56", 0.001, 1e-4, 150),
    "metagrad_int4_resnet110": ("resnet110", 0.0001, 1e-4, 100),
    "metagrad_int4_mobilenet_v2": ("mobilenet_v2", 0.0005, 1e-4, 11),
    "metagrad_int4_vgg16": ("vgg16", 0.0005, 1e-4, 11),
}


def test_the_presets_are_the_papers_numbers() -> None:
    assert {name for name in group_options("preset") if name.startswith("metagrad")} == set(PRESETS)
    for preset, numbers in PRESETS.items():
        variant = f"metagrad_{preset.split('_')[1]}_tabulate"
        (cell,) = plan_cells(parse_arguments([f"preset={preset}", f"variant={variant}"])).cells
        optimizer = cell.optimizer
        assert (cell.model.name, optimizer.lr, optimizer.weight_decay, cell.hypernet.hidden) == numbers
        assert (optimizer.name, optimizer.momentum) == ("sgd", 0.9)
        assert cell.preset_name == preset


METAGRAD_TABLES = {  # and the cells beside the table's
    "metagrad_table_1_int4_cifar10": set(),
    "metagrad_table_2_int8_cifar10": {("resnet32", "daint8", "none"), ("vgg16", "daint8", "none")},
    "metagrad_table_3_hypernetworks_int4_cifar10": set(),
}


@pytest.mark.parametrize("table", METAGRAD_TABLES)
def test_a_papers_suite_has_a_cell_for_every_row_of_its_table(table: str) -> None:
    import json
    from importlib.resources import files

    rows = json.loads(files("reports").joinpath("paper_tables.json").read_text(encoding="utf-8"))[table]["rows"]
    cells = plan_cells(parse_arguments([f"suite=metagrad_table{table.split('_')[2]}"])).cells
    assert {cell.data.name for cell in cells} == {"cifar10"}
    assert {cell.protocol.augment for cell in cells} == {True}
    ours = {(cell.model.name, cell.method.name, cell.hypernet.name) for cell in cells}
    wanted = METAGRAD_TABLES[table] | {(row["model"], "fp32", "none") for row in rows}
    bits = 4 if "int4" in table else 8
    assert {cell.weight_bits for cell in cells if cell.method.name != "fp32"} == {bits}
    for row in rows:
        method = row.get("method", "metagrad")
        hypernet = row.get("hypernetwork", "dual_lstm_fc") if method == "metagrad" else "none"
        wanted.add((row["model"], method, hypernet))
    assert ours == wanted
    assert len(cells) == len(wanted)


def test_one_preset_of_a_suite_can_be_run_alone_but_not_with_another_model() -> None:
    from bench.errors import ConfigError

    argv = ["suite=metagrad_table1", "preset=metagrad_int4_vgg16"]
    cells = plan_cells(parse_arguments(argv)).cells
    assert [cell.model.name for cell in cells] == ["vgg16"] * 3
    assert {cell.optimizer.lr for cell in plan_cells(parse_arguments([*argv, "optimizer.lr=0.1"])).cells} == {0.1}
    with pytest.raises(ConfigError, match="model= cannot be set beside preset=metagrad_int4_vgg16"):
        plan_cells(parse_arguments([*argv, "model=resnet20"]))


def published(table: str) -> list[dict[str, object]]:
    import json
    from importlib.resources import files

    rows = json.loads(files("reports").joinpath("paper_tables.json").read_text(encoding="utf-8"))[table]["rows"]
    assert rows
    return list(rows)


def suite_cells(name: str, *argv: str) -> tuple[CellConfig, ...]:
    cells = plan_cells(parse_arguments([f"suite={name}", *argv])).cells
    labels = [(cell.variant_name, cell.model.name, cell.data.name) for cell in cells]
    assert len(set(labels)) == len(labels), "two cells would carry one label"
    for cell in cells:
        assert (cell.weight_bits, cell.activation_bits, cell.error_bits, cell.grad_bits) == (1, 32, 32, 32)
        assert (cell.hypernet.meta_lr, cell.edge_layers) == (1e-3, "same")
        assert cell.protocol.augment
    return cells


def test_metaquants_table_5_has_a_cell_for_every_figure() -> None:
    cells = suite_cells("metaquant_table5")
    rows = published("metaquant_table_5_slim_resnet20_cifar10_sgd_dorefa")
    wanted = {(row["hypernetwork"], strategy) for row in rows for strategy in ("slim", "retain")}
    assert {(cell.hypernet.name, cell.strategy.name) for cell in cells} == wanted
    assert len(cells) == len(wanted) == 6
    for cell in cells:
        assert (cell.model.name, cell.data.name, cell.quantizer.name) == ("resnet20", "cifar10", "dorefa")
        assert (cell.optimizer.name, cell.optimizer.momentum, cell.optimizer.lr) == ("sgd", 0.0, 1e-3)
        assert (cell.hypernet.hidden, cell.protocol.epochs) == (100, 100)


def test_metaquants_table_6_has_a_cell_for_every_row() -> None:
    cells = suite_cells("metaquant_table6")
    rows = published("metaquant_table_6_multi_fc_resnet20_cifar10_adam_dorefa")
    wanted = [(row["hidden"], row["activation"]) for row in rows]
    assert [(cell.hypernet.hidden, cell.hypernet.activation) for cell in cells] == wanted
    assert len(cells) == 6
    for cell in cells:
        assert (cell.hypernet.name, cell.optimizer.name, cell.optimizer.lr) == ("multi_fc", "adam", 1e-3)
        assert (cell.model.name, cell.data.name, cell.quantizer.name) == ("resnet20", "cifar10", "dorefa")


def test_metaquants_figure_4_observes_fc_grad_at_three_sizes() -> None:
    cells = suite_cells("metaquant_fig4")
    assert len({cell.hypernet.hidden for cell in cells}) == len(cells) == 3
    for cell in cells:
        assert (cell.hypernet.name, cell.hypernet.activation, cell.hypernet.depth) == ("fc_grad", "none", 2)
        assert (cell.model.name, cell.data.name, cell.optimizer.name) == ("resnet20", "cifar10", "sgd")
        assert cell.hypernet.observe_every == 100


def test_metaquants_convergence_has_every_panel_of_figures_5_to_15() -> None:
    cells = suite_cells("metaquant_convergence")
    models = {"resnet20": "cifar10", "resnet32": "cifar10", "resnet44": "cifar10"}
    models |= {"resnet56": "cifar100", "resnet110": "cifar100"}
    panels = {(m, d, q, o) for m, d in models.items() for q in ("dorefa", "bwn") for o in ("sgd", "adam")}
    panels.add(("resnet18", "imagenet", "dorefa", "adam"))  # Fig. 15 has one panel
    curves = {("ste", "none"), *(("metaquant", name) for name in ("multi_fc", "lstm_fc", "fc_grad"))}
    found = {
        (c.model.name, c.data.name, c.quantizer.name, c.optimizer.name, c.method.name, c.hypernet.name) for c in cells
    }
    assert found == {(*panel, *curve) for panel in panels for curve in curves}
    assert len(cells) == 21 * 4
    for cell in cells:
        on_imagenet = cell.data.name == "imagenet"
        assert cell.optimizer.lr == (1e-4 if on_imagenet else 1e-3)
        assert cell.protocol.epochs == (30 if on_imagenet else 100)
        steps = 10_009 if on_imagenet else 390  # of an epoch, batch 128
        total = steps * cell.protocol.epochs
        schedule = build_schedule("step", milestones=cell.optimizer.milestones)
        for number, epoch in enumerate([10, 20] if on_imagenet else [30, 60, 90], start=1):
            first = epoch * steps
            factors = [schedule(step / total) for step in (first - 1, first)]
            assert factors == pytest.approx([0.1 ** (number - 1), 0.1**number]), "the epoch's very first step"
        assert cell.variant_name.endswith(f"{cell.quantizer.name}_{cell.optimizer.name}"), "the label says which"
        assert cell.preset_name.endswith(f"_{cell.optimizer.name}")


def test_one_panel_of_the_convergence_can_be_run_alone() -> None:
    cells = suite_cells("metaquant_convergence", "preset=metaquant_fig6_adam", "variant=ste_w1,metaquant_w1_lstm_fc")
    assert [cell.variant_name for cell in cells] == ["ste_w1_bwn_adam", "metaquant_w1_lstm_fc_bwn_adam"]


def test_a_label_that_names_what_the_variant_leaves_open_still_begins_with_its_file(tmp_path: Path) -> None:
    from bench.errors import ConfigError

    text = "# @package _global_\nvariant_name: {}\n"
    (tmp_path / "variant").mkdir()
    for name in ("mine", "mine_${seed}"):
        (tmp_path / "variant" / "mine.yaml").write_text(text.format(name), encoding="utf-8")
        argv = ["variant=mine", "seed=3", "--config-dir", str(tmp_path)]
        (cell,) = plan_cells(parse_arguments(argv)).cells
        assert cell.variant_name == name.replace("${seed}", "3")
    (tmp_path / "variant" / "mine.yaml").write_text(text.format("miner"), encoding="utf-8")
    with pytest.raises(ConfigError, match="says variant_name=miner: name it like its file"):
        plan_cells(parse_arguments(argv))


def test_the_docs_list_every_suite_with_its_number_of_cells() -> None:
    text = (Path(__file__).parents[1] / "docs" / "suites.md").read_text(encoding="utf-8")
    rows = [
        [part.strip(" `") for part in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("| `")
    ]
    listed = {row[0]: int(row[-1]) for row in rows if row[-1].isdigit()}
    assert set(listed) == set(group_options("suite")) - {"single"}
    for name, count in listed.items():
        assert len(plan_cells(parse_arguments([f"suite={name}"])).cells) == count, name
