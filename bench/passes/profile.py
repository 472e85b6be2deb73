"""The profile: the device's ceilings, a few steps by layer and product, and a trace."""

from __future__ import annotations

import functools
from pathlib import Path

from bench.config import CellConfig
from bench.layers.dispatch import Paths
from bench.passes.inputs import batches_of, endless, load_weights, prepare, use_device
from bench.profilers.ceilings import measure_ceilings
from bench.records.schema import Ceilings, ProfileResult, SideProfile
from bench.reporting import Report
from bench.training.assemble import as_fp32, build_parts
from bench.training.profile import profile_side, trace_steps

CEILING_BUDGET_S = 0.4  # for each of the four


def ceilings_pass(*, report: Report, cell: CellConfig, device: str) -> Ceilings:
    """Measure the device's ceilings with the cell's number of threads."""
    report({"phase": "ceilings"})
    return measure_ceilings(use_device(cell, device), budget_s=CEILING_BUDGET_S)


def profile_pass(
    *,
    report: Report,
    cell: CellConfig,
    device: str,
    weights: str | None,
    paths: Paths | None = None,
    ceilings: Ceilings,
    folder: str,
) -> ProfileResult:
    """A few steps of the cell, then of FP32, by layer, product and piece, counted and traced.

    Args:
        report: takes progress.
        cell: the checked config.
        device: where to run.
        weights: the FP32 weights to start from.
        paths: what dispatch=auto chose in the check.
        ceilings: of the device.
        folder: for the traces, one file a side.
    """
    where, data = prepare(cell, device)
    state = load_weights(weights)
    sides: dict[str, SideProfile] = {}
    configs = {"cell": cell, "fp32": as_fp32(cell)}
    is_reference = cell.method.name == "fp32"
    for done, (name, config) in enumerate(configs.items()):
        if name == "fp32" and is_reference:
            sides[name] = sides["cell"]
            break
        report({"phase": f"profile, {name}", "done": done, "total": 2 - is_reference})
        parts = build_parts(config, data, where, initial_state=state, paths=paths)
        stream, lr = endless(batches_of(cell, data, where)), cell.optimizer.lr
        trace = functools.partial(trace_steps, parts, stream, lr, where, folder=Path(folder), worker=name)
        sides[name] = profile_side(
            parts, stream, lr, where, steps=cell.protocol.profile_steps, ceilings=ceilings, trace=trace
        )
    return ProfileResult(ceilings=ceilings, cell=sides["cell"], fp32=sides["fp32"])
