from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bench.errors import RecordError
from bench.records.encoding import encode_record
from bench.records.find import find_records
from bench.records.plausible import find_implausible
from bench.records.read import read_record
from bench.records.schema import RunRecord
from bench.records.write import write_record
from tests.edited_records import edit_record
from tests.records.written import write

MakeRecord = Callable[..., RunRecord]


def test_a_record_in_which_a_digit_changed_on_the_disk_is_refused(tmp_path: Path, make_record: MakeRecord) -> None:
    path = write_record(tmp_path, make_record(), config_yaml="seed: 0\n")
    data = path.read_bytes()
    assert read_record(path) == make_record()
    path.write_bytes(data.replace(b'"seed": 0', b'"seed": 1', 1))
    with pytest.raises(RecordError, match="not what was written"):
        read_record(path)
    path.write_bytes(encode_record(make_record()))
    assert read_record(path) == make_record(), "a record of before carries no SHA-256"


@pytest.mark.parametrize(
    ("place", "value", "said"),
    [
        (("timing", "repeats", 0, "step_ms", 1), 0.0, "timing.repeats[0].step_ms[1] is 0"),
        (("timing", "fp32_step_ms", "median"), 5e-324, "timing.fp32_step_ms.median is 4.94066e-324"),
        (("timing", "time_vs_fp32", "low"), 0.0, "timing.time_vs_fp32 is"),
        (("timing", "phases_ms", "meta", "q3"), 1e300, "timing.phases_ms.meta.q3 is 1e+300"),
        (("memory", "peak_allocated_bytes"), -1, "memory.peak_allocated_bytes is -1"),
        (("accuracy", "steps"), 10**30, "accuracy.steps is 1e+30"),
        (("accuracy", "epochs"), 10**400, "accuracy.epochs is beyond all bounds"),
        (("duration_s",), 1e13, "duration_s is 1e+13"),
    ],
)
def test_a_number_that_nothing_can_measure_is_damage_where_no_sha256_vouches_for_it(
    place: tuple[str | int, ...], value: float, said: str, tmp_path: Path, make_record: MakeRecord
) -> None:
    def change(content: Any) -> None:
        for part in place[:-1]:
            content = content[part]
        content[place[-1]] = value

    path = edit_record(write_record(tmp_path, make_record(), config_yaml=""), change)
    with pytest.raises(RecordError, match=f"is damaged: {re.escape(said)}.*, which nothing can measure; run its cell"):
        read_record(path)
    assert "nothing can measure" in find_records([tmp_path])[1][0].reason


def test_what_was_measured_in_earnest_is_plausible() -> None:
    paths = sorted((Path(__file__).parents[2] / "docs" / "demo").glob("*/record.json"))
    assert paths
    assert [found for path in paths if (found := find_implausible(read_record(path)))] == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"{", "is not valid JSON .cut off"),
        (b'{"schema_version": 1, "key": "x", ', "is not valid JSON .cut off"),
        (b"\xff\xfe", "is not valid JSON"),
        (b'{"schema_version": 1, "key": "\xff"}', "is (not valid JSON|damaged)"),
        (b"[1, 2]", "is not a record of metagrad-bench"),
        (b"3", "is not a record of metagrad-bench"),
        (b"null", "is not a record of metagrad-bench"),
        (b"{}", "is not a record of metagrad-bench"),
        (b'{"schema_version": 1}', "is not a record of metagrad-bench"),
        (b'{"schema_version": "1", "key": "x"}', "is not a record of metagrad-bench"),
        (b'{"schema_version": true, "key": "x"}', "is not a record of metagrad-bench"),
        (b'{"schema_version": 0, "key": "x"}', "is not a record of metagrad-bench"),
        (b'{"schema_version": 2, "key": "x"}', r"has schema version 2 .* up to 1 can be read; update"),
        (b'{"schema_version": 99999999999999999999999, "key": "x"}', r"has schema version 9+ "),
        (b'{"schema_version": 1, "key": "x"}', "is damaged: Object missing required field `suite`"),
        (b"[" * 100_000, "is not a record"),
        (b'{"schema_version": 1, "key": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "is (damaged|not a record)"),
        (b'{"schema_version": 1, "key": "x", "cell": {"a":' + b'{"a":' * 100_000 + b"}" * 100_001 + b"}", "is "),
    ],
)
def test_a_file_that_is_no_record_says_what_it_is(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "record.json"
    path.write_bytes(content)
    with pytest.raises(RecordError, match=message) as caught:
        read_record(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda content: content["timing"]["repeats"][1].update(step_ms=["fast"]), r"\$\.timing\.repeats\[1\]"),
        (lambda content: content["timing"]["step_ms"].update(n=1.5), r"`int`, got `float` - .*timing\.step_ms\.n`"),
        (lambda content: content.update(status="great"), r"Invalid enum value 'great' - at `\$\.status`"),
        (lambda content: content["memory"].update(peak_allocated_bytes={"why": 1}), r"memory\.peak_allocated_bytes"),
        (lambda content: content.update(seed=True), r"`int`, got `bool` - at `\$\.seed`"),
        (lambda content: content.pop("fingerprint"), r"missing required field `fingerprint`"),
    ],
)  # fmt: skip
def test_a_wrong_value_is_named_by_its_place(
    tmp_path: Path, make_record: MakeRecord, change: Callable[[Any], None], message: str
) -> None:
    path = edit_record(write(tmp_path / "run", make_record()), change)
    with pytest.raises(RecordError, match=f"is damaged: .*{message}"):
        read_record(path)


def test_a_record_that_another_program_laid_out_anew_still_has_to_be_what_was_written(
    tmp_path: Path, make_record: MakeRecord
) -> None:
    record = make_record()
    path = write(tmp_path / "run", record)
    written = path.read_bytes()
    assert b'"sha256"' in written
    edit_record(path, lambda content: None, keep_seal=True)
    assert path.read_bytes() != written
    assert read_record(path) == record
    for change in (
        lambda content: content["timing"]["step_ms"].update(median=content["timing"]["step_ms"]["median"] * 0.9),
        lambda content: content.update(sha256="0" * 64),
        lambda content: content.update(sha256=None),
    ):
        path.write_bytes(written)
        edit_record(path, change, keep_seal=True)
        with pytest.raises(RecordError, match="is damaged: it is not what was written"):
            read_record(path)


def test_a_seal_that_stands_elsewhere_in_a_changed_record_is_looked_at(tmp_path: Path, make_record: MakeRecord) -> None:
    path = write(tmp_path / "run", make_record(cell={"sha256": "a setting of that name"}))
    assert read_record(path).cell == {"sha256": "a setting of that name"}
    content = json.loads(path.read_text())
    first = {"sha256": content.pop("sha256")} | content | {"seed": 7}
    path.write_text(json.dumps(first, indent=2))
    with pytest.raises(RecordError, match="its SHA-256 differs"):
        read_record(path)
    edit_record(path, lambda content: None)
    assert read_record(path).seed == 7, "without a seal, as an older version wrote it"


def test_nan_and_overflow_in_a_file_are_damage(tmp_path: Path, make_record: MakeRecord) -> None:
    path = tmp_path / "record.json"
    text = encode_record(make_record(duration_s=123456.5)).decode()
    for value, message in (
        ("NaN", "not valid JSON"),
        ("1e999", "damaged: Number out of range"),
        ("1" + "0" * 500, "damaged"),
    ):
        path.write_text(text.replace("123456.5", value))
        with pytest.raises(RecordError, match=message):
            read_record(path)


def test_a_record_of_the_next_schema_that_still_decodes_is_refused(tmp_path: Path, make_record: MakeRecord) -> None:
    path = edit_record(write(tmp_path / "run", make_record()), lambda content: content.update(schema_version=2))
    with pytest.raises(RecordError, match="update metagrad-bench"):
        read_record(path)


def test_a_pipe_or_folder_named_like_a_record_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "record.json")
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "record.json").mkdir()
    found, problems = find_records([tmp_path])
    assert found == []
    assert ["is not a regular file" in problem.reason for problem in problems] == [True, True]
