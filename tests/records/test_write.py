from __future__ import annotations

import csv
import json
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from bench.errors import RecordError
from bench.records.encoding import encode_record
from bench.records.read import read_record
from bench.records.schema import RunRecord
from bench.records.write import write_atomic, write_record
from tests.records.written import write

MakeRecord = Callable[..., RunRecord]


def test_a_record_reads_back_as_it_was_written(tmp_path: Path, make_record: MakeRecord) -> None:
    record = make_record()
    path = write(tmp_path / "out" / "demo" / "run", record)
    assert path.name == "record.json"
    assert read_record(path) == record
    assert (path.parent / "config.yaml").read_text() == "seed: 0\n"
    assert sorted(child.name for child in path.parent.iterdir()) == ["config.yaml", "record.json", "samples.csv"]


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
        "from bench.records.read import read_record\n"
        "from bench.records.write import write_record\n"
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
        timeout=300,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("The file run/record.json cannot be written: File too large; free space or ")
    assert done.stderr.count("\n") == 1
    assert sorted(child.name for child in (tmp_path / "run").iterdir()) == ["config.yaml", "samples.csv"]


def test_a_run_that_was_cut_off_before_its_record_can_be_written_again(tmp_path: Path, make_record: MakeRecord) -> None:
    write(tmp_path / "run", make_record(seed=3)).unlink()
    assert read_record(write(tmp_path / "run", make_record())).seed == 0
