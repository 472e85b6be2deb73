"""What thousands of cells cost: time and memory of each step around them, on synthetic records (``make scale``).

Records are synthetic ones of the demo's eight cells, as large as measured ones, every fifth seed with profiles, under
other models, seeds, keys and times. Every stage runs in a process of its own. A run that was stopped goes on where it
was: a stage that the JSON holds already, of the same code and machine, is left.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.records.schema import RunRecord

from tools.provenance import code_digest, machine, write_json
from tools.scale_page import quote
from tools.scale_stages import READERS, STAGES, Work

NUM_MODELS = 25
SIZES = (1_000, 10_000, 100_000)
# Stages that are measured up to so many cells only: a command plans one sweep, and a disk flushes cell by cell.
LIMITS = {"plan": 10_000, "again": 10_000, "write": 1_000}
WHOLE = "whole"  # a file beside a store that says by which code it was written to its end


def main(argv: Sequence[str]) -> int:
    """Measure every stage at every size and leave a JSON."""
    parser = argparse.ArgumentParser(prog="python -m tools.scale", description=__doc__)
    parser.add_argument("--sizes", default=",".join(map(str, SIZES)), help="numbers of cells")
    parser.add_argument("--stages", default=",".join(STAGES), help=f"any of {', '.join(STAGES)}")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go, and are gone on with")
    parser.add_argument("--page", type=Path, help="a markdown page to put the table of figures into")
    parser.add_argument("--folder", type=Path, help="where the records lie, and stay; none: out/scale until the end")
    parser.add_argument("--again", action="store_true", help="measure also what the JSON holds already")
    parser.add_argument("--time-limit-s", type=float, default=1800.0, help="of one stage")
    parser.add_argument("--memory-limit-gb", type=float, default=8.0, help="address space of one stage")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args(list(argv))
    sizes = [int(text) for text in args.sizes.split(",")]
    keep, args.folder = args.folder is not None, args.folder or Path("out/scale")
    if args.stage is not None:
        print(json.dumps(_measure(args.stage, _work(sizes[0], args.folder))))
        return 0
    stages = args.stages.split(",")
    unknown = sorted(set(stages) - set(STAGES))
    if unknown or min(sizes) < 1:
        parser.error(f"there is no stage {', '.join(unknown)}" if unknown else "--sizes are numbers above 0")
    code = code_digest()
    rows = json.loads(args.json.read_text(encoding="utf-8"))["stages"] if args.json.exists() else []
    rows = [row for row in rows if row | {"code": code, "machine": machine()} == row]  # others say nothing beside ours
    for size in sizes:
        work = _work(size, args.folder)
        for stage in stages:
            if size > LIMITS.get(stage, size):
                continue
            if not args.again and _is_measured(rows, stage, size):
                print(f"{stage:<9}{size:>8,} cells  {args.json} has it, of this code and machine (--again)")
                continue
            if stage == "fill" or (stage in READERS and not _has_store(work, code)):
                rows = _replaced(rows, _fill(work, code, args))
            if stage != "fill":
                rows = _replaced(rows, _row(stage, work, code, args))
            _write(args.json, rows)
    if args.page is not None:
        args.page.write_text(quote(args.page.read_text(encoding="utf-8"), rows), encoding="utf-8")
    if not keep:
        shutil.rmtree(args.folder, ignore_errors=True)
    return 0


def _work(size: int, folder: Path) -> Work:
    return Work(size=size, folder=folder / str(size), records=lambda: _records(size))


def _has_store(work: Work, code: str) -> bool:
    """Whether the store was written to its end by this code."""
    try:
        return (work.folder / WHOLE).read_text(encoding="ascii") == code
    except OSError:
        return False


def _is_measured(rows: Sequence[dict[str, Any]], stage: str, size: int) -> bool:
    return any((row["stage"], row["cells"]) == (stage, size) for row in rows)


def _fill(work: Work, code: str, args: argparse.Namespace) -> dict[str, Any]:
    """The store that others read, made anew."""
    (work.folder / WHOLE).unlink(missing_ok=True)
    row = _row("fill", work, code, args)
    if "reason" not in row:
        (work.folder / WHOLE).write_text(code, encoding="ascii")
    return row


def _replaced(rows: Sequence[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    return [*(other for other in rows if (other["stage"], other["cells"]) != (row["stage"], row["cells"])), row]


def _row(stage: str, work: Work, code: str, args: argparse.Namespace) -> dict[str, Any]:
    """One stage measured."""
    work.folder.mkdir(parents=True, exist_ok=True)
    load = os.getloadavg()[0]
    answer = _in_child(stage, work.size, args)
    print(f"{stage:<9}{work.size:>8,} cells  {answer}", flush=True)
    now = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
    facts = {"measured_at": now, "load_before": round(load, 2), "machine": machine(), "code": code}
    return {"stage": stage, "cells": work.size, **answer, **facts}


def _write(path: Path, rows: list[dict[str, Any]]) -> None:
    order = list(STAGES)
    rows.sort(key=lambda row: (order.index(row["stage"]), row["cells"]))
    write_json(path, {"stages": rows})


def _in_child(stage: str, size: int, args: argparse.Namespace) -> dict[str, Any]:
    limit = int(args.memory_limit_gb * 1024**3)
    command = [sys.executable, "-m", "tools.scale", "--stage", stage, "--sizes", str(size)]
    command += ["--folder", str(args.folder), "--json", os.devnull]
    try:
        child = subprocess.run(
            command, capture_output=True, text=True, timeout=args.time_limit_s, check=False,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return {"reason": f"took longer than {args.time_limit_s:g} s"}
    if child.returncode != 0:
        last = (child.stderr.strip().splitlines() or ["no message"])[-1]
        return {"reason": f"ended with exit code {child.returncode} under {args.memory_limit_gb:g} GB: {last[:200]}"}
    answer: dict[str, Any] = json.loads(child.stdout.strip().splitlines()[-1])
    return answer


def _measure(stage: str, work: Work) -> dict[str, Any]:
    run = STAGES[stage](work)  # imports and what is no part of the stage
    start, cpu_start = time.perf_counter(), time.process_time()
    extra = run() or {}
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()  # ru_maxrss would be the parent's too
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    per_cell_ms = round(cpu_s * 1e3 / work.size, 4)
    rounded = {"wall_s": round(seconds, 3), "cpu_s": round(cpu_s, 3), "cpu_ms_per_cell": per_cell_ms}
    return {**rounded, "peak_bytes": peak, **extra}


def _records(size: int) -> Iterator[RunRecord]:
    from tools.scale_records import varied_records

    return varied_records(size, NUM_MODELS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
