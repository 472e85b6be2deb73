"""``metagrad-bench run``: composes and checks every cell, lets Hydra run them, sums up with an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from bench.errors import STORAGE_ERRORS, ConfigError, ExitCode, RecordError, UserError, system_reason
from tools.output import say

if TYPE_CHECKING:
    from bench.app import Plan
    from bench.units import Absent

HELP = """usage: metagrad-bench run [suite=NAME | variant=NAME] [key=value ...] [Hydra flags]

Measures the cells of a suite, or one cell. Each cell leaves a folder with record.json, samples.csv, training.csv and
TensorBoard scalars under OUTPUT_DIR/SUITE/. Run again, it measures only what is missing.

choices (key=value; `metagrad-bench list` explains them):
{groups}

settings most used:
  device=auto|cpu|cuda|cuda:1   where to run (auto: the first GPU, else the CPU)
  device=all                    on one device of each kind in turn: the CPU and the first GPU of every model
  seed=0                        with --multirun several: seed=0,1,2
  output_dir=out                where records go
  --fresh (or fresh=true)       measure again what is already there (the earlier record is set aside), from the start
  protocol.cell_limit_s=S       end a cell after so many seconds in its passes; protocol.pass_limit_s one pass,
  protocol.silence_limit_s=S    and a pass that shows no progress for so long
  protocol.checkpoint_s=60      seconds between two checkpoints of a training
  weight_bits activation_bits error_bits grad_bits   2 to 8 (weights 1), 32 for FP32 (variant=custom)
  edge_layers=same|int8|full    first convolution and last linear layer
  data.root=DIR  data.download=false
  protocol.epochs=N  protocol.timing_blocks=N  protocol.passes=[timing,memory,profile,accuracy]
  model=custom model.factory=package.module:function   your own network

Hydra flags:
  --multirun, -m                one cell for each combination of comma-separated values
  --config-dir DIR              a folder with your own suite/ or variant/ files
  --cfg job                     print the composed config and stop
  hydra/launcher=joblib         or ray, submitit_slurm, where they are installed: docs/scale.md
  --hydra-help                  Hydra's own help

examples:
  metagrad-bench run suite=demo
  metagrad-bench run suite=demo device=cpu seed=0,1,2
  metagrad-bench run variant=metagrad_int4_slim model=resnet20 data=fashion_mnist hypernet.hidden=100

An interrupted run is gone on with by the same command: finished cells and passes are not measured again, a training
goes on from its last checkpoint. Ctrl-C (or SIGTERM) stops at the end of the step, a second one at once.

exit codes: 0 every cell finished (diverged is a result), 1 a cell failed, crashed, was killed, took too long or ran
out of memory, 2 wrong usage or bad input (nothing was written), 130 interrupted (also by SIGTERM).
"""


def main(argv: Sequence[str]) -> int:
    """Run a command line's cells; answers the exit code.

    Raises:
        UserError: one sentence about what is wrong, before anything is written.
    """
    from bench import app  # Hydra and torch, only where they are needed
    from bench.composing.groups import group_options
    from bench.composing.search_path import GROUPS

    if any(argument in ("-h", "--help") for argument in argv):
        groups = "\n".join(f"  {group:<10} {', '.join(group_options(group))}" for group in GROUPS)
        print(HELP.format(groups=groups), end="")
        return ExitCode.OK
    argv = app.settings_first(["fresh=true" if argument == "--fresh" else argument for argument in argv])
    argv = _with_threads(argv)
    args = app.parse_arguments(argv)
    if any(getattr(args, name) for name in app.PASSTHROUGH):
        return _call_hydra(argv)
    argv = _with_devices(argv)
    args = app.parse_arguments(argv)
    plan = app.plan_cells(args)
    for notice in plan.notices:
        say(notice)

    from bench import cell as cells
    from bench.jobs import leaving_out
    from bench.precheck import check_cells
    from bench.progress import SuiteProgress, set_current
    from bench.pulse import announced

    check_cells(plan.cells, here=plan.here)
    folders = cells.locate_all(plan.cells) if plan.here else []
    progress = SuiteProgress(len(plan.cells), show=plan.cells[0].progress)
    set_current(progress)
    settled = []
    for cell, job, folder in zip(plan.cells, plan.jobs, folders, strict=True) if plan.sweep and plan.here else ():
        if cells.is_settled(cell, folder):
            settled.append(job)
            progress.skip_cell(folder.name)
    try:
        places: Sequence[Path | None] = folders or [None] * len(plan.cells)
        with announced(list(zip(plan.cells, places, strict=True)), launcher=plan.launcher), leaving_out(settled):
            code = _call_hydra(argv)
    finally:
        progress.close()
        set_current(None)
    return max(code, sum_up(folders if plan.here else _find_records(plan)))


def _with_devices(argv: Sequence[str]) -> list[str]:
    """``device=all`` as a sweep over one device of each kind; records and reports keep devices apart."""
    if "device=all" not in argv:
        return list(argv)
    from bench.hardware.probe import device_kinds

    devices = device_kinds()
    argv = [f"device={','.join(devices)}" if argument == "device=all" else argument for argument in argv]
    flags = {"--multirun", "-m"}
    return [*argv, "--multirun"] if len(devices) > 1 and not flags.intersection(argv) else argv


def _with_threads(argv: Sequence[str]) -> list[str]:
    """Joblib gives its workers fewer threads than this process has: a cell's threads are fixed here."""
    if "hydra/launcher=joblib" not in argv or any(
        argument.lstrip("+").startswith("protocol.threads=") for argument in argv
    ):
        return list(argv)
    import torch

    return [f"protocol.threads={torch.get_num_threads()}", *argv]


def _call_hydra(argv: Sequence[str]) -> int:
    from bench import app
    from bench.composing.search_path import register
    from bench.composing.sentences import CONFIG_ERRORS, explain

    register()
    with _arguments(["metagrad-bench run", *argv]):
        try:
            app.hydra_main()
        except SystemExit as stop:
            return int(stop.code or 0)
        except CONFIG_ERRORS as error:
            raise ConfigError(explain(error)) from error
        except OSError as error:
            if error.errno not in STORAGE_ERRORS:
                raise
            return _say(f"{error.filename or 'the output'} cannot be written ({system_reason(error)}): make room.")
        except UserError as error:
            # Cells have run: this is no usage error, and the summary still has to be given.
            return _say(str(error))
        except RuntimeError as error:
            if not type(error).__module__.startswith("joblib."):
                raise
            return _say(f"a worker of joblib ended ({type(error).__name__}); run again.")
    return ExitCode.OK


def _say(sentence: str) -> ExitCode:
    say(sentence)
    return ExitCode.FAILED


@contextmanager
def _arguments(argv: list[str]) -> Iterator[None]:
    """Hydra reads sys.argv; errors reach us instead of its own printing."""
    before, sys.argv = sys.argv, argv
    os.environ["HYDRA_FULL_ERROR"] = "1"
    try:
        yield
    finally:
        sys.argv = before


def _find_records(plan: Plan) -> list[Path]:
    """Folders of cells that other machines measured: their names hold those machines' fingerprints."""
    from bench.pulse import planned
    from bench.status import match_cells

    suites: dict[Path, list[int]] = {}
    for number, cell in enumerate(plan.cells):
        suites.setdefault(Path(cell.output_dir) / cell.suite_name, []).append(number)
    folders = {}
    for suite, numbers in suites.items():
        wanted = [planned(plan.cells[number]) for number in numbers]
        for number, asked, found in zip(
            numbers, wanted, match_cells(suite, [cell.digest for cell in wanted]), strict=True
        ):
            folders[number] = found or suite / f"{asked.variant}-{asked.model}-{asked.data}-seed{asked.seed}"
    return [folders[number] for number in range(len(plan.cells))]


def sum_up(folders: Sequence[Path]) -> int:
    """Print one line per cell that is not ok, how timing ended, what the profile pass cost, and where the records lie.

    Args:
        folders: of the cells' records.

    Returns:
        The exit code.
    """
    from bench.records.read import read_record
    from bench.records.schema import FINISHED
    from bench.records.write import RECORD_FILE
    from bench.units import format_span_overhead, format_stopping

    counts: dict[str, int] = {}
    lines = []
    overheads_pct: list[tuple[float, float]] = []  # of the cell, of FP32
    ends: list[tuple[str | Absent, float | Absent]] = []
    for folder in folders:
        try:
            record = read_record(folder / RECORD_FILE)
        except RecordError as error:
            counts["failed"] = counts.get("failed", 0) + 1
            lines.append(f"{'failed':<13} {folder.name}: {error}")
            continue
        counts[record.status] = counts.get(record.status, 0) + 1
        if record.status != "ok":
            lines.append(f"{record.status:<13} {folder.name}: {record.reason}")
        if record.profile is not None:
            overheads_pct.append((record.profile.cell.span_overhead_pct, record.profile.fp32.span_overhead_pct))
        if record.timing is not None:
            ends += [(repeat.stopped_by, repeat.half_width_pct) for repeat in record.timing.repeats]
    summary = ", ".join(f"{count} {status}" for status, count in sorted(counts.items()))
    if stopping := format_stopping(ends):
        lines.append(f"Timing: {stopping}")
    if overheads_pct:
        cells_pct, fp32_pct = zip(*overheads_pct, strict=True)
        lines.append(f"Profile: {format_span_overhead(cells_pct, fp32_pct)}")
    places = sorted({str(folder.parent) for folder in folders})
    lines.append(f"{len(folders)} {'cell' if len(folders) == 1 else 'cells'}: {summary}. Records: {', '.join(places)}")
    with suppress(OSError, ValueError):  # closed or full: the exit code says it all the same
        print("\n".join(lines), flush=True)
    return ExitCode.OK if set(counts) <= set(FINISHED) else ExitCode.FAILED
