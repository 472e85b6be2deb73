"""One record by itself: in full (every value, layer, epoch and sample), or in brief where there are thousands."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bench.records.schema import (
    AccuracyResult,
    LayerFacts,
    LayerMemory,
    MemoryResult,
    ModelFacts,
    ProfileResult,
    RunRecord,
    SideProfile,
    TimingResult,
)
from bench.stats import summarize
from bench.units import Absent, format_absent, format_bytes, format_ms
from reports.reproduce import reproduce_command
from reports.rows import Row
from reports.tables.model import Cell, absent_cell
from reports.tables.profile import (
    KERNEL_COLUMNS,
    LAYER_COLUMNS,
    OPERATOR_COLUMNS,
    WORK_COLUMNS,
    kernel_rows,
    layer_rows,
    operator_rows,
    work_rows,
)
from reports.values import leaves, shown_value

#: Parts of a record under their headings in its details; every value stands under exactly one.
GROUPS = (
    ("Run", ("schema_version", "key", "suite", "variant", "model_name", "data_name", "seed", "device", "status",
             "reason", "started_at", "duration_s", "code_version", "fingerprint", "missing", "notices")),
    ("Configuration", ("cell",)),
    ("Method", ("method",)),
    ("Model and data", ("model", "data")),
    ("Accuracy", ("accuracy",)),
    ("Time", ("timing",)),
    ("Memory", ("memory",)),
    ("Hypernetwork", ("hypernet",)),
    ("Kernels", ("gemms",)),
    ("Profile", ("profile",)),
)  # fmt: skip


_LISTS = ((ModelFacts, "layers"), (MemoryResult, "layers"), (AccuracyResult, "curve"), (TimingResult, "repeats"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """One value of a record in the details."""

    path: str
    text: str
    value: str  # exact, "" for text


@dataclass(frozen=True, slots=True, kw_only=True)
class Samples:
    """Measured steps of one process and side."""

    name: str
    source: str  # path of the list in the record
    summary: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """A small table of a record's lists."""

    title: str
    headers: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Detail:
    """A record by itself."""

    anchor: str
    title: str
    labels: tuple[str, ...]  # how its figures came about: emulated, synthetic
    record: RunRecord
    command: str  # measures it again
    files: tuple[str, ...]  # beside the record, by name: they do not travel with a report
    brief: str  # "" in full, else the key figures in a sentence
    groups: tuple[tuple[str, tuple[Field, ...]], ...] = ()
    grids: tuple[Grid, ...] = ()
    samples: tuple[Samples, ...] = ()


def build_detail(record: RunRecord, row: Row, anchor: str, files: tuple[str, ...], *, in_full: bool) -> Detail:
    """Lay one record out.

    Args:
        record: any.
        row: that it belongs to.
        anchor: that rows link to.
        files: beside the record, by name.
        in_full: with every value; otherwise what it is, how it ended and its key figures.
    """
    title = f"{row.label}, seed {record.seed}, {record.device}"
    command = reproduce_command(record, with_model=True, with_data=True, seeds=[record.seed])
    if not in_full:
        return Detail(
            anchor=anchor, title=title, labels=row.labels, record=record, command=command, files=files,
            brief=_brief(record),
        )  # fmt: skip
    return Detail(
        anchor=anchor, title=title, labels=row.labels, record=record, command=command, files=files, brief="",
        groups=tuple((name, fields) for name, parts in GROUPS if (fields := tuple(_fields(record, parts)))),
        grids=tuple(grid for grid in _grids(record) if grid.rows),
        samples=tuple(_samples(record)),
    )  # fmt: skip


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


def _fields(record: RunRecord, parts: Sequence[str]) -> Iterable[Field]:
    for part in parts:
        for path, value in leaves(_without_lists(getattr(record, part)), part):
            shown = shown_value(record, path, value)
            yield Field(path=path, text=value_text(shown), value=repr(shown) if _is_number(shown) else "")


def _without_lists(part: Any) -> Any:
    """A part without the lists that have tables of their own in the details, or stand in tables/*.csv alone."""
    if isinstance(part, ProfileResult):
        return dataclasses.replace(part, cell=_side_without_lists(part.cell), fp32=_side_without_lists(part.fp32))
    for kind, name in _LISTS:
        if isinstance(part, kind) and not isinstance(getattr(part, name), Absent):
            nothing: dict[str, Any] = {name: ()}
            return dataclasses.replace(part, **nothing)
    return part


def _side_without_lists(side: SideProfile) -> SideProfile:
    trace = side.trace
    if trace is not None:
        kernels = trace.kernels if isinstance(trace.kernels, Absent) else ()
        trace = dataclasses.replace(trace, operators=(), kernels=kernels)
    return dataclasses.replace(side, trace=trace, plain_step_ms=(), spanned_step_ms=(), spans=(), products=(), work=())


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _grids(record: RunRecord) -> Iterable[Grid]:
    yield _layer_grid(record)
    yield _curve_grid(record)
    for title, columns, rows in (
        ("Phases against the ceilings", WORK_COLUMNS, work_rows(record)),
        ("Most expensive operators beside FP32’s", OPERATOR_COLUMNS, operator_rows(record)),
        ("Most expensive GPU kernels", KERNEL_COLUMNS, kernel_rows(record)),
        ("Products by layer beside FP32’s", LAYER_COLUMNS, layer_rows(record)),
    ):
        headers = tuple(", ".join(filter(None, (column.header, column.unit))) for column in columns)
        yield Grid(title=title, headers=headers, rows=rows)


def _layer_grid(record: RunRecord) -> Grid:
    """What ran in each layer, and what it kept in memory where that was recorded."""
    kept = _memory_of_layers(record)
    headers: tuple[str, ...] = (
        "Layer",
        "Kind",
        "Weight",
        "Bits",
        "fprop",
        "dgrad",
        "wgrad",
        "Path, and why",
        "Why not quantized",
    )
    if kept:
        headers = (*headers[:7], "Kept for backward", "Forward needs", "Backward needs", *headers[7:])
    rows = []
    for layer in record.model.layers if record.model is not None else ():
        cells = [
            Cell(text=layer.name),
            Cell(text=layer.kind),
            Cell(text="×".join(map(str, layer.weight_shape))),
            Cell(text=f"W{layer.weight_bits} A{layer.activation_bits} ∇y{layer.error_bits}"),
            *(Cell(text=value_text(label)) for label in (layer.fprop, layer.dgrad, layer.wgrad)),
        ]
        if kept:
            cells += _memory_cells(kept.get(layer.name))
        cells += [Cell(text=paths_text(layer)), Cell(text=layer.reason if not layer.quantized else "")]
        rows.append(tuple(cells))
    return Grid(title="Layers", headers=headers, rows=tuple(rows))


def _memory_of_layers(record: RunRecord) -> Mapping[str, tuple[int, LayerMemory]]:
    if record.memory is None or isinstance(record.memory.layers, Absent):
        return {}
    return {layer.name: (index, layer) for index, layer in enumerate(record.memory.layers)}


def _memory_cells(found: tuple[int, LayerMemory] | None) -> list[Cell]:
    names = ("kept_bytes", "forward_extra_bytes", "backward_extra_bytes")
    if found is None:
        return [absent_cell(Absent(reason="not recorded"))] * len(names)
    index, layer = found
    values = [(name, getattr(layer, name)) for name in names]
    return [
        Cell(text=format_bytes(value), value=value, source=f"memory.layers[{index}].{name}") for name, value in values
    ]


def _curve_grid(record: RunRecord) -> Grid:
    """Every epoch of the training."""
    forms = {
        "epoch": "d", "step": "d", "seconds": ".1f", "learning_rate": ".4g", "train_loss": ".4g",
        "test_accuracy_pct": ".2f",
    }  # fmt: skip
    rows = []
    for index, point in enumerate(record.accuracy.curve if record.accuracy is not None else ()):
        cells = []
        for name, form in forms.items():
            path = f"accuracy.curve[{index}].{name}"
            value = shown_value(record, path, getattr(point, name))
            cells.append(
                absent_cell(value)
                if isinstance(value, Absent)
                else Cell(text=format(value, form), value=value, source=path)
            )
        rows.append(tuple(cells))
    headers = ("Epoch", "Step", "Training time, s", "Learning rate", "Training loss", "Test accuracy, %")
    return Grid(title="Epochs", headers=headers, rows=tuple(rows))


def _samples(record: RunRecord) -> Iterable[Samples]:
    for index, repeat in enumerate(record.timing.repeats if record.timing is not None else ()):
        for side, name in (("step_ms", "the cell’s steps"), ("fp32_step_ms", "FP32 steps")):
            values = getattr(repeat, side)
            if values:
                middle = summarize(values)
                yield Samples(
                    name=f"process {index + 1}, {name}",
                    source=f"timing.repeats[{index}].{side}",
                    summary=f"n = {middle.n}, median {format_ms(middle.median)}, quartiles {format_ms(middle.q1)} and "
                    f"{format_ms(middle.q3)}, from {format_ms(min(values))} to {format_ms(max(values))}",
                    values=values,
                )


def _brief(record: RunRecord) -> str:
    """Key figures in a sentence."""
    parts = []
    if record.accuracy is not None:
        accuracy = shown_value(record, "accuracy.test_accuracy_pct", record.accuracy.test_accuracy_pct)
        parts.append(f"accuracy {f'{accuracy:.2f} %' if _is_number(accuracy) else value_text(accuracy)}")
    if record.timing is not None:
        step = record.timing.step_ms
        parts.append(f"step {format_ms(step.median)} [{format_ms(step.q1)}, {format_ms(step.q3)}], n = {step.n}")
        parts.append(f"FP32 step beside it {format_ms(record.timing.fp32_step_ms.median)}")
    if record.memory is not None:
        parts.append(f"peak allocated {format_bytes(record.memory.peak_allocated_bytes)}")
    if record.gemms is not None:
        parts.append(f"ran as {record.gemms.label}")
    return "; ".join(parts) or "nothing was measured"
