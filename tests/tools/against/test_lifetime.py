from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from tools.against.lifetime import ended_by_signal

ROOT = Path(__file__).parents[3]
STARTER = """
import subprocess, sys, time
from tools.against.lifetime import ending_with_parent
sleeper = [sys.executable, "-c", "import time; time.sleep(3600)"]
child = subprocess.Popen(sleeper, start_new_session=True, preexec_fn=ending_with_parent())
print(child.pid, flush=True)
time.sleep(3600)
"""


def is_over(process: psutil.Process) -> bool:
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE)  # one that nobody has waited for yet
    except psutil.NoSuchProcess:
        return True


def test_a_command_ends_with_who_started_it_also_where_that_is_killed() -> None:
    with subprocess.Popen([sys.executable, "-c", STARTER], cwd=ROOT, stdout=subprocess.PIPE, text=True) as starter:
        assert starter.stdout is not None
        command = psutil.Process(int(starter.stdout.readline()))
        starter.kill()
    deadline = time.monotonic() + 300
    while not is_over(command) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert is_over(command)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_scheduler_and_a_closed_terminal_are_like_ctrl_c_unless_they_are_ignored(number: signal.Signals) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # whatever who started the tests ignores, as nohup does
    try:
        with pytest.raises(KeyboardInterrupt), ended_by_signal():
            signal.raise_signal(number)
        signal.signal(number, signal.SIG_IGN)
        with ended_by_signal():
            signal.raise_signal(number)
            assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)
