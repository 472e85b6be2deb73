"""Which rows' profiles figures show."""

from __future__ import annotations

from bench.records.schema import ProfileResult
from reports.rows import Row, Section

GEMMS = ("fprop", "dgrad", "wgrad")
MAX_ROWS = 3  # beside FP32


def profiles_of(row: Row) -> list[ProfileResult]:
    """The profiles of all seeds that have one."""
    return [record.profile for record in row.records if record.profile is not None]


def profiled_rows(section: Section) -> list[Row]:
    """Low-bit rows with a profile, the first of each combination of bits."""
    rows: dict[tuple[int, int], Row] = {}
    for row in section.rows:
        if row.is_low_bit and profiles_of(row):
            rows.setdefault((row.method.weight_bits, row.method.error_bits), row)
    return list(rows.values())[:MAX_ROWS]


def why_none(section: Section) -> str:
    """Why a section has no such row."""
    for row in section.rows:
        for record in row.records:
            if "profile" in record.missing and row.is_low_bit:
                return record.missing["profile"]
    return "no low-bit row was profiled"
