from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import msgspec
import pytest

from bench.files import write_sealed
from bench.journal import Journal
from bench.process import PassOutcome

OWNER = "0123456789abcdef cpu"


def some_pass() -> dict[str, int]:
    raise AssertionError("a kept answer is read, the pass does not run")


def answered(peak_bytes: int) -> PassOutcome:
    return PassOutcome(status="ok", reason="", value={"peak_bytes": peak_bytes}, traceback="", duration_s=1.0)


def test_a_kept_answer_is_read_by_the_pass_that_gave_it_alone(tmp_path: Path) -> None:
    journal = Journal(tmp_path, owner=OWNER)
    journal.write("memory", answered(3))
    journal.write("memory of FP32", answered(7))
    assert journal.read("memory", some_pass) == answered(3)
    shutil.copy(tmp_path / "memory.answer", tmp_path / "memory-of-FP32.answer")
    assert journal.read("memory of FP32", some_pass) is None, "the copy is another pass's"
    assert Journal(tmp_path, owner="another cell").read("memory", some_pass) is None
    assert journal.notices == []


def test_what_cannot_be_deleted_is_left_aside_by_a_fresh_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Journal(tmp_path, owner=OWNER).write("memory", answered(3))

    def refuse(folder: Path) -> None:
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY), str(folder))

    fresh = Journal(tmp_path, owner=OWNER)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", refuse)
        fresh.remove()
    assert fresh.read("memory", some_pass) is None
    assert fresh.owner != OWNER, "nor are its checkpoints this training's"
    assert "could not be deleted and was left aside" in fresh.notices[0]
    fresh.write("memory", answered(7))
    assert fresh.read("memory", some_pass) == answered(7)


def test_an_answer_nested_without_end_is_damaged(tmp_path: Path) -> None:
    journal = Journal(tmp_path, owner=OWNER)
    journal.write("check", answered(1))
    entry = {"owner": OWNER, "name": "check", "status": "ok", "reason": "", "duration_s": 1.0}
    deep = msgspec.Raw(b"\x91" * 100_000 + b"\xc0")
    write_sealed(tmp_path / "check.answer", msgspec.msgpack.encode(entry | {"value": deep}))
    assert journal.read("check", some_pass) is None
    assert "check pass is damaged, so the pass ran again" in journal.notices[0]
