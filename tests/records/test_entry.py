from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import RecordError
from bench.hardware.environment import describe_differences, read_environment
from bench.records.entry import config_digest, entry_of, is_measured, newest_entries
from bench.records.schema import RunRecord
from bench.units import Absent

MakeRecord = Callable[..., RunRecord]


def test_a_cell_is_found_again_after_a_change_of_code_or_of_what_has_no_effect(make_record: MakeRecord) -> None:
    def digest(cell: dict[str, Any], **changes: Any) -> str:
        return entry_of(make_record(cell=cell, **changes)).config_digest

    first = digest({"seed": 0, "protocol": {"batch_size": 8, "pass_limit_s": 5.0}, "device": "auto"})
    assert first == digest(
        {"device": "cpu", "protocol": {"pass_limit_s": 9.0, "batch_size": 8}, "seed": 0}, code_version="2", key="other"
    )
    assert first == digest({"seed": 0, "protocol": {"batch_size": 8, "passes": ["timing"]}, "device": "cpu"})
    assert first != digest({"seed": 0, "protocol": {"batch_size": 9, "pass_limit_s": 5.0}, "device": "auto"})
    assert first != digest({"seed": 1, "protocol": {"batch_size": 8, "pass_limit_s": 5.0}, "device": "auto"})


@given(st.dictionaries(st.text(max_size=4), st.integers() | st.text(max_size=4) | st.booleans(), max_size=4))
def test_the_digest_depends_on_content_alone(config: dict[str, Any]) -> None:
    assert config_digest(dict(reversed(config.items()))) == config_digest(config)
    assert config_digest(config | {"more": 0}) != config_digest(config | {"more": 1})


def test_the_newest_run_of_a_cell_on_a_machine_counts(make_record: MakeRecord) -> None:
    old = make_record(code_version="1", started_at="2026-11-20T00:00:00+00:00")
    new = make_record(code_version="2", started_at="2026-11-22T00:00:00+00:00")
    elsewhere = make_record(code_version="3", fingerprint="cuda-0")
    entries = newest_entries(map(entry_of, (new, old, elsewhere)))
    assert [(entry.fingerprint, entry.code_version) for entry in entries] == [("cpu-89abcdef", "2"), ("cuda-0", "3")]


def test_what_a_run_lacks_is_absent_with_its_reason(make_record: MakeRecord) -> None:
    record = make_record(
        status="failed", reason="killed", timing=None, memory=None, accuracy=None, gemms=None,
        missing={"timing": "the pass was killed"},
    )  # fmt: skip
    entry = entry_of(record)
    assert entry.metrics["step_ms"].samples == Absent(reason="the pass was killed")
    assert entry.metrics["peak_allocated_bytes"].samples == Absent(reason="killed")
    assert not is_measured(entry)
    assert is_measured(entry_of(make_record()))
    assert is_measured(dataclasses.replace(entry, status="diverged"))


def test_synthetic_data_has_no_accuracy(make_record: MakeRecord) -> None:
    data = make_record().data
    assert data is not None
    entry = entry_of(make_record(data=dataclasses.replace(data, synthetic=True)))
    assert entry.metrics["test_accuracy_pct"].samples == Absent(reason="synthetic data has no accuracy")


def test_times_are_rounded_far_below_their_noise(make_record: MakeRecord) -> None:
    timing = make_record().timing
    assert timing is not None
    exact = dataclasses.replace(timing.repeats[0], step_ms=(100.123456789, 0.0123456789, 3.0))
    record = make_record(timing=dataclasses.replace(timing, repeats=(exact,)))
    assert entry_of(record).metrics["step_ms"].samples == ((100.123, 0.0123457, 3.0),)


def test_the_excerpt_keeps_all_that_tells_machines_apart(make_record: MakeRecord) -> None:
    block = read_environment(torch.device("cpu"))
    excerpt = entry_of(make_record(environment=block)).environment
    assert describe_differences(block, excerpt) == ()
    assert "package" not in excerpt
    assert "clock_mhz" not in excerpt["cpu"]


def test_a_record_with_a_step_of_no_time_is_refused_by_its_cell(make_record: MakeRecord) -> None:
    record = make_record()
    assert record.timing is not None
    repeats = tuple(dataclasses.replace(repeat, step_ms=(0.0, 1.0)) for repeat in record.timing.repeats)
    broken = dataclasses.replace(record, timing=dataclasses.replace(record.timing, repeats=repeats))
    with pytest.raises(RecordError, match=r"The record of 'demo/metagrad_int4.*'step_ms' .*run its cell again"):
        entry_of(broken)
    first, *others = record.timing.repeats
    uneven = (dataclasses.replace(first, fp32_step_ms=()), *others)
    broken = dataclasses.replace(record, timing=dataclasses.replace(record.timing, repeats=uneven))
    with pytest.raises(RecordError, match="holds no samples of 'fp32_step_ms' in a process"):
        entry_of(broken)
