"""Timing: blocks of the cell's steps alternating with blocks of FP32 steps."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from bench.config import CellConfig
from bench.layers.dispatch import Paths
from bench.passes.inputs import batches_of, endless, load_weights, prepare
from bench.profilers.phase_timer import PhaseTimer
from bench.records.schema import TimingRepeat
from bench.reporting import Report
from bench.timing import MARK_REPEATS, Sampled, Side, energy_windows, mark_budget_s, sample_in_turn, time_phase_marks
from bench.training.assemble import as_fp32, build_parts
from bench.units import Absent


def timing_pass(
    *,
    report: Report,
    cell: CellConfig,
    device: str,
    weights: str | None,
    paths: Paths | None = None,
    repeat: int,
    energy_window_s: float = 0.0,
) -> TimingRepeat:
    """Blocks of the cell's steps alternate with blocks of FP32 steps, on the same batches, in one process.

    Args:
        report: takes progress.
        cell: the checked config.
        device: where to run.
        weights: the FP32 weights to start from.
        paths: what dispatch=auto chose in the check.
        repeat: number of this process; every other one builds and starts with the FP32 side.
        energy_window_s: length of the windows for energy, 0 where the device counts none.
    """
    where, data = prepare(cell, device)
    state = load_weights(weights)
    configs = {"cell": cell, "fp32": as_fp32(cell)}
    sides = [
        Side(
            name=name,
            parts=build_parts(configs[name], data, where, initial_state=state, paths=paths),
            stream=endless(batches_of(cell, data, where)),
            lr=cell.optimizer.lr,
            timer=PhaseTimer(where),
        )
        for name in sorted(configs, reverse=bool(repeat % 2))
    ]

    def report_samples(progress: dict[str, Any]) -> None:
        so_far = progress.get("partial")
        report(progress if so_far is None else progress | {"partial": lambda: _timing_repeat(so_far())})

    sampled = sample_in_turn(sides, cell.protocol, report=report_samples, phase=f"timing {repeat + 1}")
    by_name = {side.name: side for side in sides}
    marked, unmarked = time_phase_marks(by_name["cell"], budget_s=mark_budget_s(sampled))
    if energy_window_s:
        report({"phase": f"energy {repeat + 1}"})
        sampled.windows += energy_windows(by_name["cell"], by_name["fp32"], window_s=energy_window_s)
    return dataclasses.replace(
        _timing_repeat(sampled), marked_step_ms=marked, unmarked_step_ms=unmarked, mark_repeats=MARK_REPEATS
    )


def _timing_repeat(sampled: Sampled) -> TimingRepeat:
    """The samples of a process as the record keeps them."""
    blocks = sampled.blocks["cell"]
    names = list(dict.fromkeys(phase for block in blocks for phase in block.phases_ms))
    unwatched = Absent(reason="the process that trains does not watch itself; its parent does")
    return TimingRepeat(
        step_ms=sampled.step_ms("cell"),
        fp32_step_ms=sampled.step_ms("fp32"),
        phases_ms={
            phase: tuple(value for block in blocks for value in block.phases_ms.get(phase, (0.0,) * len(block.step_ms)))
            for phase in names
        },
        throttled=unwatched,
        stopped_by=sampled.stopped_by or Absent("the process ended before its sampling did"),
        half_width_pct=sampled.half_width_pct
        if 0 < sampled.half_width_pct < math.inf
        else Absent("fewer than six blocks have no 95 % interval"),
        windows=tuple(sampled.windows),
        throttled_steps=unwatched,
    )
