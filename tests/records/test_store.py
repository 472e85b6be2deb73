from __future__ import annotations

import csv
import dataclasses
import json
import math
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bench.errors import RecordError
from bench.records import schema
from bench.records.schema import RunRecord
from bench.records.store import (
    Found,
    encode_record,
    find_records,
    read_record,
    read_records,
    write_atomic,
    write_record,
)
from bench.units import Absent
from tests.edited_records import edit_record

MakeRecord = Callable[..., RunRecord]

finite = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(min_value=0, max_value=2**63 - 1)
texts = st.text(st.characters(exclude_categories=("Cs",)), max_size=12)
absents = st.builds(Absent, reason=texts)
summaries = st.builds(schema.Summary, median=finite, q1=finite, q3=finite, n=counts)
samples = st.lists(finite, max_size=4).map(tuple)
PLAIN_TYPES: dict[Any, st.SearchStrategy[Any]] = {float: finite, int: counts, str: texts, Absent: absents}


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


def write(folder: Path, record: RunRecord) -> Path:
    return write_record(folder, record, config_yaml="seed: 0\n")


def test_a_record_reads_back_as_it_was_written(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record()
    path = write(tmp_path / "out" / "demo" / "run", record)
    assert path.name == "record.json"
    assert read_record(path) == record
    assert (path.parent / "config.yaml").read_text() == "seed: 0\n"
    assert sorted(child.name for child in path.parent.iterdir()) == ["config.yaml", "record.json", "samples.csv"]


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
    path.write_bytes(encode_record(record))
    assert read_record(path) == record


def test_a_parts_absence_survives_with_its_reason(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record(accuracy=None, timing=None, status="failed", reason="killed", missing={"timing": "killed"})
    path = write(tmp_path / "run", record)
    assert read_record(path) == record
    assert not (path.parent / "samples.csv").exists()
    absent = json.loads(path.read_text())["memory"]["peak_reserved_bytes"]
    assert absent == {"reason": "only CUDA's allocator reserves"}


def test_samples_are_one_flat_table(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record()
    assert record.timing is not None
    write(tmp_path / "run", record)
    with (tmp_path / "run" / "samples.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert len(rows) == 3 * (4 + 4 + 6 * 4)
    assert rows[0] == {"repeat": "0", "index": "0", "series": "cell", "metric": "step_ms", "value": "101.0"}
    reference = [float(row["value"]) for row in rows if (row["repeat"], row["series"]) == ("2", "fp32")]
    assert tuple(reference) == record.timing.repeats[2].fp32_step_ms
    assert {row["metric"] for row in rows if row["series"] == "cell"} >= {"step_ms", "forward_ms", "meta_ms"}


def test_a_list_of_numbers_takes_one_line(make_record: MakeRecord) -> None:
    record = make_record(cell={"text": "[1,2,\n3]", "empty": [], "nested": [[1, 2], [3]]})
    text = encode_record(record).decode()
    assert '"step_ms": [101.0, 99.0, 100.0, 102.0]' in text
    assert json.loads(text)["cell"] == record.cell
    assert text.endswith("}\n")


def test_a_record_in_which_a_digit_changed_on_the_disk_is_refused(tmp_path: Path, make_record: MakeRecord) -> None:
    path = write_record(tmp_path, make_record(), config_yaml="seed: 0\n")
    data = path.read_bytes()
    assert read_record(path) == make_record()
    path.write_bytes(data.replace(b'"seed": 0', b'"seed": 1', 1))
    with pytest.raises(RecordError, match="not what was written"):
        read_record(path)
    path.write_bytes(encode_record(make_record()))
    assert read_record(path) == make_record(), "a record of before carries no SHA-256"


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


def test_a_record_is_never_overwritten(tmp_path: Path, make_record: MakeRecord) -> None:
    path = write(tmp_path / "run", make_record())
    before = {child.name: child.read_bytes() for child in path.parent.iterdir()}
    with pytest.raises(RecordError, match=r"record\.json exists already and is never overwritten"):
        write_record(path.parent, make_record(seed=1), config_yaml="seed: 1\n")
    assert {child.name: child.read_bytes() for child in path.parent.iterdir()} == before


def test_of_two_writers_at_once_one_wins_and_the_other_is_told(tmp_path: Path) -> None:
    target, outcomes, gate = tmp_path / "record.json", [], threading.Barrier(8)

    def claim(number: int) -> None:
        gate.wait()
        try:
            write_atomic(target, str(number).encode(), replace=False)
            outcomes.append(number)
        except RecordError:
            pass

    threads = [threading.Thread(target=claim, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [target.read_text()] == [str(number) for number in outcomes]
    assert [child.name for child in tmp_path.iterdir()] == ["record.json"]


def test_a_file_where_the_folder_should_be_is_one_sentence(tmp_path: Path, make_record: MakeRecord) -> None:
    (tmp_path / "out").write_text("in the way")
    for folder in (tmp_path / "out", tmp_path / "out" / "demo" / "run"):
        with pytest.raises(RecordError, match=r"record\.json cannot be written: (File exists|Not a directory); "):
            write(folder, make_record())
    assert [child.name for child in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_vanished_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot be written: No such file or directory"):
        write_atomic(tmp_path / "gone" / "record.json", b"{}", replace=True)


def test_a_folder_in_the_way_of_the_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "samples.csv").mkdir()
    with pytest.raises(RecordError, match=r"samples\.csv cannot be written: Is a directory"):
        write_atomic(tmp_path / "samples.csv", b"", replace=True)
    assert [child.name for child in tmp_path.iterdir()] == ["samples.csv"]


def test_a_full_disk_leaves_nothing_half_written(tmp_path: Path, make_record: MakeRecord) -> None:
    whole = len(encode_record(make_record()))
    (tmp_path / "data.json").write_bytes(encode_record(make_record()))
    script = (
        "import sys; from pathlib import Path\n"
        "from bench.errors import RecordError\n"
        "from bench.records.store import read_record, write_record\n"
        "record = read_record(Path('data.json'))\n"
        "try: write_record(Path('run'), record, config_yaml='seed: 0')\n"
        "except RecordError as error: sys.exit(str(error))\n"
    )
    samples_fit_but_record_does_not = whole - 1

    def limit_file_size() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (samples_fit_but_record_does_not,) * 2)

    done = subprocess.run(
        [sys.executable, "-B", "-c", script],
        cwd=tmp_path,
        preexec_fn=limit_file_size,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("The file run/record.json cannot be written: File too large; free space or ")
    assert done.stderr.count("\n") == 1
    assert sorted(child.name for child in (tmp_path / "run").iterdir()) == ["config.yaml", "samples.csv"]


def test_a_run_that_was_cut_off_before_its_record_can_be_written_again(tmp_path: Path, make_record: MakeRecord) -> None:
    write(tmp_path / "run", make_record(seed=3)).unlink()
    assert read_record(write(tmp_path / "run", make_record())).seed == 0


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
