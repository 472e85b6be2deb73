from __future__ import annotations

from collections.abc import Callable

import pytest

from bench.records.entry import Entry, entry_of
from bench.records.schema import RunRecord


@pytest.fixture
def entry(make_record: Callable[..., RunRecord]) -> Entry:
    return entry_of(make_record())
