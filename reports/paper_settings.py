"""How a row of ours was trained otherwise than the papers' rows: data, epochs, optimizer, recipe, in words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from bench.units import Absent
from reports.rows import Row, Section

PAPER_DATA = "cifar10"
PAPER_TRAIN_SAMPLES = 50_000
PAPER_TEST_SAMPLES = 10_000
METAQUANT_EPOCHS = 100  # docs/method.md section 6; MetaGrad states no epochs
METAQUANT_LR = 1e-3
METAQUANT_HIDDEN = 100  # of Table 5; Table 6 sweeps it
METAQUANT_DEPTH = 2  # of its text; its code has three layers in MultiFC
#: What MetaQuant trained with besides, by group and name in a cell's config. Source: docs/method.md section 6.
METAQUANT_RECIPE: tuple[tuple[str, str, str, Any], ...] = (
    ("batch", "protocol", "batch_size", 128),
    ("crop and flip", "protocol", "augment", True),
    ("learning-rate schedule", "optimizer", "schedule", "step"),
    ("milestones", "optimizer", "milestones", [0.3, 0.6, 0.9]),
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
    if data is None:
        return ["numbers of images not recorded"]
    sizes = (("training", data.train_samples, PAPER_TRAIN_SAMPLES), ("test", data.test_samples, PAPER_TEST_SAMPLES))
    return [f"{own:,} {kind} images, paper {paper:,}" for kind, own, paper in sizes if own != paper]


def trained_epochs(row: Row) -> int | None:
    """Epochs of the row's training, None where it was not trained."""
    return next((record.accuracy.epochs for record in row.records if record.accuracy is not None), None)


def _config(row: Row, group: str, name: str) -> Any:
    """A setting of the row's config, None where the record holds none."""
    values = row.first.cell.get(group)
    return values.get(name) if isinstance(values, dict) else None


def metagrad_unstated(row: Row) -> list[str]:
    """What a row of ours was trained with where MetaGrad states nothing, in words."""
    facts, epochs = row.method, trained_epochs(row)
    own_error = facts.name == "metagrad"  # UINT8's and DAINT8's error signals are what the table compares
    return [
        _setting_text(row, "momentum", "optimizer", "momentum"),
        _setting_text(row, "batch", "protocol", "batch_size"),
        _setting_text(row, "learning-rate schedule", "optimizer", "schedule"),
        f"{epochs} epochs" if epochs is not None else "",
        f"edge layers {facts.edge_layers}",
        f"error signals of {facts.error_bits} bits" if own_error else "",
        *(_hypernet_texts(row) if row.has_hypernet else ()),
    ]


def metaquant_unstated(row: Row) -> list[str]:
    """The same where MetaQuant states nothing."""
    momentum = _setting_text(row, "momentum", "optimizer", "momentum") if row.method.optimizer == "momentum" else ""
    return [momentum, _setting_text(row, "weight decay", "optimizer", "weight_decay") or "weight decay not recorded"]


def _hypernet_texts(row: Row) -> Iterable[str]:
    """How the hypernetwork is built and kept, as far as that is a choice of its kind."""
    facts = row.method
    if _is_lstm(row):
        yield f"LSTM state {facts.hypernet_state if facts.hypernet_state != 'none' else 'not recorded'}"
        return
    depth = "of unrecorded depth" if isinstance(facts.hypernet_depth, Absent) else f"of {facts.hypernet_depth} layers"
    yield f"hypernetwork {depth}, activation {facts.hypernet_activation}"


def _is_lstm(row: Row) -> bool:
    return "lstm" in row.method.hypernet


def _setting_text(row: Row, words: str, group: str, name: str) -> str:
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
        yield from _kept_differences(row)
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


def _hypernet_differences(row: Row) -> Iterable[str]:
    """Where a row's hypernetwork is not MetaQuant's."""
    facts = row.method
    if facts.hypernet_form != "literal":
        yield f"{facts.hypernet_form} form, paper literal"
    if _is_lstm(row):
        if facts.hypernet_state != "zero":
            state = "not recorded" if facts.hypernet_state == "none" else facts.hypernet_state
            yield f"LSTM state {state}, paper zero"
    elif facts.hypernet_depth != METAQUANT_DEPTH:
        depth = "not recorded" if isinstance(facts.hypernet_depth, Absent) else f"{facts.hypernet_depth}"
        yield f"layers of the hypernetwork {depth}, paper {METAQUANT_DEPTH}"
    if facts.optimizer == "adam" and facts.pi_prime != "one":  # SGD's derivative is the number 1 either way
        yield f"π′ {'not recorded' if facts.pi_prime == 'none' else facts.pi_prime}, paper’s code one"


def _kept_differences(row: Row) -> Iterable[str]:
    if row.method.compact:
        yield "batch-norm’s input kept in bfloat16, paper FP32"


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
        if facts.error_bits != 32:
            yield f"error signals of {facts.error_bits} bits, paper 32"
        yield from _hypernet_differences(row)
        if "slim" in published:
            if facts.hypernet_activation != "none":
                yield f"activation {facts.hypernet_activation}, paper none"
            if facts.hidden != METAQUANT_HIDDEN:
                yield f"hidden size {_hidden_text(row)}, paper {METAQUANT_HIDDEN}"
            if facts.strategy not in {"slim", "retain"}:
                yield f"strategy {facts.strategy}, paper slim and retain"
        elif facts.strategy != "retain":
            yield f"strategy {facts.strategy}, paper retain"
        yield from _recipe_differences(row)
        yield from _kept_differences(row)

    return differences
