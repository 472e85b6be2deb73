"""The report's tables as CSV files: units in the headers, numbers as the records hold them, nothing a spreadsheet runs.

A file a topic: ``rows`` and ``cells`` (accuracy, time, memory of every row and record), ``samples``, ``curves``,
``layers``, ``memory_phases`` and ``memory_layers``, ``products`` and ``spans`` (profile), ``hypernet_steps``,
``device``, ``papers`` and ``environment``. An unknown value is an empty field, its reason in ``<name>.reason``.
"""

from __future__ import annotations

import csv
import dataclasses
import itertools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from bench.files import write_whole
from bench.records.schema import DeviceSeries, EpochPoint, LayerFacts, LayerMemory, ProductWork, RunRecord, SpanTime
from bench.units import Absent
from reports.figures.beside import read_hypernet_steps
from reports.flat import flat_cells, flat_rows
from reports.paper import paper_tables
from reports.rows import Estimate, Section, machine_name
from reports.text import csv_text, reason_of
from reports.values import is_synthetic, leaves

IDENTITY = ("suite", "variant", "ran_as", "model_name", "data_name", "seed", "device", "fingerprint", "key")
DEVICE = tuple(
    field.name for field in dataclasses.fields(DeviceSeries) if field.name.endswith(("_w", "mhz", "_c", "pct"))
)
DETAILED_RECORDS = 1000  # in tables with hundreds of lines a record
PROFILED_RECORDS = 250  # in those of spans and products, which have seven hundred
LINES_AT_A_TIME = 1000
Line = Iterable[Any]


def write_tables(
    sections: Sequence[Section], records: Sequence[RunRecord], folders: Mapping[str, Path], out_dir: Path
) -> None:
    """Write every table that there is data for.

    Tables with many lines a record hold the largest sections, whole, up to `DETAILED_RECORDS`, those of profiles up to
    `PROFILED_RECORDS`: of thousands of records they would take longer than the rest of the report.

    Args:
        sections: of the report, the largest first.
        records: of the report.
        folders: of the records' files, by key.
        out_dir: exists.
    """
    close = _detailed(sections, DETAILED_RECORDS)
    phases = sorted({n for r in close if r.timing for repeat in r.timing.repeats for n in repeat.phases_ms})
    _write_rows(flat_rows(sections), out_dir / "rows.csv")
    _write_rows(flat_cells(records), out_dir / "cells.csv")
    samples = (*IDENTITY, "repeat", "of", "sample", "step_ms", *(f"{name}_ms" for name in phases))
    _write(out_dir / "samples.csv", samples, _samples(close, phases))
    tables = {
        "curves": (EpochPoint, _curve_points(records)),
        "layers": (LayerFacts, _pairs((r, r.model.layers) for r in close if r.model is not None)),
        "memory_layers": (LayerMemory, _pairs((r, _known(r.memory.layers)) for r in close if r.memory is not None)),
    }
    for name, (kind, pairs) in tables.items():
        _write(out_dir / f"{name}.csv", *_flat(kind, pairs))
    _write(out_dir / "memory_phases.csv", *_memory_phases(close))
    profiled = _detailed(sections, PROFILED_RECORDS)
    for name, kind in (("products", ProductWork), ("spans", SpanTime)):
        _write(out_dir / f"{name}.csv", *_profiled(kind, name, profiled))
    _write(
        out_dir / "device.csv",
        (*IDENTITY, "repeat", "time_s", *DEVICE, "timing_process_bytes", "throttled"),
        _device(close),
    )
    _write(out_dir / "hypernet_steps.csv", *_hypernet_steps(close, folders))
    papers = (
        "table", "unit", "published", "row", "row_is", "section", "accuracy_pct", "accuracy_vs_fp32_points", "setting",
        "differences",
    )  # fmt: skip
    _write(out_dir / "papers.csv", papers, _papers(sections))
    _write(out_dir / "environment.csv", ("fingerprint", "machine", "path", "value"), _environments(records))


def _detailed(sections: Sequence[Section], limit: int) -> list[RunRecord]:
    """Records of the largest sections, as many whole ones as fit; the first one always."""
    close: list[RunRecord] = []
    for section in sections:
        if close and len(close) + len(section.records) > limit:
            break
        close += section.records
    return close


def _write(path: Path, header: Sequence[str], lines: Iterable[Line]) -> None:
    """Write one table; a table without lines leaves no file."""
    texts = _SafeTexts()
    rest = iter(lines)
    first = next(rest, None)
    if first is None:
        path.unlink(missing_ok=True)  # of an earlier report
        return
    safe = (
        [texts[value] if isinstance(value, str) else value for value in line] for line in itertools.chain([first], rest)
    )
    write_whole(path, _encoded(itertools.chain([[texts[name] for name in header]], safe)))


def _encoded(lines: Iterable[Line]) -> Iterator[bytes]:
    """CSV in parts: a table may have a hundred thousand lines."""
    rest = iter(lines)
    while part := tuple(itertools.islice(rest, LINES_AT_A_TIME)):
        stream = StringIO(newline="")
        csv.writer(stream, lineterminator="\n").writerows(part)
        yield stream.getvalue().encode()


class _SafeTexts(dict[str, object]):
    """Texts as a spreadsheet may read them; few, which repeat many times."""

    def __missing__(self, text: str) -> object:
        self[text] = csv_text(text)
        return self[text]


def _write_rows(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows whose columns may differ, each in the order in which it first appears."""
    header = list(dict.fromkeys(name for row in rows for name in row))
    _write(path, header, ([row.get(name) for name in header] for row in rows))


def _identity(record: RunRecord) -> tuple[Any, ...]:
    ran_as = record.gemms.label if record.gemms is not None else None
    return tuple(ran_as if name == "ran_as" else getattr(record, name) for name in IDENTITY)


def _pairs(groups: Iterable[tuple[RunRecord, Iterable[Any]]]) -> list[tuple[tuple[Any, ...], Any]]:
    return [(identity, item) for record, items in groups for identity in [_identity(record)] for item in items]


def _known(items: tuple[Any, ...] | Absent) -> tuple[Any, ...]:
    return () if isinstance(items, Absent) else items


def _flat(
    kind: type, pairs: Sequence[tuple[tuple[Any, ...], Any]], extra: Sequence[str] = ()
) -> tuple[tuple[str, ...], Iterator[Line]]:
    """Header and lines of one dataclass: its fields, and a reason's column for those that may be absent."""
    names = [field.name for field in dataclasses.fields(kind)]
    read = operator.attrgetter(*names)
    rows = [read(item) for _, item in pairs]
    kinds = [set(map(type, column)) for column in zip(*rows, strict=True)]
    absent = [index for index, found in enumerate(kinds) if Absent in found]
    converted = [index for index, found in enumerate(kinds) if found & {Absent, tuple}]
    header = (*IDENTITY, *extra, *names, *(f"{names[index]}.reason" for index in absent))

    def lines() -> Iterator[Line]:
        for (identity, _), row in zip(pairs, rows, strict=True):
            values = list(row)
            for index in converted:
                values[index] = _plain(row[index])
            yield [*identity, *values, *(reason_of(row[index]) or None for index in absent)]

    return header, lines()


def _plain(value: Any) -> Any:
    if isinstance(value, Absent):
        return None
    return "x".join(map(str, value)) if isinstance(value, tuple) else value


def _samples(records: Sequence[RunRecord], phases: Sequence[str]) -> Iterator[Line]:
    """Every measured step: the cell's with its phases, and the FP32 reference's beside it."""
    for record in records:
        identity = _identity(record)
        for index, repeat in enumerate(record.timing.repeats if record.timing is not None else ()):
            for of, steps, parts in (("cell", repeat.step_ms, repeat.phases_ms), ("fp32", repeat.fp32_step_ms, {})):
                nothing = (None,) * len(steps)
                columns = [(*parts.get(name, ()), *nothing)[: len(steps)] for name in phases]
                for sample, (step, *values) in enumerate(zip(steps, *columns, strict=True)):
                    yield (*identity, index, of, sample, step, *values)


def _curve_points(records: Sequence[RunRecord]) -> list[tuple[tuple[Any, ...], EpochPoint]]:
    """Every epoch; synthetic data has no accuracy."""
    none = Absent("synthetic data")
    return _pairs(
        (
            record,
            [dataclasses.replace(point, test_accuracy_pct=none) for point in record.accuracy.curve]
            if is_synthetic(record)
            else record.accuracy.curve,
        )
        for record in records
        if record.accuracy is not None
    )


def _memory_phases(records: Sequence[RunRecord]) -> tuple[tuple[str, ...], Iterator[Line]]:
    pairs = _pairs((r, _known(r.memory.phases)) for r in records if r.memory is not None)
    categories = list(dict.fromkeys(name for _, phase in pairs for name in phase.categories))
    header = (*IDENTITY, "phase", "layer", "peak_bytes", "allocator_bytes", *(f"{name}_bytes" for name in categories))
    lines = (
        (
            *identity,
            p.phase,
            p.layer,
            p.peak_bytes,
            _plain(p.allocator_bytes),
            *(p.categories.get(n) for n in categories),
        )
        for identity, p in pairs
    )
    return header, lines


def _profiled(kind: type, name: str, records: Sequence[RunRecord]) -> tuple[tuple[str, ...], Iterator[Line]]:
    """Products or spans of the cell and of the FP32 step beside it."""
    pairs = [
        ((*identity, of), item)
        for record in records
        if record.profile is not None
        for identity in [_identity(record)]
        for of, side in (("cell", record.profile.cell), ("fp32", record.profile.fp32))
        for item in getattr(side, name)
    ]
    return _flat(kind, pairs, extra=("of",))


def _device(records: Sequence[RunRecord]) -> Iterator[Line]:
    for record in records:
        identity = _identity(record)
        for index, repeat in enumerate(record.timing.repeats if record.timing is not None else ()):
            series = repeat.device
            if series is None:
                continue
            nothing = (None,) * len(series.time_s)
            names = (*DEVICE, "process_bytes", "throttled")
            columns = [nothing if isinstance(v := getattr(series, name), Absent) else v for name in names]
            for time_s, *values in itertools.zip_longest(series.time_s, *columns):  # unsealed records may be cut
                yield (*identity, index, time_s, *map(_plain, values))


def _hypernet_steps(records: Sequence[RunRecord], folders: Mapping[str, Path]) -> tuple[tuple[str, ...], list[Line]]:
    """Quartiles over the layers of every observed step."""
    header: tuple[str, ...] = IDENTITY
    lines: list[Line] = []
    for record in records:
        frame = read_hypernet_steps(folders.get(record.key)) if record.method.hypernet != "none" else ""
        if isinstance(frame, str):
            continue
        header = (*IDENTITY, *frame.columns)
        known = frame.astype(object).where(frame.notna(), None)
        lines += [
            (*_identity(record), int(step), *values) for step, *values in known.itertuples(index=False, name=None)
        ]
    return header, lines


def _papers(sections: Sequence[Section]) -> Iterator[Line]:
    """Published rows, ours beside where there is one; a published number never stands in a column of ours."""
    for table in paper_tables(sections):
        for row in table.rows:
            told = "; ".join(f"{head}: {text}" for head, text in zip(table.headers, row.published, strict=True))
            for ours in row.ours:
                numbers = [v.value if isinstance(v, Estimate) else None for v in (ours.accuracy, ours.accuracy_vs_fp32)]
                yield (
                    table.title,
                    table.unit,
                    told,
                    ours.label,
                    ", ".join(ours.anchor_row.labels) or None,
                    ours.where,
                    *numbers,
                    ours.sameness,
                    "; ".join(ours.differences),
                )
            if not row.ours:
                yield (
                    table.title,
                    table.unit,
                    told,
                    None,
                    None,
                    None,
                    None,
                    None,
                    "no run of ours in these folders",
                    None,
                )


def _environments(records: Sequence[RunRecord]) -> Iterator[Line]:
    for fingerprint, record in {record.fingerprint: record for record in records}.items():
        for path, value in leaves(record.environment):
            yield (
                fingerprint,
                machine_name(record),
                path,
                f"n/a ({value.reason})" if isinstance(value, Absent) else value,
            )
