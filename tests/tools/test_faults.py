from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tools.faults.__main__ import main
from tools.faults.campaign import Campaign
from tools.faults.damage import damage_something
from tools.faults.kept import BEGIN, END, Kept, as_text, quote
from tools.faults.runs import Suite

DOCS = Path(__file__).parents[2] / "docs"


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


class CutError(Exception):
    """The campaign is stopped."""


def campaign_of(folder: Path, path: Path) -> tuple[Campaign, Callable[[], None]]:
    kept = Kept(path, kills=3, seed=0, only=["first", "second"])
    campaign = Campaign(folder, kills=3, seed=0, done=kept.standings)
    return campaign, lambda: kept.write(list(campaign.standings.values()))


def test_a_campaign_that_was_stopped_goes_on_and_one_that_ended_starts_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def first(campaign: Campaign, folder: Path) -> None:
        done.append("first")
        campaign.counts["things"] += 1
        campaign.counts["things that never were"] += 0

    def second(campaign: Campaign, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        while campaign.counts["kills"] < 3:
            campaign.counts["kills"] += 1
            campaign.now.resumable = {"at": campaign.counts["kills"]}
            campaign.keep()
            done.append(f"second {campaign.counts['kills']}")
            if done.count("second 2") == 1 and done[-1] == "second 2":
                raise CutError

    monkeypatch.setattr("tools.faults.campaign.SCENARIOS", {"first": first, "second": second})
    path = tmp_path / "campaign.json"
    campaign, keep = campaign_of(tmp_path, path)
    with pytest.raises(CutError):
        campaign.run(["first", "second"], keep)
    campaign, keep = campaign_of(tmp_path, path)
    assert campaign.wrong == ["second broke off with CutError: "]
    campaign.run(["first", "second"], keep)
    assert done == ["first", "second 1", "second 2", "second 3"]
    written = json.loads(path.read_text(encoding="utf-8"))
    assert (written["ended"], written["sittings"]) == (True, 2)
    assert written["counts"] == {"kills": 3, "things": 1}
    text = as_text(written)
    assert "     3 kills" in text
    assert "never were" not in text
    assert "in 2 sittings" in text
    assert "WRONG: second broke off" in text
    assert campaign_of(tmp_path, path)[0].standings == {}, "a finished one is begun again"


def test_a_page_quotes_the_counts_in_their_place() -> None:
    kept = {
        "started_at": "2026-01-02T03:04:05+00:00", "elapsed_s": 12.3, "sittings": 1,
        "counts": {"kills": 40, "disks filled": 1},
        "machine": {"cores": 2, "python": "3.11.7"}, "wrong": [],
    }  # fmt: skip
    page = quote(f"before\n{BEGIN}old\n{END}after\n", kept)
    assert page == quote(page, kept)
    assert page.splitlines()[2:-2] == [
        "```",
        "2026-01-02: The campaign took 12 s, on 2 cores, Python 3.11.7:",
        "    40 kills",
        "     1 disk filled",
        "Everything held.",
        "```",
    ]


def test_the_docs_quote_the_campaign_that_is_kept() -> None:
    page = (DOCS / "faults.md").read_text(encoding="utf-8")
    kept = DOCS / "faults" / "campaign.json"
    if kept.exists():
        assert quote(page, json.loads(kept.read_text(encoding="utf-8"))) == page
    assert (BEGIN in page, END in page) == (True, True)


def test_a_suite_is_waited_for_by_its_own_cpu_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    work = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'while True: pass'])"
    monkeypatch.setattr("tools.faults.runs._command", lambda *_: [sys.executable, "-c", work])
    suite = Suite(tmp_path)
    assert suite.wait(cpu_s=0.3) is None
    assert suite.cpu_s >= 0.3
    assert len(suite.left()) == 2
    (child,) = (pid for pid in suite.left() if pid != suite.process.pid)
    os.kill(child, signal.SIGKILL)
    assert suite.wait() == 0
    assert suite.left() == []


def test_what_outlives_a_suite_is_measured_by_its_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = "import time; start = time.process_time()\nwhile time.process_time() - start < 2: pass"
    work = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    monkeypatch.setattr("tools.faults.runs._command", lambda *_: [sys.executable, "-c", work])
    suite = Suite(tmp_path)
    assert suite.wait_for(lambda: len(suite.left()) == 2)
    assert 0 < suite.kill() < 3
    assert suite.process.returncode == -signal.SIGKILL


def test_a_suite_ends_with_its_campaign_and_the_next_works_elsewhere(tmp_path: Path) -> None:
    program = (
        "import sys, time, pathlib\n"
        "from tools.faults import runs\n"
        "runs._command = lambda *_: [sys.executable, '-c', 'import time; time.sleep(600)']\n"
        "print(runs.Suite(pathlib.Path('x')).process.pid, flush=True)\n"
        "time.sleep(600)\n"
    )
    campaign = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, cwd=DOCS.parent)
    assert campaign.stdout is not None
    suite = psutil.Process(int(campaign.stdout.readline()))
    campaign.kill()
    campaign.communicate()
    suite.wait(timeout=300)
    works = {Kept(tmp_path / "none.json", kills=1, seed=0, only=["kills"]).work for _ in range(2)}
    assert len(works) == 2


@pytest.mark.slow
def test_a_sample_of_the_campaign_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main(["--kills", "4", "--only", "endings", "kills", "disk", "--folder", str(tmp_path)])
    output = capsys.readouterr().out
    assert code == 0, output
    assert "4 suites killed" in output
    assert "Everything held." in output
    assert [path.name for path in tmp_path.iterdir()] == ["campaign.json"], "nothing else is left"
