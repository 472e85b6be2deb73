"""How a row of ours was trained otherwise than the papers' rows: data, epochs, optimizer, recipe, in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bench.units import Absent
from reports.rows import Row, Section

PAPER_DATA = "cifar10"
PAPER_TRAIN_SAMPLES = 50_000
METAQUANT_EPOCHS = 100  # docs/method.md section 6; MetaGrad states no epochs
METAQUANT_LR = 1e-3
METAQUANT_HIDDEN = 100  # of Table 5; Table 6 sweeps it
#: What MetaQuant trained with besides, by group and name in a cell's config. Source: docs/method.md section 6.
METAQUANT_RECIPE: tuple[tuple[str, str, str, Any], ...] = (
    ("batch", "protocol", "batch_size", 128),
    ("crop and flip", "protocol", "augment", True),
    ("learning-rate schedule", "optimizer", "schedule", "step"),
    ("meta learning rate", "hypernet", "meta_lr", 1e-3),
)
#: (learning rate, weight decay, hidden size) by bits and model, with SGD with momentum. Source: MetaGrad section 5.1,
#: which gives them for all of its runs, its own UINT8 included; "learning rate weight decay" is read as weight decay.
METAGRAD_PRESETS: dict[int, dict[str, tuple[float, float, int]]] = {
    8: {
        "resnet20": (0.01, 1e-3, 100),
        "resnet32": (0.005, 1e-4, 150),
        "mobilenet_v2": (0.005, 1e-4, 11),
        "vgg16": (0.005, 1e-4, 11),
    },
    4: {
        "resnet20": (0.01, 1e-4, 150),
        "resnet32": (0.005, 1e-4, 150),
        "resnet56": (0.001, 1e-4, 150),
        "resnet110": (0.0001, 1e-4, 100),
        "mobilenet_v2": (0.0005, 1e-4, 11),
        "vgg16": (0.0005, 1e-4, 11),
    },
}


def data_differences(section: Section, row: Row) -> list[str]:
    """Where the data is not the papers'."""
    data = row.first.data
    if section.data_name != PAPER_DATA:
        size = f" ({data.train_samples:,} training images)" if data is not None else ""
        return [f"data {section.data_name}{size}, paper CIFAR-10"]
    if data is not None and data.train_samples != PAPER_TRAIN_SAMPLES:
        return [f"{data.train_samples:,} training images, paper {PAPER_TRAIN_SAMPLES:,}"]
    return []


def trained_epochs(row: Row) -> int | None:
    """Epochs of the row's training, None where it was not trained."""
    return next((record.accuracy.epochs for record in row.records if record.accuracy is not None), None)


def _config(row: Row, group: str, name: str) -> Any:
    """A setting of the row's config, None where the record holds none."""
    values = row.first.cell.get(group)
    return values.get(name) if isinstance(values, dict) else None


def setting_text(row: Row, words: str, group: str, name: str) -> str:
    """A setting of the row's config in words, "" where the record holds none."""
    value = _config(row, group, name)
    return "" if value is None else f"{words} {value}"


def _optimizer_difference(row: Row, words: str, name: str, paper: float) -> Iterable[str]:
    value = _config(row, "optimizer", name)
    if value is None:
        yield f"{words} not recorded, paper {paper:g}"
    elif not math.isclose(value, paper):
        yield f"{words} {value:g}, paper {paper:g}"


def metagrad_setting(bits: int) -> Callable[[Mapping[str, Any], Row], Iterable[str]]:
    """What compares a published row of MetaGrad's at these bits with a row of ours: differences in words."""

    def differences(published: Mapping[str, Any], row: Row) -> Iterable[str]:
        facts = row.method
        if facts.name == "metagrad":
            if "hypernetwork" not in published and facts.hypernet != "dual_lstm_fc":
                yield f"hypernetwork {facts.hypernet}, paper dual_lstm_fc"
            if facts.strategy != "retain":
                yield f"strategy {facts.strategy}, paper retain"
            if facts.hypernet_form != "literal":
                yield f"{facts.hypernet_form} form, paper literal"
        if published.get("method") == "daint8":
            yield "settings of DAINT8's own paper, not compared here"
        else:
            yield from _preset_differences(row, METAGRAD_PRESETS[bits][published["model"]])
        if min(facts.weight_bits, facts.activation_bits) != bits or facts.weight_bits != facts.activation_bits:
            yield f"W{facts.weight_bits} A{facts.activation_bits}, paper W{bits} A{bits}"

    return differences


def _preset_differences(row: Row, preset: tuple[float, float, int]) -> Iterable[str]:
    """Where a row of ours was trained otherwise than MetaGrad's preset."""
    lr, weight_decay, hidden = preset
    facts = row.method
    if facts.optimizer != "momentum":
        yield f"optimizer {facts.optimizer}, paper SGD with momentum"
    yield from _optimizer_difference(row, "learning rate", "lr", lr)
    yield from _optimizer_difference(row, "weight decay", "weight_decay", weight_decay)
    if row.has_hypernet and facts.hidden != hidden:
        yield f"hidden size {_hidden_text(row)}, paper {hidden}"
    if facts.forward_quantizer != "dorefa":
        yield f"forward quantizer {facts.forward_quantizer}, paper dorefa"


def _recipe_differences(row: Row) -> Iterable[str]:
    """Where a row of ours was trained otherwise than MetaQuant's runs."""
    for words, group, name, paper in METAQUANT_RECIPE:
        value = _config(row, group, name)
        if value is None:
            yield f"{words} not recorded, paper {_word(paper)}"
        elif value != paper:
            yield f"{words} {_word(value)}, paper {_word(paper)}"
    if _config(row, "protocol", "pretrain_epochs") == 0:
        yield "started from random weights, paper from an FP32 model"


def _word(value: Any) -> str:
    return ("yes" if value else "no") if isinstance(value, bool) else str(value)


def _hidden_text(row: Row) -> str:
    hidden = row.method.hidden
    return "unknown" if isinstance(hidden, Absent) else str(hidden)


def metaquant_setting(optimizers: tuple[str, ...], name: str) -> Callable[[Mapping[str, Any], Row], Iterable[str]]:
    """The same of MetaQuant's rows.

    Args:
        optimizers: of ours that are the paper's.
        name: of the paper's, in words.
    """

    def differences(published: Mapping[str, Any], row: Row) -> Iterable[str]:
        facts = row.method
        if facts.optimizer not in optimizers:
            yield f"optimizer {facts.optimizer}, paper {name}"
        yield from _optimizer_difference(row, "learning rate", "lr", METAQUANT_LR)
        if facts.edge_layers != "same":
            yield f"edge layers {facts.edge_layers}, paper quantizes all"
        if facts.weight_bits != 1 or facts.activation_bits != 32:
            yield f"W{facts.weight_bits} A{facts.activation_bits}, paper W1 A32"
        if facts.hypernet_form != "literal":
            yield f"{facts.hypernet_form} form, paper literal"
        if "slim" in published:
            if facts.hidden != METAQUANT_HIDDEN:
                yield f"hidden size {_hidden_text(row)}, paper {METAQUANT_HIDDEN}"
            if facts.strategy not in {"slim", "retain"}:
                yield f"strategy {facts.strategy}, paper slim and retain"
        yield from _recipe_differences(row)

    return differences
