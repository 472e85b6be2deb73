from __future__ import annotations

import random
from pathlib import Path

import pytest

from tools.faults.__main__ import main
from tools.faults.damage import damage_something


def test_damage_is_done_to_what_a_run_reads_again(tmp_path: Path) -> None:
    assert damage_something(tmp_path, random.Random(0)) is None
    files = {
        "checkpoint": "faults/.cell.resume/checkpoints/step-000000000002.ckpt",
        "answer": "faults/.cell.resume/check.answer",
        "weights": "pretrained/net.pt",
        "record": "faults/cell/record.json",
    }
    (tmp_path / files["checkpoint"]).parent.mkdir(parents=True)
    older = tmp_path / files["checkpoint"].replace("2.ckpt", "1.ckpt")
    older.write_bytes(b"older")
    seen = set()
    for seed in range(40):
        for name in files.values():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_bytes(b"0123456789")
        damaged = damage_something(tmp_path, random.Random(seed))
        assert damaged is not None
        kind, path = damaged
        assert path == tmp_path / files[kind]
        changed = [name for name, file in files.items() if (tmp_path / file).read_bytes() != b"0123456789"]
        assert changed == [kind]
        seen.add(kind)
    assert seen == set(files)
    assert older.read_bytes() == b"older", "only the newest checkpoint is damaged"


@pytest.mark.slow
def test_a_sample_of_the_campaign_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--kills", "4", "--only", "endings", "kills", "disk", "--folder", str(tmp_path)])
    output = capsys.readouterr().out
    assert code == 0, output
    assert "4 suites killed" in output
    assert "Everything held." in output
    assert list(tmp_path.iterdir()) == [], "nothing is left"
