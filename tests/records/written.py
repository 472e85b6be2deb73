"""Records as the tests of this room write them."""

from __future__ import annotations

from pathlib import Path

from bench.records.schema import RunRecord
from bench.records.write import write_record


def write(folder: Path, record: RunRecord) -> Path:
    return write_record(folder, record, config_yaml="seed: 0\n")
