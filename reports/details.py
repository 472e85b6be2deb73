"""One record in full: every value, its layers and its samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from bench.records.schema import LayerFacts, RunRecord
from bench.units import Absent, format_absent
from reports.values import leaves, shown_value


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One value of a record in the details."""

    path: str
    text: str
    value: str  # exact, "" for text


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """A record in full."""

    anchor: str
    title: str
    record: RunRecord
    fields: tuple[Field, ...]
    layers: tuple[Mapping[str, str], ...]
    samples: tuple[tuple[str, str], ...]


def build_detail(record: RunRecord, label: str, anchor: str) -> Detail:
    """Lay a record out in full.

    Args:
        record: any.
        label: of its row.
        anchor: that rows link to.
    """
    fields = []
    for path, value in leaves(record):
        if path.startswith(("environment.", "timing.repeats", "model.layers")):
            continue
        value = shown_value(record, path, value)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        fields.append(Field(path=path, text=value_text(value), value=repr(value) if number else ""))
    layers = tuple(
        {
            "name": layer.name,
            "kind": layer.kind,
            "weight_shape": "×".join(map(str, layer.weight_shape)),
            "bits": f"W{layer.weight_bits} A{layer.activation_bits} ∇y{layer.error_bits}",
            "fprop": layer.fprop,
            "dgrad": value_text(layer.dgrad),
            "wgrad": layer.wgrad,
            "paths": paths_text(layer),
            "reason": layer.reason if not layer.quantized else "",
        }
        for layer in (record.model.layers if record.model is not None else ())
    )
    samples: list[tuple[str, str]] = []
    for index, repeat in enumerate(record.timing.repeats if record.timing is not None else ()):
        samples.append((f"process {index + 1}, step_ms", ", ".join(f"{value:g}" for value in repeat.step_ms)))
        samples.append((f"process {index + 1}, fp32_step_ms", ", ".join(f"{value:g}" for value in repeat.fp32_step_ms)))
    title = f"{label}, seed {record.seed}, {record.device}"
    return Detail(
        anchor=anchor, title=title, record=record, fields=tuple(fields), layers=layers, samples=tuple(samples)
    )


def paths_text(layer: LayerFacts) -> str:
    """Which path each of a layer's products took and why, once where they agree; "" where none was recorded.

    Args:
        layer: of a record.
    """
    told = {"fprop": layer.fprop_path, "dgrad": layer.dgrad_path, "wgrad": layer.wgrad_path}
    told = {gemm: path for gemm, path in told.items() if path}
    if len(set(told.values())) == 1:
        return next(iter(told.values()))
    return "; ".join(f"{gemm} {path}" for gemm, path in told.items())


def value_text(value: Any) -> str:
    """Print any single value; an absent one with its reason."""
    if isinstance(value, Absent):
        return format_absent(value)
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    return str(value)
