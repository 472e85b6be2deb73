"""``metagrad-bench estimate``: memory by category, largest batch and step time of cells on GPUs that are not here."""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench.errors import ConfigError, ExitCode
from bench.units import Absent, format_absent, format_bytes, format_ms
from tools.json_file import check_json_file, write_json_file
from tools.output import table_console
from tools.stderr import say
from tools.verb_parser import verb_parser

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status

    from bench.config import CellConfig
    from bench.estimate import GpuEstimate, MemoryEstimate

TITLE = "Estimates from tensor shapes and published peaks: nothing here was measured."
HELP_EPILOG = """settings are those of `metagrad-bench run`: suite=NAME or variant=NAME, model=, data= (not read), ...
gpu= takes keys of `metagrad-bench list gpus`, the beginning of several (h100), cpu (this machine's), or all

examples:
  metagrad-bench estimate suite=demo gpu=h100 batch=512
  metagrad-bench estimate variant=metagrad_int4_retain model=vgg16 data=cifar10 gpu=a100,rtx4090 --json estimate.json

exit codes: 0 estimated, 2 wrong usage or bad input"""


def build_parser() -> argparse.ArgumentParser:
    """Describe the arguments of the verb."""
    parser = verb_parser(
        "estimate",
        usage="metagrad-bench estimate gpu=NAME [batch=N] [key=value ...] [--config-dir DIR] [--json FILE]",
        description="Peak memory by category, the largest batch that fits and a range of step times, for any GPU of "
        "the table, without a GPU: the real training step runs on tensor shapes. Every figure is an estimate.",
        epilog=HELP_EPILOG,
    )
    parser.add_argument("settings", nargs="*", metavar="key=value", help="gpu=, batch=, and settings of `run`")
    parser.add_argument("--config-dir", metavar="DIR", help="a folder with your own suite/ or variant/ files")
    parser.add_argument("--json", metavar="FILE", help="also write every figure to this file")
    return parser


def main(argv: Sequence[str]) -> int:
    """Run the verb.

    Raises:
        UserError: one sentence about what is wrong.
    """
    args = build_parser().parse_intermixed_args(list(argv))
    own = {name: _take(args.settings, name) for name in ("gpu", "batch")}
    if own["gpu"] is None:
        raise ConfigError("Which GPU? Add gpu=NAME, as in gpu=h100 (see `metagrad-bench list gpus`), or gpu=cpu.")
    batch = _batch(own["batch"])
    if args.json:
        check_json_file(args.json)

    from rich.console import Console
    from rich.text import Text

    from bench import app, estimate

    gpus = () if own["gpu"] == "cpu" else estimate.select_gpus(own["gpu"])
    arguments = ["--multirun", *args.settings, *([] if args.config_dir is None else ["--config-dir", args.config_dir])]
    plan = app.plan_cells(app.parse_arguments(arguments))
    for notice in plan.notices:
        say(notice)
    cells = estimate.distinct_cells(plan.cells)
    console = table_console()
    console.print(f"[bold]{TITLE}[/bold]")
    documents = []
    progress = Console(stderr=True)
    for number, cell in enumerate(cells, start=1):
        batch_size = batch or cell.protocol.batch_size
        words = f"estimating {cell.variant_name} on {cell.model.name}, cell {number} of {len(cells)}"
        if not progress.is_terminal:
            progress.print(words, highlight=False, markup=False)
        with progress.status(Text(words)) as status:
            shapes = estimate.CellShapes(cell, on_run=functools.partial(_show_batch, status, words))
            memory = shapes.on_cuda(batch_size, gpus[0].sm) if gpus else shapes.on_cpu(batch_size)
            on_gpus = [estimate.estimate_gpu(shapes, gpu, batch_size) for gpu in gpus]
        render(cell, memory, on_gpus, console)
        documents.append(as_plain(cell, memory, on_gpus))
    if gpus:
        console.print("\nAllowed for:")
        for name, line in estimate.ALLOWANCES.items():
            console.print(f"  {name}: {line}")
        console.print(f"  {estimate.EXTRAPOLATED}")
        if not all(gpu.verified for gpu in gpus):
            console.print(f"  {estimate.UNVERIFIED}")
    if args.json:
        document = {"kind": "estimate", "note": TITLE, "allowances": estimate.ALLOWANCES, "cells": documents}
        write_json_file(Path(args.json), document)
    return ExitCode.OK


def render(cell: CellConfig, memory: MemoryEstimate, on_gpus: Sequence[GpuEstimate], console: Console) -> None:
    """Print a cell's categories at each phase's peak, and a line per GPU.

    Args:
        cell: the cell.
        memory: on the first GPU, or on the CPU.
        on_gpus: on each GPU.
        console: where to print.
    """
    from rich.table import Table

    console.print(f"\n[bold]{cell.variant_name}[/bold] {cell.model.name} {cell.data.name}, batch {memory.batch_size}")
    table = Table("estimated, at each phase's peak", *(phase.phase for phase in memory.phases), box=None)
    for category in memory.phases[0].categories:
        held = [phase.categories[category] for phase in memory.phases]
        if any(held):
            table.add_row(category.replace("_", " "), *(format_bytes(value) if value else "–" for value in held))
    table.add_row("all", *(format_bytes(phase.peak_bytes) for phase in memory.phases))
    console.print(table)
    if not on_gpus:
        console.print(f"estimated peak allocated: {format_bytes(memory.peak_allocated_bytes)}")
        return
    table = Table("estimated on", "allocated", "reserved", "needed in all", "fits", "largest batch", "step", box=None)
    for entry in on_gpus:
        fits = format_absent(entry.fits) if isinstance(entry.fits, Absent) else "yes" if entry.fits else "no"
        largest = entry.largest_batch
        name = entry.gpu.key if entry.gpu.verified else f"{entry.gpu.key} (peaks unverified)"
        table.add_row(
            name, format_bytes(entry.memory.peak_allocated_bytes),
            format_bytes(entry.memory.peak_reserved_bytes), format_bytes(entry.memory.needed_bytes), fits,
            format_absent(largest) if isinstance(largest, Absent) else _batch_text(entry, largest), _range(entry),
        )  # fmt: skip
    console.print(table)


def as_plain(cell: CellConfig, memory: MemoryEstimate, on_gpus: Sequence[GpuEstimate]) -> dict[str, Any]:
    """A cell's estimates as JSON values; unknown ones are ``{"reason": "..."}``."""
    from bench.hardware.environment import to_plain

    plain: dict[str, Any] = to_plain(
        {
            "variant": cell.variant_name,
            "model": cell.model.name,
            "data": cell.data.name,
            "memory": dataclasses.asdict(memory) | {"needed_bytes": memory.needed_bytes},
            "gpus": [
                dataclasses.asdict(entry)
                | {"gpu": entry.gpu.key, "peaks_source": entry.gpu.source, "needed_bytes": entry.memory.needed_bytes}
                for entry in on_gpus
            ],
        }
    )
    return plain


def _show_batch(status: Status, words: str, batch_size: int) -> None:
    from rich.text import Text

    status.update(Text(f"{words}: batch {batch_size:,}"))


def _batch_text(entry: GpuEstimate, largest: int) -> str:
    return f"≈ {largest:,}" if entry.largest_is_extrapolated else f"{largest:,}"


def _range(entry: GpuEstimate) -> str:
    if isinstance(entry.step_low_ms, Absent):
        return format_absent(entry.step_low_ms)
    return f"{format_ms(entry.step_low_ms)} to {format_ms(entry.step_high_ms)}"


def _take(settings: list[str], name: str) -> str | None:
    """Take ``name=value`` out of the settings; Hydra does not know it."""
    found = [setting for setting in settings if setting.split("=", 1)[0] == name]
    if len(found) > 1:
        raise ConfigError(f"{name}= is given {len(found)} times: give it once.")
    if not found:
        return None
    settings.remove(found[0])
    return found[0].partition("=")[2]


def _batch(text: str | None) -> int | None:
    if text is None:
        return None
    if not text.isascii() or not text.isdigit() or not 1 <= int(text) <= 2**20:
        raise ConfigError(f"batch={text} is not possible: give a whole number from 1 to 1,048,576.")
    return int(text)
