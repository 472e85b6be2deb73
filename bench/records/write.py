"""Records written to disk, once and atomically.

A run's folder holds ``config.yaml``, ``samples.csv`` and, last, ``record.json``: where that file is, the run is whole.
"""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.errors import RecordError, system_reason
from bench.files import write_whole
from bench.printable import show_path
from bench.records.encoding import encode_record
from bench.records.schema import RunRecord
from bench.records.text import sealed

RECORD_FILE = "record.json"
CONFIG_FILE = "config.yaml"
SAMPLES_FILE = "samples.csv"
SAMPLE_COLUMNS = ("repeat", "index", "series", "metric", "value")


def write_record(folder: Path, record: RunRecord, *, config_yaml: str) -> Path:
    """Write a run's folder: the configuration, the samples and, last, the record.

    Args:
        folder: the run's own folder; made where it does not exist.
        record: finite numbers and plain values only.
        config_yaml: the composed configuration as text.

    Returns:
        The path of ``record.json``.

    Raises:
        RecordError: if the folder holds a record already, or cannot be written.
    """
    target = folder / RECORD_FILE
    data = encode_record(record)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        taken = os.path.lexists(target)
    except OSError as error:
        raise RecordError(_cannot_write(target, error)) from error
    if taken:
        raise RecordError(_already_there(target))
    write_atomic(folder / CONFIG_FILE, config_yaml.encode(), replace=True)
    if record.timing is not None:
        write_samples(folder, record)
    write_atomic(target, sealed(data), replace=False)
    return target


def write_samples(folder: Path, record: RunRecord) -> Path:
    """Write the raw timing samples as one flat table (``samples.csv``).

    Columns: ``repeat`` and ``index`` count processes and steps from 0, ``series`` is ``cell`` or ``fp32``, ``metric``
    carries its unit (``step_ms``, ``forward_ms``), ``value`` is exact to the last bit.

    Raises:
        RecordError: if it cannot be written.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SAMPLE_COLUMNS)
    writer.writerows(_sample_rows(record))
    target = folder / SAMPLES_FILE
    write_atomic(target, text.getvalue().encode(), replace=True)
    return target


def write_atomic(path: Path, data: bytes | Iterable[bytes], *, replace: bool) -> None:
    """Write a whole file or none: a temporary file beside it, flushed to disk, then moved into place.

    Args:
        path: in a folder that exists.
        data: the content, or its parts one after another.
        replace: whether an existing file may be replaced; otherwise the first writer wins, also across processes.

    Raises:
        RecordError: if it exists and must not be replaced, or cannot be written; nothing is left behind.
    """
    try:
        write_whole(path, data, replace=replace)
    except FileExistsError as error:
        raise RecordError(_already_there(path)) from error
    except OSError as error:
        raise RecordError(_cannot_write(path, error)) from error


def _sample_rows(record: RunRecord) -> Iterator[tuple[int, int, str, str, float]]:
    assert record.timing is not None, "a record without timing has no samples"
    for number, repeat in enumerate(record.timing.repeats):
        columns = [("cell", "step_ms", repeat.step_ms), ("fp32", "step_ms", repeat.fp32_step_ms)]
        columns += [("cell", f"{name}_ms", samples) for name, samples in repeat.phases_ms.items()]
        for series, metric, samples in columns:
            for index, value in enumerate(samples):
                yield number, index, series, metric, value


def _already_there(path: Path) -> str:
    return f"The file {show_path(path)} exists already and is never overwritten; move it away or write elsewhere."


def _cannot_write(path: Path, error: OSError) -> str:
    return f"The file {show_path(path)} cannot be written: {system_reason(error)}; free space or choose another place."
