from __future__ import annotations

import dataclasses
import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.errors import RecordError
from bench.hardware.environment import describe_differences, read_environment
from bench.records.baseline import (
    BASELINE_VERSION,
    Baseline,
    encode_baseline,
    entry_of,
    is_measured,
    newest_entries,
    read_baseline,
    write_baseline,
)
from bench.records.schema import RunRecord
from bench.records.text import pretty_json
from bench.units import Absent

MakeRecord = Callable[..., RunRecord]


def edited(path: Path, change: Callable[[Any], None]) -> Path:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path


@pytest.fixture
def written(tmp_path: Path, make_record: MakeRecord) -> Path:
    write_baseline(tmp_path / "baseline.json", [entry_of(make_record())])
    return tmp_path / "baseline.json"


def test_a_baseline_holds_raw_samples_per_repeat_under_names_with_units(written: Path, make_record: MakeRecord) -> None:
    content = json.loads(written.read_text())
    assert content["schema_version"] == 2
    assert content["created"] == "2026-11-21T12:00:00+00:00"
    (entry,) = content["entries"]
    metrics = entry["metrics"]
    assert metrics["step_ms"]["samples"][0] == [101.0, 99.0, 100.0, 102.0]
    assert len(metrics["forward_ms"]["samples"]) == 3
    assert metrics["peak_allocated_bytes"]["samples"] == [[40 * 1024**2]]
    assert metrics["test_accuracy_pct"]["samples"] == [[95.0]]
    assert metrics["integer_share_pct"]["samples"] == [[100.0]]
    names = ("suite", "variant", "model", "data", "seed", "fingerprint")
    expected = ["demo", "metagrad_int4_recompute", "resnet20", "digits", 0, "cpu-89abcdef"]
    assert [entry[name] for name in names] == expected
    assert entry["environment"]["torch"]["version"] == "2.13.0+cpu"


def test_a_baseline_reads_back_and_takes_one_line_per_repeat(written: Path, make_record: MakeRecord) -> None:
    assert list(read_baseline(written).entries) == [entry_of(make_record())]
    assert "            [101.0, 99.0, 100.0, 102.0],\n" in written.read_text()


def test_the_same_records_give_the_same_bytes_in_any_order(make_record: MakeRecord) -> None:
    records = [make_record(variant=name, cell={"variant_name": name}) for name in "abc"]
    entries = [entry_of(record) for record in records]
    files = {b"".join(encode_baseline(newest_entries(order))) for order in itertools.permutations(entries)}
    assert len(files) == 1
    (content,) = files
    assert [entry["variant"] for entry in json.loads(content)["entries"]] == ["a", "b", "c"]
    whole = Baseline(schema_version=BASELINE_VERSION, created=records[0].started_at, entries=tuple(entries))
    assert content == pretty_json(msgspec.json.encode(whole)), "written entry by entry, it reads as written at once"


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
    from bench.records.baseline import config_digest

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


def test_a_metric_that_is_absent_survives(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record(memory=None, missing={"memory": "not asked for"})
    write_baseline(tmp_path / "b.json", [entry_of(record)])
    assert list(read_baseline(tmp_path / "b.json").entries) == [entry_of(record)]


def test_a_baseline_is_replaced_atomically_and_through_a_link(tmp_path: Path, make_record: MakeRecord) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "real" / "b.json")
    for seed in (0, 1):
        write_baseline(tmp_path / "link.json", [entry_of(make_record(seed=seed))])
    assert (tmp_path / "link.json").is_symlink()
    assert read_baseline(tmp_path / "real" / "b.json").entries[0].seed == 1
    assert [child.name for child in (tmp_path / "real").iterdir()] == ["b.json"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"{", "is not valid JSON"),
        (b"[]", "is not a baseline of metagrad-bench"),
        (b'{"name": "package", "version": 3}', "is not a baseline of metagrad-bench"),
        (b'{"schema_version": 1, "key": "a record"}', "is not a baseline of metagrad-bench"),
        (b'{"schema_version": 3, "created": "", "entries": []}', "has schema version 3 .*update"),
        (b'{"schema_version": 7, "entries": 3}', "has schema version 7 .*update"),
        (b'{"schema_version": 1, "entries": [{}]}', "version 1 of an older metagrad-bench; write it again with `meta"),
        (b'{"schema_version": 0, "created": "", "entries": []}', "version 0 of an older metagrad-bench"),
        (b'{"created": "", "entries": []}', "is not a baseline"),
        (b'{"schema_version": 2, "created": "", "entries": {}}', r"damaged: Expected `array`.*\$\.entries"),
        (b'{"schema_version": 2, "created": "", "entries": [3]}', r"damaged: .*\$\.entries\[0\]"),
        (b'{"schema_version": 2, "schema_version": 2, "created": "", "entries": []}', "'schema_version' stands twice"),
        (b'{"schema_version": 2, "created": "", "entries": ' + b"[" * 100_000, "is (damaged|not )"),
        (b'{"schema_version": 2, "created": "", "entries": [], "x": ' + b"[" * 9000 + b"]" * 9000 + b"}", "is "),
        (b"{" + b'"a":{' * 100_000, "is not "),
    ],
)
def test_a_file_that_is_no_baseline_says_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "b.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=message) as caught:
        read_baseline(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda entry: entry["metrics"]["step_ms"].update(samples=[]), "no samples of 'step_ms'"),
        (lambda entry: entry["metrics"]["step_ms"].update(samples=[[1.0], []]), "no samples of 'step_ms'"),
        (lambda entry: entry["metrics"]["step_ms"].update(samples=[["x"]]), r"\$\.entries\[0\]\.metrics"),
        (lambda entry: entry["metrics"]["step_ms"].update(samples=[[10**400]]), "is no finite number"),
        (lambda entry: entry["metrics"]["step_ms"].update(samples=[[True]]), "`int | float`, got `bool`"),
        (lambda entry: entry.update(status="fine"), r"Invalid enum value 'fine'"),
        (lambda entry: entry.update(seed="0"), r"\$\.entries\[0\]\.seed"),
        (lambda entry: entry["config"].update(seed=9), "does not belong to its config_digest"),
        (lambda entry: entry.pop("metrics"), "missing required field `metrics`"),
    ],
)
def test_damage_is_named_by_its_place(written: Path, change: Callable[[Any], None], message: str) -> None:
    edited(written, lambda content: change(content["entries"][0]))
    with pytest.raises(RecordError, match=f"is damaged: .*{message}"):
        read_baseline(written)


def test_a_number_that_is_not_finite_is_damage(written: Path) -> None:
    text = written.read_text()
    for value in ("NaN", "Infinity", "1e999"):
        written.write_text(text.replace("[101.0,", f"[{value},"))
        with pytest.raises(RecordError, match=r"is (damaged|not valid JSON)"):
            read_baseline(written)


@pytest.mark.parametrize(
    ("metric", "value"),
    [
        ("step_ms", 0.0), ("step_ms", -1.0), ("fp32_step_ms", 0.0), ("forward_ms", -0.1), ("backward_ms", 1e300),
        ("peak_allocated_bytes", 0), ("peak_process_bytes", -5), ("hypernet_extra_process_bytes", -1e300),
        ("test_accuracy_pct", 300.0),
        ("integer_share_pct", -1.0),
    ],
)  # fmt: skip
def test_a_sample_that_nothing_can_measure_is_damage(written: Path, metric: str, value: float) -> None:
    path = edited(written, lambda content: content["entries"][0]["metrics"][metric]["samples"][0].append(value))
    with pytest.raises(RecordError, match=rf"`\$\.entries\[0\]` holds a sample of '{metric}' that nothing can measure"):
        read_baseline(path)


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


def test_extra_bytes_below_zero_and_a_phase_of_no_time_are_read(written: Path) -> None:
    def change(content: Any) -> None:
        metrics = content["entries"][0]["metrics"]
        metrics["hypernet_extra_process_bytes"]["samples"] = [[-4096]]
        metrics["data_ms"]["samples"][0][0] = 0.0

    (entry,) = read_baseline(edited(written, change)).entries
    assert entry.metrics["hypernet_extra_process_bytes"].samples == ((-4096,),)


def test_two_entries_for_one_cell_and_machine_are_damage(written: Path) -> None:
    edited(written, lambda content: content["entries"].append(content["entries"][0]))
    with pytest.raises(RecordError, match=r"`\$\.entries\[1\]` is a second entry for 'demo/metagrad_int4_recompute"):
        read_baseline(written)


def test_a_key_that_a_merge_left_twice_is_damage(written: Path) -> None:
    text = written.read_text()
    written.write_text(text.replace('"seed": 0,', '"seed": 0, "seed": 0,', 1))
    with pytest.raises(RecordError, match="the key 'seed' stands twice"):
        read_baseline(written)
    entries = text[text.index('"entries"') : text.rindex("\n}")]
    written.write_text(text.replace(entries, f"{entries},\n  {entries}"))
    with pytest.raises(RecordError, match="the key 'entries' stands twice"):
        read_baseline(written)


def test_entries_share_what_is_equal_in_them(written: Path, make_record: MakeRecord) -> None:
    (entry,) = read_baseline(written).entries
    other = entry_of(make_record(seed=1))
    assert entry.environment["torch"] is other.environment["torch"]
    assert other.environment == entry.environment


def test_a_folder_or_pipe_is_no_baseline(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/null")):
        with pytest.raises(RecordError, match="is not a regular file"):
            read_baseline(path)
