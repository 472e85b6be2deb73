from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

import pytest

from bench.locks import device_lock


def test_the_locks_of_one_user_can_be_taken_by_the_next_whatever_the_umask(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = os.umask(0o077)
    try:
        with device_lock("cpu"):
            pass
        with device_lock("cpu"):
            pass
    finally:
        os.umask(before)
    (folder,) = tmp_path.iterdir()
    assert stat.S_IMODE(folder.stat().st_mode) == 0o1777, "everybody may make locks and delete only their own"
    locks = list(folder.iterdir())
    assert all(stat.S_IMODE(lock.stat().st_mode) == 0o666 for lock in locks)
