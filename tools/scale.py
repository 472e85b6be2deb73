"""What thousands of cells cost: time and memory of each step around them, on synthetic records (``make scale``).

Records are synthetic ones of the demo's eight cells, as large as measured ones and with profiles, under other models,
seeds, keys and times. Every stage runs in a process of its own.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bench.records.schema import RunRecord

NUM_MODELS = 25
# stage -> the largest number of cells at which it is measured unless asked for more, and why
LIMITS = {"plan": 10_000, "write": 10_000, "status": 100_000, "read": 100_000, "baseline": 100_000, "gate": 100_000,
          "report": 10_000}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Measure every stage at every size and leave a JSON."""
    parser = argparse.ArgumentParser(prog="python -m tools.scale", description=__doc__)
    parser.add_argument("--sizes", default="1000,10000,100000", help="numbers of cells")
    parser.add_argument("--stages", default=",".join(LIMITS), help=f"any of {', '.join(LIMITS)}")
    parser.add_argument("--json", type=Path, required=True, help="where the figures go; those of other sizes are kept")
    parser.add_argument("--folder", type=Path, help="where the records lie; none: a temporary folder")
    parser.add_argument("--time-limit-s", type=float, default=1800.0, help="of one stage")
    parser.add_argument("--memory-limit-gb", type=float, default=8.0, help="address space of one stage")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    args = parser.parse_args(list(argv))
    if args.stage is not None:
        print(json.dumps(_measure(args.stage, int(args.sizes), args.folder)))
        return 0
    root = args.folder or Path(tempfile.mkdtemp(prefix="mgb-scale-"))
    figures = json.loads(args.json.read_text(encoding="utf-8")) if args.json.exists() else {"stages": []}
    figures |= {"measured_at": dt.datetime.now(dt.UTC).isoformat(timespec="seconds"), "machine": _machine()}
    for size in (int(text) for text in args.sizes.split(",")):
        folder = root / str(size)
        if not (folder / "records").exists():
            _fill(folder / "records", size)
        for stage in args.stages.split(","):
            if size > LIMITS[stage]:
                continue
            answer = _in_child(stage, size, folder, args)
            kept = [row for row in figures["stages"] if (row["stage"], row["cells"]) != (stage, size)]
            figures["stages"] = sorted([*kept, {"stage": stage, "cells": size, **answer}], key=_place)
            print(stage, size, answer, flush=True)
            args.json.parent.mkdir(parents=True, exist_ok=True)
            args.json.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")
    if args.folder is None:
        shutil.rmtree(root)
    return 0


def _place(row: dict[str, Any]) -> tuple[int, int]:
    return list(LIMITS).index(row["stage"]), row["cells"]


def _in_child(stage: str, size: int, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    limit = int(args.memory_limit_gb * 1024**3)
    command = [sys.executable, "-m", "tools.scale", "--stage", stage, "--sizes", str(size)]
    command += ["--folder", str(folder), "--json", os.devnull]
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


def _measure(stage: str, size: int, folder: Path) -> dict[str, Any]:
    run = STAGES[stage](size, folder)  # imports and what is no part of the stage
    start, cpu_start = time.perf_counter(), time.process_time()
    extra = run() or {}
    seconds, cpu_s = time.perf_counter() - start, time.process_time() - cpu_start
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()  # ru_maxrss would be the parent's too
    peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) * 1024
    rounded = {"wall_s": round(seconds, 3), "cpu_s": round(cpu_s, 3), "cpu_ms_per_cell": round(cpu_s * 1e3 / size, 4)}
    return {**rounded, "peak_bytes": peak, **extra}


def _records(size: int) -> Iterator[RunRecord]:
    from tools.scale_records import varied_records

    return varied_records(size, NUM_MODELS)


def _fill(folder: Path, size: int) -> None:
    """The store that the stages read: records alone, not flushed to disk one by one."""
    from bench.records.store import RECORD_FILE, encode_record

    for record in _records(size):
        run = folder / record.suite / f"{record.variant}-{record.model_name}-seed{record.seed}"
        run.mkdir(parents=True)
        (run / RECORD_FILE).write_bytes(encode_record(record))


def _plan(size: int, folder: Path) -> Callable[[], Any]:
    from bench import cell as cells
    from bench.app import parse_arguments, plan_cells
    from bench.precheck import check_cells

    argv = ["suite=demo", "device=cpu", f"seed=range(0,{size // 8})", f"output_dir={folder / 'planned'}"]

    def run() -> dict[str, float]:
        start = time.perf_counter()
        plan = plan_cells(parse_arguments(argv))
        composed = time.perf_counter()
        check_cells(plan.cells)
        for cell in plan.cells:
            cells.locate(cell)
        return {"composing_s": round(composed - start, 3), "locating_s": round(time.perf_counter() - composed, 3)}

    return run


def _write(size: int, folder: Path) -> Callable[[], Any]:
    from bench.records.store import write_record

    target = folder / "written"
    shutil.rmtree(target, ignore_errors=True)

    def run() -> None:
        for record in _records(size):
            write_record(target / record.key, record, config_yaml="")

    return run


def _status(size: int, folder: Path) -> Callable[[], Any]:
    from bench.status import StatusReader
    from tools.status import as_text

    def run() -> dict[str, float]:
        reader = StatusReader([folder / "records"])
        status = reader.read()
        assert len(status.cells) == size, "every record is a cell"
        again = time.perf_counter()
        reader.read()
        printing = time.perf_counter()
        as_text(status)
        return {"second_look_s": round(printing - again, 3), "printing_s": round(time.perf_counter() - printing, 3)}

    return run


def _read(size: int, folder: Path) -> Callable[[], Any]:
    from bench.records.store import find_records

    def run() -> None:
        found, problems = find_records([folder / "records"])
        assert (len(found), len(problems)) == (size, 0), "every record is read"

    return run


def _verb(*argv: str, codes: tuple[int, ...] = (0,)) -> Callable[[], Any]:
    from tools.cli import main as call

    def run() -> None:
        before, sys.stdout = sys.stdout, open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115, PTH123
        try:
            code = call(argv)
        finally:
            sys.stdout.close()
            sys.stdout = before
        assert code in codes, f"{argv[0]} ended with {code}"

    return run


def _baseline(size: int, folder: Path) -> Callable[[], Any]:
    target = folder / "baseline.json"
    target.unlink(missing_ok=True)  # written anew: over an earlier one the verb would also tell what moved
    return _verb("baseline", str(folder / "records"), "-o", str(target))


STAGES: dict[str, Callable[[int, Path], Callable[[], Any]]] = {
    "plan": _plan,
    "write": _write,
    "status": _status,
    "read": _read,
    "baseline": _baseline,
    "gate": lambda size, folder: _verb(
        "gate", str(folder / "records"), "--baseline", str(folder / "baseline.json"), codes=(0, 1, 3, 5)
    ),
    "report": lambda size, folder: _verb("report", str(folder / "records"), "-o", str(folder / "report")),
}


def _machine() -> dict[str, Any]:
    from bench.hardware.probe import cpu_name

    return {"cpu": cpu_name(), "cores": os.cpu_count(), "python": platform.python_version(),
            "load_1min": round(os.getloadavg()[0], 2)}  # fmt: skip


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
