from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import RecordError
from bench.records.encoding import encode_record
from bench.records.find import Found, find_records, read_records
from bench.records.schema import RunRecord
from bench.records.write import write_record
from tests.records.written import write

MakeRecord = Callable[..., RunRecord]


def test_records_are_found_below_folders_and_bad_ones_named(tmp_path: Path, make_record: MakeRecord) -> None:
    good = [write(tmp_path / "demo" / name, make_record(key=name)) for name in ("a", "b")]
    write(tmp_path / "other" / "deep" / "c", make_record(key="c"))
    write(tmp_path / ".hidden" / "d", make_record(key="d"))
    write(tmp_path / "demo" / "superseded" / "e", make_record(key="e"))
    bad = tmp_path / "demo" / "cut" / "record.json"
    bad.parent.mkdir()
    bad.write_bytes(good[0].read_bytes()[:200])

    found, problems = find_records([tmp_path])
    assert [item.record.key for item in found] == ["a", "b", "c"]
    assert [problem.path for problem in problems] == [bad]
    assert problems[0].unreadable
    assert str(bad) in problems[0].reason
    assert find_records([good[1]])[0] == [Found(good[1], make_record(key="b"))]


def test_a_named_folder_counts_even_if_hidden_or_superseded(tmp_path: Path, make_record: MakeRecord) -> None:
    folder = tmp_path / ".cache" / "superseded"
    write(folder / "run", make_record())
    assert len(find_records([folder])[0]) == 1


def test_a_path_that_does_not_exist_is_a_mistake(tmp_path: Path) -> None:
    for name in ("nowhere", "nul\0byte"):
        with pytest.raises(RecordError, match=r"cannot be read: .*give a folder of runs"):
            find_records([tmp_path / name])


def test_overlapping_paths_and_loops_of_links_find_each_record_once(tmp_path: Path, make_record: MakeRecord) -> None:
    run = tmp_path / "demo" / "run"
    write(run, make_record())
    (run / "loop").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "broken").symlink_to("nowhere")
    found, problems = find_records([tmp_path, tmp_path / "demo", run, run / "record.json"])
    assert [item.path for item in found] == [run / "record.json"]
    assert problems == []


def test_a_copied_run_counts_once(tmp_path: Path, make_record: MakeRecord) -> None:
    write(tmp_path / "a", make_record())
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found, problems = find_records([tmp_path])
    assert [item.path.parent.name for item in found] == ["a"]
    assert problems == []


def test_records_share_what_is_equal_in_them(tmp_path: Path, make_record: MakeRecord) -> None:
    records = [make_record(key=f"{seed}", seed=seed) for seed in (1, 2)]
    for record in records:
        write(tmp_path / record.key, record)
    one, other = (item.record for item in find_records([tmp_path])[0])
    assert [one, other] == records
    assert one.model is other.model
    assert one.environment["torch"] is other.environment["torch"]
    assert one.timing is not other.timing


def test_what_is_taken_from_records_follows_them(tmp_path: Path, make_record: MakeRecord) -> None:
    old, new = make_record(seed=1), make_record(seed=2, started_at="2027-01-01T00:00:00+00:00")
    paths = [
        write_record(tmp_path / name, record, config_yaml="") for name, record in (("a", new), ("b", old), ("c", new))
    ]
    found, problems = read_records([tmp_path], lambda record: record.seed)
    assert found == [(paths[0], 2)]
    assert [(problem.path, problem.unreadable) for problem in problems] == [(paths[1], False)]


@pytest.mark.parametrize("newer", ["a", "b"])
def test_of_two_measurements_with_one_key_the_newer_one_counts(
    tmp_path: Path, make_record: MakeRecord, newer: str
) -> None:
    older = "b" if newer == "a" else "a"
    write(tmp_path / newer, make_record(started_at="2026-11-22T00:00:00+00:00"))
    write(tmp_path / older, make_record(started_at="2026-11-21T00:00:00+00:00"))
    found, problems = find_records([tmp_path])
    assert [item.path.parent.name for item in found] == [newer]
    assert [(problem.path.parent.name, problem.unreadable) for problem in problems] == [(older, False)]


@pytest.mark.parametrize("name", ["with space", "new\nline", "ünïcode", "caf\udce9", "[bold]", "-o", "'\"", "\x1b[31m"])
def test_odd_folder_names_are_read_and_shown(tmp_path: Path, make_record: MakeRecord, name: str) -> None:
    write(tmp_path / name / "good", make_record())
    (tmp_path / name / "bad").mkdir()
    (tmp_path / name / "bad" / "record.json").write_text("{")
    found, problems = find_records([tmp_path])
    assert len(found) == len(problems) == 1
    assert problems[0].reason.isprintable()
    problems[0].reason.encode()


def test_five_thousand_records_are_walked_in_one_go(tmp_path: Path, make_record: MakeRecord) -> None:
    text = encode_record(make_record()).decode()
    for number in range(5000):
        folder = tmp_path / f"{number:04d}"
        folder.mkdir()
        (folder / "record.json").write_text(text.replace("0123456789abcdef", f"{number:016x}", 1))
    found, problems = find_records([tmp_path])
    assert len(found) == 5000
    assert problems == []
