from __future__ import annotations

import io

import pytest
from rich.console import Console

from bench import progress as module
from bench.progress import SuiteProgress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [1000.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    return now


def said(progress: SuiteProgress, done: int, total: int) -> str:
    progress.console = Console(file=io.StringIO(), width=200)
    progress.last_line = 0.0
    progress.update("timing", done, total)
    text: str = progress.console.file.getvalue()  # type: ignore[attr-defined]
    return text.strip()


def test_a_pass_that_goes_on_beyond_what_was_planned_promises_no_end(clock: list[float]) -> None:
    progress = SuiteProgress(1)
    progress.start_cell("cell", 1)
    clock[0] += 60
    assert said(progress, 30, 40).endswith("0:20 left")
    assert said(progress, 39_999, 40_000).endswith("0:01 left"), "what runs is not over"
    for done in (40, 55):
        assert said(progress, done, 40) == "100%  [1/1] cell  timing"


def test_cells_that_were_measured_before_tell_nothing_of_the_pace(clock: list[float]) -> None:
    progress = SuiteProgress(10)
    for number in range(8):
        progress.skip_cell(str(number))
    progress.start_cell("ninth", 1)
    assert " left" not in said(progress, 0, 40)
    clock[0] += 60
    assert said(progress, 20, 40).endswith("3:00 left"), "a cell takes 120 seconds, and one and a half are to come"
