"""The hypernetwork's surface beside a record: ``hypernet_surface.json``, written once, read with exact errors."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import msgspec

from bench.errors import RecordError
from bench.printable import show_path
from bench.records.read import check_header, read_bytes
from bench.records.schema import SCHEMA_VERSION, HypernetSurface
from bench.records.text import pretty_json
from bench.records.write import write_atomic

SURFACE_FILE = "hypernet_surface.json"
_DIGITS = 6  # significant; the file is for looking at a function
_decoder = msgspec.json.Decoder(HypernetSurface)


def write_surface(folder: Path, surface: HypernetSurface) -> Path:
    """Write a surface into a run's folder, its numbers to six significant digits.

    Raises:
        RecordError: if it cannot be written, or is there already.
    """
    short = dataclasses.replace(
        surface,
        axes=tuple(dataclasses.replace(axis, values=_short(axis.values)) for axis in surface.axes),
        before=tuple(map(_short, surface.before)),
        after=tuple(map(_short, surface.after)),
    )
    target = folder / SURFACE_FILE
    write_atomic(target, pretty_json(msgspec.json.encode(short)), replace=False)
    return target


def read_surface(folder: Path) -> HypernetSurface:
    """Read the surface beside a record.

    Raises:
        RecordError: it is not there, cannot be read, is of something else, or its tables do not fit its axes.
    """
    path = folder / SURFACE_FILE
    data = read_bytes(path)
    try:
        surface = _decoder.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        check_header(path, data, key="axes", kind="a hypernetwork's surface", newest=SCHEMA_VERSION)
        raise RecordError(f"The file {show_path(path)} is damaged: {error}; run its cell again.") from error
    sizes = [len(axis.values) for axis in surface.axes]
    if len(sizes) not in (1, 2) or min(sizes) < 2:
        raise RecordError(f"The file {show_path(path)} has {len(sizes)} axes of {sizes} values; run its cell again.")
    rows, columns = (sizes[1] if len(sizes) == 2 else 1), sizes[0]
    for table in (surface.before, surface.after):
        if len(table) != rows or any(len(row) != columns for row in table):
            raise RecordError(f"The file {show_path(path)} has tables that do not fit its axes; run its cell again.")
    return surface


def is_finite(surface: HypernetSurface) -> bool:
    """Whether every number of it can be written."""
    numbers = [axis.values for axis in surface.axes] + [*surface.before, *surface.after]
    return all(math.isfinite(value) for row in numbers for value in row)


def _short(values: tuple[float, ...]) -> tuple[float, ...]:
    return tuple(float(f"{value:.{_DIGITS}g}") for value in values)
