from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import process
from bench.errors import DataError, DivergedError
from bench.process import STOPPING, PassOutcome, run_pass

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

def be_ended_in_real_time(*, report):
    os.kill(os.getpid(), signal.SIGRTMIN + 1)

def leave(*, report):
    os._exit(7)

def grow(*, report, end):
    for count in range(1, 4):
        report({"phase": "growing", "partial": [count]})
    end_with(end)

def grow_lazily(*, report):
    report({"phase": "growing", "partial": lambda: ["made when it is sent"]})
    end_with("exit")

def end_with(end):
    if end == "signal":
        os.kill(os.getpid(), signal.SIGSEGV)
    if end == "exit":
        os._exit(3)
    if end == "error":
        raise KeyError("planted")
    time.sleep(600)

def steps(*, report, folder):
    for step in range(10_000):
        open(f"{folder}/began-{step}", "w").close()
        time.sleep(0.05)
        open(f"{folder}/ended-{step}", "w").close()
        report({"phase": "stepping", "done": step, "total": 10_000})

def nap(*, report, marker):
    report({"phase": "napping"})
    open(marker, "w").close()
    for _ in range(4):  # one long sleep would be over with the stop
        time.sleep(0.1)

def hold_the_lock(*, report, marker):
    import ctypes
    open(marker, "w").write(str(os.getpid()))
    ctypes.PyDLL(None).sleep(600)  # with the interpreter's lock: no thread of this process runs

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


def run(function: Any, limit_s: float = 120.0, silence_limit_s: float = 120.0, **arguments: Any) -> PassOutcome:
    return run_pass(
        function, arguments, limit_s=limit_s, silence_limit_s=silence_limit_s, on_progress=lambda update: None
    )


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
    nameless = run(functions.be_ended_in_real_time)
    assert [end.status for end in (crash, leave, killed, nameless)] == ["crashed", "crashed", "killed", "killed"]
    assert "SIGSEGV" in crash.reason
    assert "exit code 7" in leave.reason
    assert "SIGKILL" in killed.reason
    assert f"signal {signal.SIGRTMIN + 1}" in nameless.reason, "Python has no name for it"


def test_a_pass_that_hangs_is_ended_after_its_limit(functions: Any) -> None:
    outcome = run(functions.hang, limit_s=1.0)
    assert outcome.status == "timed_out"
    assert "pass_limit_s=1" in outcome.reason


def run_while_time_goes_by(
    function: Any, monkeypatch: pytest.MonkeyPatch, seconds: list[float], **limits: Any
) -> PassOutcome:
    """A pass with so many seconds going by at each of its reports, and none otherwise, however busy the machine is."""
    now = [0.0]
    monkeypatch.setattr(process, "time", SimpleNamespace(monotonic=lambda: now[0]))

    def go_by(update: dict[str, Any]) -> None:
        now[0] += seconds.pop(0) if seconds else 0.0

    return run_pass(function, limits.pop("arguments"), on_progress=go_by, **limits)


def test_a_pass_that_shows_no_progress_is_ended_and_one_that_does_is_not(
    functions: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    silent = run(functions.hang, silence_limit_s=0.5)
    assert silent.status == "timed_out"
    assert "protocol.silence_limit_s=0.5 seconds without" in silent.reason
    lively = run_while_time_goes_by(
        functions.steps, monkeypatch, [1.0] * 3, limit_s=3.0, silence_limit_s=1.5, arguments={"folder": str(tmp_path)}
    )
    assert "pass_limit_s=3" in lively.reason


@pytest.mark.parametrize(("end", "status"), [("signal", "crashed"), ("exit", "crashed"), ("error", "failed")])
def test_what_a_pass_had_answered_before_it_ended_is_kept(functions: Any, end: str, status: str) -> None:
    outcome = run(functions.grow, end=end)
    assert (outcome.status, outcome.value) == (status, [3])


def test_what_a_pass_had_answered_before_it_took_too_long_is_kept(
    functions: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = run_while_time_goes_by(
        functions.grow, monkeypatch, [0.0, 0.0, 9.0], limit_s=9.0, arguments={"end": "hang"}
    )
    assert (outcome.status, outcome.value) == ("timed_out", [3])


def test_a_partial_answer_is_made_when_it_is_sent(functions: Any) -> None:
    assert run(functions.grow_lazily).value == ["made when it is sent"]


def start_parent(tmp_path: Path, function: str, **arguments: str) -> subprocess.Popen[str]:
    """A process that runs a pass, as a suite does, and says how it ended."""
    script = tmp_path / "parent.py"
    script.write_text(
        "import signal, sys\n"
        "def main():\n"
        "    from bench.process import run_pass\n"
        "    import pass_functions\n"
        "    def say(update):\n"
        "        print(update, flush=True)\n"
        "    try:\n"
        f"        run_pass(pass_functions.{function}, {arguments!r}, limit_s=600, on_progress=say)\n"
        "    except KeyboardInterrupt:\n"
        "        sys.exit('interrupted')\n"
        "if __name__ == '__main__':\n"
        "    main()\n"
    )
    return subprocess.Popen(
        [sys.executable, str(script)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip


def test_time_in_which_all_of_it_was_stopped_does_not_count(functions: Any, tmp_path: Path) -> None:
    code = "run_pass(pass_functions.nap, {'marker': sys.argv[1]}, limit_s=600, silence_limit_s=5, on_progress=print)"
    script = f"import sys, pass_functions\nfrom bench.process import run_pass\nprint('status', {code}.status)\n"
    (tmp_path / "stopped.py").write_text(script)
    marker = tmp_path / "began"
    suite = subprocess.Popen(
        [sys.executable, "stopped.py", str(marker)], cwd=tmp_path, stdout=subprocess.PIPE, text=True,
        start_new_session=True,
    )  # fmt: skip
    wait_for(marker.exists)
    os.killpg(suite.pid, signal.SIGSTOP)  # as Ctrl-Z does
    time.sleep(7.5)  # longer than the silence that is allowed, and than what is slept over on a busy machine
    os.killpg(suite.pid, signal.SIGCONT)
    output, _ = suite.communicate(timeout=300)
    assert "status ok" in output


@pytest.mark.parametrize("function", ["hang", "hold_the_lock"])
def test_a_child_does_not_outlive_a_killed_parent(functions: Any, tmp_path: Path, function: str) -> None:
    marker = tmp_path / "pid"
    parent = start_parent(tmp_path, function, marker=str(marker))
    child = int(wait_for(lambda: marker.read_text() if marker.exists() else ""))
    parent.send_signal(signal.SIGKILL)
    parent.communicate()
    assert wait_for(lambda: "gone" if not alive(child) else "") == "gone"


def test_ctrl_c_lets_the_step_come_to_its_end(functions: Any, tmp_path: Path) -> None:
    parent = start_parent(tmp_path, "steps", folder=str(tmp_path))
    wait_for(lambda: (tmp_path / "ended-2").exists())
    os.killpg(parent.pid, signal.SIGINT)  # as a terminal does: to all of them
    output, errors = parent.communicate(timeout=300)
    assert errors == "interrupted\n", "nobody else complains"
    assert "stopping at the end of this step" in output
    begun, ended = (len(list(tmp_path.glob(f"{name}-*"))) for name in ("began", "ended"))
    assert begun == ended


def test_a_second_ctrl_c_stops_at_once(functions: Any, tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    parent = start_parent(tmp_path, "hang", marker=str(marker))
    child = int(wait_for(lambda: marker.read_text() if marker.exists() else ""))
    os.killpg(parent.pid, signal.SIGINT)
    assert parent.stdout is not None
    assert any(STOPPING in line for line in parent.stdout), "the first waits for the step"
    assert parent.poll() is None
    os.killpg(parent.pid, signal.SIGINT)
    _, errors = parent.communicate(timeout=300)
    assert errors.endswith("interrupted\n")
    assert not alive(child)


def test_ctrl_c_while_the_fork_server_starts_leaves_no_traceback_of_it(functions: Any, tmp_path: Path) -> None:
    parent = start_parent(tmp_path, "steps", folder=str(tmp_path))  # comes to no end if Ctrl-C is late
    server = wait_for(lambda: next((pid for pid in children_of(parent.pid) if "forkserver" in command_of(pid)), ""))
    time.sleep(0.2)
    os.killpg(parent.pid, signal.SIGINT)
    _, errors = parent.communicate(timeout=300)
    assert errors == "interrupted\n"
    assert wait_for(lambda: "gone" if not alive(int(server)) else "") == "gone"


def test_a_pass_whose_parent_has_gone_complains_to_nobody(functions: Any, tmp_path: Path) -> None:
    script = (
        "import multiprocessing, pass_functions, bench.process as process\n"
        "ours, theirs = multiprocessing.Pipe()\n"
        "process._listen = lambda *arguments: None\n"  # which would most often, not always, be faster
        "ours.close()\n"
        "process._child_main(theirs, pass_functions.add, {'a': 1, 'b': 2})\n"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stderr == ""


def children_of(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


def command_of(pid: str) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except OSError:
        return ""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split(")")[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(read: Any) -> str:
    deadline = time.monotonic() + 300.0
    while time.monotonic() < deadline:
        value = read()
        if value:
            return str(value)
        time.sleep(0.05)
    raise AssertionError("it did not happen in time")


def test_errors_carry_their_kind() -> None:
    assert DivergedError("x").partial is None
    assert DataError("x").exit_code == 2
