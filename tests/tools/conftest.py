from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from bench.records.schema import RunRecord
from tests.tools.gate_runs import Bench


@pytest.fixture
def bench(tmp_path: Path, make_record: Callable[..., RunRecord]) -> Bench:
    return Bench(tmp_path, make_record)
