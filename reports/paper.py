"""The papers' published tables, all of them, with rows of ours beside where we have one, and how the settings differ.

Sources: MetaGrad = Xu et al., "MetaGrad: Adaptive Gradient Quantization with Hypernetworks", Tables 1-3; MetaQuant =
Chen et al., NeurIPS 2019, Tables 5 and 6. A published figure is never mixed with one of ours: they stand in columns of
their own, and a difference to FP32 is always that of the same source.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from bench.units import Absent
from reports.paper_settings import (
    METAQUANT_EPOCHS,
    data_differences,
    metagrad_setting,
    metagrad_unstated,
    metaquant_setting,
    metaquant_unstated,
    trained_epochs,
)
from reports.rows import Estimate, Row, Section
from reports.text import signed

Sameness = Literal["same as far as stated", "differs"]  # every paper leaves something open


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
    unstated: Callable[[Row], Sequence[str]]  # settings of ours that the paper does not give, "" among them


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
    differences = [*data_differences(section, row), *layout.expected(published, row)]
    epochs = trained_epochs(row)
    if layout.epochs is not None and epochs is not None and epochs != layout.epochs:
        differences.append(f"{epochs} epochs, paper {layout.epochs}")
    unstated = list(filter(None, layout.unstated(row)))
    told = f"{', '.join(unstated)}: the paper states {'none of these' if len(unstated) > 1 else 'none'}"
    return OurRow(
        label=row.label,
        where=", ".join(filter(None, (section.suite, section.data_name, section.device, _beside(published, row)))),
        anchor_row=row,
        accuracy=row.accuracy,
        accuracy_vs_fp32=row.accuracy_vs_fp32,
        sameness="differs" if differences else "same as far as stated",
        differences=(*differences, told),
    )


def _beside(published: Mapping[str, Any], row: Row) -> str:
    """Which of Table 5's two published figures a row of ours belongs beside."""
    if "slim" not in published:
        return ""
    return "beside the published slim" if row.method.strategy == "slim" else "beside the published non-slim"


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


_ACCURACIES = (("fp32", "Published FP32"), ("accuracy", "Published accuracy"), ("delta", "Published Δ"))
_LAYOUTS: dict[str, _Layout] = {
    "metagrad_table_1_int4_cifar10": _Layout(
        title="MetaGrad Table 1: INT4 gradients", setting="CIFAR-10, INT4; epochs not stated",
        headers=(("model", "Model"), ("method", "Method"), *_ACCURACIES),
        matches=_metagrad_bits(4), model=None, epochs=None, expected=metagrad_setting(4),
        unstated=metagrad_unstated,
    ),
    "metagrad_table_2_int8_cifar10": _Layout(
        title="MetaGrad Table 2: INT8 gradients", setting="CIFAR-10, INT8; epochs not stated",
        headers=(("model", "Model"), ("method", "Method"), *_ACCURACIES),
        matches=_metagrad_bits(8), model=None, epochs=None, expected=metagrad_setting(8),
        unstated=metagrad_unstated,
    ),
    "metagrad_table_3_hypernetworks_int4_cifar10": _Layout(
        title="MetaGrad Table 3: hypernetworks at INT4", setting="CIFAR-10, INT4; epochs not stated",
        headers=(("model", "Model"), ("hypernetwork", "Hypernetwork"), *_ACCURACIES),
        matches=_hypernet_int4, model=None, epochs=None, expected=metagrad_setting(4),
        unstated=metagrad_unstated,
    ),
    "metaquant_table_5_slim_resnet20_cifar10_sgd_dorefa": _Layout(
        title="MetaQuant Table 5: slim against non-slim",
        setting="ResNet-20, CIFAR-10, SGD, DoReFa forward, 100 epochs",
        headers=(("hypernetwork", "Hypernetwork"), ("slim", "Published slim"), ("non_slim", "Published non-slim")),
        matches=_metaquant, model="resnet20", epochs=METAQUANT_EPOCHS,
        expected=metaquant_setting(("sgd", "momentum"), "SGD"), unstated=metaquant_unstated,
    ),
    "metaquant_table_6_multi_fc_resnet20_cifar10_adam_dorefa": _Layout(
        title="MetaQuant Table 6: hidden size of MultiFC",
        setting="ResNet-20, CIFAR-10, Adam, DoReFa forward, 100 epochs",
        headers=(("hidden", "Hidden size"), ("activation", "Activation"), ("accuracy", "Published accuracy")),
        matches=_metaquant, model="resnet20", epochs=METAQUANT_EPOCHS, expected=metaquant_setting(("adam",), "Adam"),
        unstated=metaquant_unstated,
    ),
}  # fmt: skip
