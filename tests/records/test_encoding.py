from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.errors import RecordError
from bench.records import schema
from bench.records.encoding import encode_record
from bench.records.read import read_record
from bench.records.schema import RunRecord
from bench.records.text import sealed
from bench.units import Absent
from tests.records.written import write

MakeRecord = Callable[..., RunRecord]

finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(min_value=0, max_value=2**63 - 1)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
absents = st.builds(Absent, reason=texts)
summaries = st.builds(schema.Summary, median=finite, q1=finite, q3=finite, n=counts)
samples = st.lists(finite, max_size=4).map(tuple)


def repeats() -> st.SearchStrategy[schema.TimingRepeat]:
    return st.builds(
        schema.TimingRepeat,
        step_ms=samples,
        fp32_step_ms=samples,
        phases_ms=st.dictionaries(texts, samples, max_size=3),
        throttled=st.booleans() | absents,
    )


def timings() -> st.SearchStrategy[schema.TimingResult]:
    return st.builds(
        schema.TimingResult,
        batch_size=counts,
        warmup_steps=counts,
        repeats=st.lists(repeats(), max_size=3).map(tuple),
        step_ms=summaries,
        fp32_step_ms=summaries,
        time_vs_fp32=st.builds(schema.Interval, value=finite, low=finite, high=finite),
        phases_ms=st.dictionaries(texts, summaries, max_size=2),
        phase_share_pct=st.dictionaries(texts, finite, max_size=2),
    )


def memories() -> st.SearchStrategy[schema.MemoryResult]:
    names = [field.name for field in dataclasses.fields(schema.MemoryResult)]
    phases = st.builds(
        schema.MemoryPhase, phase=texts, peak_bytes=counts, categories=st.dictionaries(texts, counts, max_size=2),
        layer=texts, allocator_bytes=counts | absents,
    )  # fmt: skip
    layers = st.builds(
        schema.LayerMemory, name=texts, kept_bytes=counts, forward_extra_bytes=counts, backward_extra_bytes=counts
    )
    others = {
        "phases_missing": st.dictionaries(texts, texts, max_size=2),
        "phases": st.lists(phases, max_size=2).map(tuple) | absents,
        "layers": st.lists(layers, max_size=2).map(tuple) | absents,
        "snapshot": texts | absents,
    }
    return st.builds(schema.MemoryResult, **(dict.fromkeys(names, counts | absents) | others))


def json_values() -> st.SearchStrategy[Any]:
    leaves = st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | finite | texts
    return st.recursive(leaves, lambda inner: st.lists(inner) | st.dictionaries(texts, inner), max_leaves=8)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    timing=st.none() | timings(),
    memory=st.none() | memories(),
    cell=st.dictionaries(texts, json_values(), max_size=4),
    missing=st.dictionaries(texts, texts, max_size=2),
    notices=st.lists(texts, max_size=3).map(tuple),
    hidden=counts | absents,
)
def test_any_record_survives_encoding(
    tmp_path: Path, make_record: MakeRecord, hidden: int | Absent, **parts: Any
) -> None:
    record = make_record(**parts)
    record = dataclasses.replace(record, method=dataclasses.replace(record.method, hidden=hidden))
    path = tmp_path / "record.json"
    path.write_bytes(sealed(encode_record(record)))
    assert read_record(path) == record


def test_a_list_of_numbers_takes_one_line(make_record: MakeRecord) -> None:
    record = make_record(cell={"text": "[1,2,\n3]", "empty": [], "nested": [[1, 2], [3]]})
    text = encode_record(record).decode()
    assert '"step_ms": [101.0, 99.0, 100.0, 102.0]' in text
    assert json.loads(text)["cell"] == record.cell
    assert text.endswith("}\n")


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path, make_record: MakeRecord, value: float) -> None:
    record = make_record()
    assert record.accuracy is not None
    point = dataclasses.replace(record.accuracy.curve[1], train_loss=value)
    bad = dataclasses.replace(record, accuracy=dataclasses.replace(record.accuracy, curve=(point,)))
    with pytest.raises(RecordError, match=r"\$\.accuracy\.curve\[0\]\.train_loss of the record is (nan|-?inf)"):
        write(tmp_path / "run", bad)
    assert not (tmp_path / "run").exists()


def test_a_lone_surrogate_is_refused_by_name(make_record: MakeRecord) -> None:
    with pytest.raises(RecordError, match=r"\$\.cell\.path of the record is not valid Unicode"):
        encode_record(make_record(cell={"path": "caf\udce9"}))


def test_a_value_that_is_no_plain_number_is_a_programming_error(make_record: MakeRecord) -> None:
    with pytest.raises(AssertionError, match=r"\$\.cell\.x is a complex"):
        encode_record(make_record(cell={"x": 1j}))
    with pytest.raises(AssertionError, match=r"must read back: .*\$\.seed"):
        encode_record(make_record(seed="zero"))
