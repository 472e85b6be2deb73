"""The papers' published tables, all of them, with rows of ours beside where we have one, and how the settings differ.

Sources: MetaGrad = Xu et al., "MetaGrad: Adaptive Gradient Quantization with Hypernetworks", Tables 1-3; MetaQuant =
Chen et al., NeurIPS 2019, Tables 5 and 6. A published figure is never mixed with one of ours: they stand in columns of
their own, and a difference to FP32 is always that of the same source.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from bench.units import Absent
from reports.rows import Estimate, Row, Section
from reports.text import signed

Sameness = Literal["same", "same as far as stated", "differs"]
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


@dataclass(frozen=True, slots=True, kw_only=True)
class OurRow:
    """A row of ours beside a published one."""

    label: str
    where: str  # the section, and which published figure it stands beside where a row has two
    anchor_row: Row
    accuracy: Estimate | Absent
    accuracy_vs_fp32: Estimate | Absent
    sameness: Sameness
    differences: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperRow:
    """A published row; the texts are in the order of the table's headers."""

    published: tuple[str, ...]
    ours: tuple[OurRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PaperTable:
    """A published table."""

    key: str
    title: str
    unit: str
    setting: str
    headers: tuple[str, ...]
    rows: tuple[PaperRow, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Layout:
    """How a published table is titled and which of our rows measure the same thing."""

    title: str
    setting: str
    headers: tuple[tuple[str, str], ...]  # (key in the file, header)
    matches: Callable[[Mapping[str, Any], Row], bool]
    model: str | None  # of tables that name none in their rows
    epochs: int | None  # None: the paper states none
    expected: Callable[[Mapping[str, Any], Row], Iterable[str]]  # further differences, in words


def paper_tables(sections: Sequence[Section]) -> tuple[PaperTable, ...]:
    """All published tables, ours beside where a row of ours measures the same model, method and bits."""
    published = json.loads(files("reports").joinpath("paper_tables.json").read_text(encoding="utf-8"))
    assert set(_LAYOUTS) == set(published) - {"claims"}, "every published table needs a layout, and only those"
    tables = []
    for key, layout in _LAYOUTS.items():
        rows = tuple(_paper_row(layout, row, sections) for row in published[key]["rows"])
        headers = tuple(header for _, header in layout.headers)
        tables.append(
            PaperTable(
                key=key,
                title=layout.title,
                unit=published[key]["unit"],
                setting=layout.setting,
                headers=headers,
                rows=rows,
            )
        )
    return tuple(tables)


def paper_claims() -> tuple[tuple[str, str], ...]:
    """Claims in the papers' text: (source, claim)."""
    published = json.loads(files("reports").joinpath("paper_tables.json").read_text(encoding="utf-8"))
    return tuple((claim["source"], claim["claim"]) for claim in published["claims"])


def _paper_row(layout: _Layout, row: Mapping[str, Any], sections: Sequence[Section]) -> PaperRow:
    model = row.get("model", layout.model)
    ours = tuple(
        _our_row(layout, row, section, one)
        for section in sections
        if section.model_name == model
        for one in section.rows
        if layout.matches(row, one)
    )
    return PaperRow(published=tuple(_published_text(key, row[key]) for key, _ in layout.headers), ours=ours)


def _our_row(layout: _Layout, published: Mapping[str, Any], section: Section, row: Row) -> OurRow:
    differences = [*_data_differences(section, row), *layout.expected(published, row)]
    epochs = _epochs(row)
    unstated = []
    if layout.epochs is None:
        # MetaGrad gives momentum no value, and neither batch size nor epochs nor what its first and last layers are.
        settings = [
            _setting(row, "momentum", "optimizer", "momentum"),
            _setting(row, "batch", "protocol", "batch_size"),
        ]
        settings.append(f"{epochs} epochs" if epochs is not None else "")
        settings.append(f"edge layers {row.method.edge_layers}")
        unstated = [f"{', '.join(filter(None, settings))}: the paper states none of these"]
    elif epochs is not None and epochs != layout.epochs:
        differences.append(f"{epochs} epochs, paper {layout.epochs}")
    sameness: Sameness = "differs" if differences else "same as far as stated" if layout.epochs is None else "same"
    return OurRow(
        label=row.label,
        where=", ".join(filter(None, (section.suite, section.data_name, section.device, _beside(published, row)))),
        anchor_row=row,
        accuracy=row.accuracy,
        accuracy_vs_fp32=row.accuracy_vs_fp32,
        sameness=sameness,
        differences=(*differences, *unstated),
    )


def _beside(published: Mapping[str, Any], row: Row) -> str:
    """Which of Table 5's two published figures a row of ours belongs beside."""
    if "slim" not in published:
        return ""
    return "beside the published slim" if row.method.strategy == "slim" else "beside the published non-slim"


def _data_differences(section: Section, row: Row) -> list[str]:
    data = row.first.data
    if section.data_name != PAPER_DATA:
        size = f" ({data.train_samples:,} training images)" if data is not None else ""
        return [f"data {section.data_name}{size}, paper CIFAR-10"]
    if data is not None and data.train_samples != PAPER_TRAIN_SAMPLES:
        return [f"{data.train_samples:,} training images, paper {PAPER_TRAIN_SAMPLES:,}"]
    return []


def _epochs(row: Row) -> int | None:
    return next((record.accuracy.epochs for record in row.records if record.accuracy is not None), None)


def _config(row: Row, group: str, name: str) -> Any:
    """A setting of the row's config, None where the record holds none."""
    values = row.first.cell.get(group)
    return values.get(name) if isinstance(values, dict) else None


def _setting(row: Row, words: str, group: str, name: str) -> str:
    value = _config(row, group, name)
    return "" if value is None else f"{words} {value}"


def _optimizer_difference(row: Row, words: str, name: str, paper: float) -> Iterable[str]:
    value = _config(row, "optimizer", name)
    if value is None:
        yield f"{words} not recorded, paper {paper:g}"
    elif not math.isclose(value, paper):
        yield f"{words} {value:g}, paper {paper:g}"


def _published_text(key: str, value: Any) -> str:
    if key == "delta":
        return signed(value)
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _metagrad_bits(bits: int) -> Callable[[Mapping[str, Any], Row], bool]:
    def matches(published: Mapping[str, Any], row: Row) -> bool:
        facts = row.method
        if facts.name != published["method"]:
            return False
        # UINT8 and DAINT8 are error-signal quantizers; MetaGrad's low-bit gradient is ∇W (docs/method.md section 5).
        return (facts.grad_bits if facts.name == "metagrad" else facts.error_bits) == bits

    return matches


def _hypernet_int4(published: Mapping[str, Any], row: Row) -> bool:
    return (
        row.method.name == "metagrad" and row.method.hypernet == published["hypernetwork"] and row.method.grad_bits == 4
    )


def _metaquant(published: Mapping[str, Any], row: Row) -> bool:
    facts = row.method
    hypernet = published.get("hypernetwork", "multi_fc")
    if facts.name != "metaquant" or facts.hypernet != hypernet or facts.forward_quantizer != "dorefa":
        return False
    if "activation" in published and facts.hypernet_activation != published["activation"]:
        return False
    return "hidden" not in published or facts.hidden == published["hidden"]


def _metagrad_setting(bits: int) -> Callable[[Mapping[str, Any], Row], Iterable[str]]:
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


def _metaquant_setting(optimizers: tuple[str, ...], name: str) -> Callable[[Mapping[str, Any], Row], Iterable[str]]:
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


_ACCURACIES = (("fp32", "Published FP32"), ("accuracy", "Published accuracy"), ("delta", "Published Δ"))
_LAYOUTS: dict[str, _Layout] = {
    "metagrad_table_1_int4_cifar10": _Layout(
        title="MetaGrad Table 1: INT4 gradients", setting="CIFAR-10, INT4; epochs not stated",
        headers=(("model", "Model"), ("method", "Method"), *_ACCURACIES),
        matches=_metagrad_bits(4), model=None, epochs=None, expected=_metagrad_setting(4),
    ),
    "metagrad_table_2_int8_cifar10": _Layout(
        title="MetaGrad Table 2: INT8 gradients", setting="CIFAR-10, INT8; epochs not stated",
        headers=(("model", "Model"), ("method", "Method"), *_ACCURACIES),
        matches=_metagrad_bits(8), model=None, epochs=None, expected=_metagrad_setting(8),
    ),
    "metagrad_table_3_hypernetworks_int4_cifar10": _Layout(
        title="MetaGrad Table 3: hypernetworks at INT4", setting="CIFAR-10, INT4; epochs not stated",
        headers=(("model", "Model"), ("hypernetwork", "Hypernetwork"), *_ACCURACIES),
        matches=_hypernet_int4, model=None, epochs=None, expected=_metagrad_setting(4),
    ),
    "metaquant_table_5_slim_resnet20_cifar10_sgd_dorefa": _Layout(
        title="MetaQuant Table 5: slim against non-slim",
        setting="ResNet-20, CIFAR-10, SGD, DoReFa forward, 100 epochs",
        headers=(("hypernetwork", "Hypernetwork"), ("slim", "Published slim"), ("non_slim", "Published non-slim")),
        matches=_metaquant, model="resnet20", epochs=METAQUANT_EPOCHS,
        expected=_metaquant_setting(("sgd", "momentum"), "SGD"),
    ),
    "metaquant_table_6_multi_fc_resnet20_cifar10_adam_dorefa": _Layout(
        title="MetaQuant Table 6: hidden size of MultiFC",
        setting="ResNet-20, CIFAR-10, Adam, DoReFa forward, 100 epochs",
        headers=(("hidden", "Hidden size"), ("activation", "Activation"), ("accuracy", "Published accuracy")),
        matches=_metaquant, model="resnet20", epochs=METAQUANT_EPOCHS, expected=_metaquant_setting(("adam",), "Adam"),
    ),
}  # fmt: skip
