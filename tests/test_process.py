from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bench.errors import DataError, DivergedError
from bench.process import PassOutcome, run_pass

# The functions below run in fresh processes, which import them by name from a module of their own.
SOURCE = """
import os, signal, time
from bench.errors import DataError, DivergedError

def add(*, report, a, b):
    report({"phase": "adding", "done": 1, "total": 1})
    return a + b

def pid(*, report):
    return os.getpid()

def diverge(*, report):
    error = DivergedError("the loss is nan")
    error.partial = [1.0]
    raise error

def bad_data(*, report):
    raise DataError("no such file")

def bug(*, report):
    return {}["missing"]

def eat_memory(*, report):
    raise MemoryError

def torch_memory(*, report):
    import torch
    torch.empty(2**60)

def crash(*, report):
    os.kill(os.getpid(), signal.SIGSEGV)

def be_killed(*, report):
    os.kill(os.getpid(), signal.SIGKILL)

def leave(*, report):
    os._exit(7)

def hang(*, report, marker=None):
    if marker:
        open(marker, "w").write(str(os.getpid()))
    time.sleep(600)
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "pass_functions.py").write_text(SOURCE, encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield importlib.import_module("pass_functions")
    sys.modules.pop("pass_functions", None)


def run(function: Any, limit_s: float = 120.0, **arguments: Any) -> PassOutcome:
    return run_pass(function, arguments, limit_s=limit_s, on_progress=lambda update: None)


def test_a_pass_answers_from_a_process_of_its_own_and_reports_progress(functions: Any) -> None:
    seen: list[dict[str, Any]] = []
    outcome = run_pass(functions.add, {"a": 2, "b": 3}, limit_s=120, on_progress=seen.append)
    assert (outcome.status, outcome.value, outcome.reason) == ("ok", 5, "")
    assert seen == [{"phase": "adding", "done": 1, "total": 1}]
    pids = {run(functions.pid).value for _ in range(2)}
    assert len(pids) == 2
    assert os.getpid() not in pids


def test_divergence_is_a_result_and_keeps_what_was_measured(functions: Any) -> None:
    outcome = run(functions.diverge)
    assert (outcome.status, outcome.value, outcome.traceback) == ("diverged", [1.0], "")


def test_a_users_mistake_keeps_its_sentence_and_a_bug_its_traceback(functions: Any) -> None:
    mistake, bug = run(functions.bad_data), run(functions.bug)
    assert (mistake.status, mistake.reason, mistake.traceback) == ("failed", "no such file", "")
    assert bug.status == "failed"
    assert "KeyError" in bug.reason
    assert "in bug" in bug.traceback


@pytest.mark.parametrize("name", ["eat_memory", "torch_memory"])
def test_running_out_of_memory_has_a_status_of_its_own(functions: Any, name: str) -> None:
    outcome = run(getattr(functions, name))
    assert outcome.status == "out_of_memory"
    assert "memory" in outcome.reason


def test_a_crash_is_named_by_its_signal_and_an_exit_by_its_code(functions: Any) -> None:
    crash, leave, killed = run(functions.crash), run(functions.leave), run(functions.be_killed)
    assert (crash.status, leave.status, killed.status) == ("crashed", "crashed", "killed")
    assert "SIGSEGV" in crash.reason
    assert "exit code 7" in leave.reason
    assert "SIGKILL" in killed.reason


def test_a_pass_that_hangs_is_ended_after_its_limit(functions: Any) -> None:
    outcome = run(functions.hang, limit_s=1.0)
    assert outcome.status == "timed_out"
    assert "pass_limit_s=1" in outcome.reason


def test_a_child_does_not_outlive_a_killed_parent(functions: Any, tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    code = (
        "import sys; from bench.process import run_pass; import pass_functions as f\n"
        f"run_pass(f.hang, {{'marker': {str(marker)!r}}}, limit_s=600, on_progress=print)\n"
    )
    script = tmp_path / "parent.py"
    script.write_text(f"if __name__ == '__main__':\n    {code.splitlines()[0]}\n    {code.splitlines()[1]}\n")
    parent = subprocess.Popen([sys.executable, str(script)], cwd=tmp_path)
    child = int(wait_for(lambda: marker.read_text() if marker.exists() else ""))
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_for(lambda: "gone" if not alive(child) else "") == "gone"


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(read: Any, limit_s: float = 60.0) -> str:
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        value = read()
        if value:
            return str(value)
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def test_errors_carry_their_kind() -> None:
    assert DivergedError("x").partial is None
    assert DataError("x").exit_code == 2
