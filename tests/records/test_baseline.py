from __future__ import annotations

import itertools
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from bench.errors import RecordError
from bench.records.baseline import BASELINE_VERSION, Baseline, encode_baseline, read_baseline, write_baseline
from bench.records.entry import entry_of, newest_entries
from bench.records.schema import RunRecord
from bench.records.text import pretty_json

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
