"""What the papers claim in their text, and what rows of ours measured of it, in words.

Sources: as in ``reports.paper``; a claim is compared with rows of the method, model and data that it speaks of alone.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.resources import files

from bench.units import Absent, format_percent
from reports.rows import AgainstRetain, Estimate, Row, Section
from reports.wording import points_text

MAX_OURS = 6  # rows named beside one claim
NO_RUN = "no run of ours in these folders"


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A published sentence and what ours say, "no run of ours" where none does."""

    source: str
    text: str
    ours: str


def paper_claims(sections: Sequence[Section]) -> tuple[Claim, ...]:
    """Claims in the papers' text, each with what rows of ours measured of it.

    Args:
        sections: of the report.
    """
    published = json.loads(files("reports").joinpath("paper_tables.json").read_text(encoding="utf-8"))["claims"]
    assert {claim["claim"] for claim in published} == set(_MEASURED), "every claim needs what measures it"
    return tuple(
        Claim(source=claim["source"], text=claim["claim"], ours=_ours(_MEASURED[claim["claim"]], sections))
        for claim in published
    )


def _ours(measured: Callable[[Section, Row], str], sections: Sequence[Section]) -> str:
    told = [
        f"{row.named} on {section.data_name}, {section.device}: {text}"
        for section in sections
        for row in section.rows
        if (text := measured(section, row))
    ]
    more = f"; and {len(told) - MAX_OURS} more rows" if len(told) > MAX_OURS else ""
    return f"ours: {'; '.join(told[:MAX_OURS])}{more}" if told else NO_RUN


def _hypernet_share(section: Section, row: Row) -> str:
    """What MetaQuant's hypernetwork adds, of the peak."""
    added, peak = row.hypernet_extra_allocated_bytes, row.peak_allocated_bytes
    if row.method.name != "metaquant" or not section.model_name.startswith("resnet"):
        return ""
    if isinstance(added, Absent) or isinstance(peak, Absent):
        return ""
    return f"{format_percent(100 * added / peak)} of the peak allocated ({row.method.strategy})"


def _slim_accuracy(section: Section, row: Row) -> str:
    """MetaQuant's slim form against its own retained graph."""
    if row.method.name != "metaquant" or row.method.strategy != "slim":
        return ""
    points = row.against_retain.accuracy_points if isinstance(row.against_retain, AgainstRetain) else None
    return f"{points_text(points)} points against retain, n = {points.n}" if isinstance(points, Estimate) else ""


def _backward_share(section: Section, row: Row) -> str:
    """FP32's backward, of the step."""
    if not row.is_fp32 or isinstance(row.phase_share_pct, Absent) or "backward" not in row.phase_share_pct:
        return ""
    return f"{format_percent(row.phase_share_pct['backward'])} of the step ({section.model_name})"


def _int4_loss(section: Section, row: Row) -> str:
    """MetaGrad's INT4 gradients on the claim's model and data."""
    if row.method.name != "metagrad" or row.method.grad_bits != 4:
        return ""
    if (section.model_name, section.data_name) != ("vgg16", "cifar10"):
        return ""
    delta = row.accuracy_vs_fp32
    return f"{points_text(delta)} points against FP32, n = {delta.n}" if isinstance(delta, Estimate) else ""


_MEASURED: dict[str, Callable[[Section, Row], str]] = {
    "the meta quantizer takes about 10 % of the memory of training ResNets": _hypernet_share,
    "slim keeps accuracy": _slim_accuracy,
    "backward is around half of training time": _backward_share,
    "INT4 gradients cost VGG-16 0.64 points on CIFAR-10": _int4_loss,
}
