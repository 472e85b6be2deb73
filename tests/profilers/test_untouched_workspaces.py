from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from bench.profilers.untouched_workspaces import UntouchedWorkspaces
from bench.units import MEBIBYTE


def test_an_lstms_workspace_is_mostly_never_written() -> None:
    # In a process of its own: memory that earlier tests freed has been written already.
    code = (
        "import torch; from bench.profilers.untouched_workspaces import UntouchedWorkspaces\n"
        "lstm, x = torch.nn.LSTM(2, 4), torch.randn(1, 8192, 2)\n"
        "with UntouchedWorkspaces() as workspaces:\n"
        "    lstm(x)[0].sum().backward()\n"
        "print(workspaces.untouched_bytes)"
    )
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    if not answer.isdecimal() or not torch.backends.mkldnn.is_available():
        pytest.skip("no oneDNN, or a system that does not tell which pages are in memory")
    assert 4 * MEBIBYTE < int(answer) < 8 * MEBIBYTE, "of 1 KiB a row"


def test_an_lstm_that_is_evaluated_without_a_graph_has_no_workspace() -> None:
    lstm, x = torch.nn.LSTM(2, 4), torch.randn(1, 8192, 2)
    with UntouchedWorkspaces() as workspaces, torch.no_grad():
        lstm(x)
    assert workspaces.untouched_bytes == 0
