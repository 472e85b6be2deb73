"""``metagrad-bench list``: suites, variants, models, methods and their parts, datasets, GPUs, each with a source."""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from bench.errors import ExitCode
from bench.units import Absent, format_absent
from tools.output import emit_json

if TYPE_CHECKING:
    from bench.config import CellConfig

PIPE_COLUMNS = 1000

Row = dict[str, str]


def main(argv: Sequence[str]) -> int:
    """Print one or all lists."""
    parser = argparse.ArgumentParser(
        prog="metagrad-bench list",
        description="What can be named on the command line of `metagrad-bench run`, with a line and a source each.",
        epilog="example: metagrad-bench list methods; exit codes: 0, or 2 for wrong usage",
    )
    parser.add_argument("what", nargs="*", metavar="WHAT", help=f"any of {', '.join(LISTS)}; none: all")
    parser.add_argument("--json", action="store_true", help="machine-readable")
    parser.add_argument("--config-dir", metavar="DIR", help="also list the suites and variants of this folder")
    args = parser.parse_intermixed_args(list(argv))
    unknown = [name for name in args.what if name not in LISTS]
    if unknown:
        parser.error(f"there is no list of {unknown[0]!r}: choose from {', '.join(LISTS)}")
    lists = {name: LISTS[name](args.config_dir) for name in args.what or LISTS}
    if args.json:
        emit_json(json.dumps(lists, indent=2, ensure_ascii=False) + "\n")
        return ExitCode.OK
    # A pipe has no width: there a name stays in one piece and a row on one line, for grep.
    console = Console() if sys.stdout is not None and sys.stdout.isatty() else Console(width=PIPE_COLUMNS)
    for name, rows in lists.items():
        console.print(_table(name, rows))
    return ExitCode.OK


def _table(title: str, rows: Sequence[Row]) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in rows[0]:
        table.add_column(column, overflow="fold", no_wrap=column == "name")
    for row in rows:
        table.add_row(*(Text(value) for value in row.values()))
    return table


def _suites(config_dir: str | None) -> list[Row]:
    return _yaml_rows("suite", config_dir)


def _variants(config_dir: str | None) -> list[Row]:
    from bench.composing.cells import compose_variants
    from bench.composing.groups import group_files

    rows, comments = [], group_files("variant", config_dir)
    for name, cell in compose_variants(config_dir).items():
        meta = cell.method.grad_quantizer == "hypernet"
        rows.append(
            {
                "name": name,
                "method": cell.method.name,
                "weights/activations/error signals/∇W": "/".join(_formats(cell)),
                "hypernetwork": f"{cell.hypernet.name}, {cell.strategy.name}" if meta else "",
                "what": comments[name],
            }
        )
    return rows


def _formats(cell: CellConfig) -> list[str]:
    widths = [cell.weight_bits, cell.activation_bits, cell.error_bits, cell.grad_bits]
    weights, activations, errors, grads = ("fp32" if bits == 32 else f"int{bits}" for bits in widths)
    low, quantizer = cell.method.cycle_min_bits, cell.method.error_quantizer
    if low is not None:
        weights, activations = f"int{low}-{cell.weight_bits}", f"int{low}-{cell.activation_bits}"
    return [weights, activations, {"fp4": "fp4", "afp": "int8-24"}.get(quantizer, errors), grads]


def _presets(config_dir: str | None) -> list[Row]:
    return _yaml_rows("preset", config_dir)


def _yaml_rows(group: str, config_dir: str | None) -> list[Row]:
    from bench.composing.groups import group_files

    return [{"name": name, "what": summary} for name, summary in group_files(group, config_dir).items()]


def _parts(group: str, config_dir: str | None) -> list[Row]:
    """The choices of a group that methods are built from; their source stands in brackets at the end."""
    rows = []
    for row in _yaml_rows(group, config_dir):
        what, bracket, source = row["what"].rstrip(".").partition(" (")
        rows.append({"name": row["name"], "what": f"{what}.", "source": source.removesuffix(")") if bracket else ""})
    return rows


def _models(config_dir: str | None) -> list[Row]:
    from bench.models import CUSTOM, CUSTOM_SUMMARY, MODELS

    rows = [{"name": name, "what": entry.summary, "source": entry.source} for name, entry in MODELS.items()]
    return [*rows, {"name": CUSTOM, "what": CUSTOM_SUMMARY, "source": "yours"}]


def _methods(config_dir: str | None) -> list[Row]:
    from bench.methods import METHODS

    return [{"name": method.name, "what": method.summary, "source": method.source} for method in METHODS.values()]


def _datasets(config_dir: str | None) -> list[Row]:
    from bench.data import DATASETS

    return [{"name": name, "what": entry.summary, "source": entry.source} for name, entry in DATASETS.items()]


def _gpus(config_dir: str | None) -> list[Row]:
    from bench.hardware.capability import cuda_capability
    from bench.hardware.peaks import GPUS

    def show(value: float | Absent, unit: str) -> str:
        return format_absent(value) if isinstance(value, Absent) else f"{value:g} {unit}"

    def int4_units(has: bool | Absent) -> str:
        return format_absent(has) if isinstance(has, Absent) else "present, unused" if has else "no"

    integers = {"tensor_core": "tensor cores", "dp4a": "DP4A", "none": "none"}
    capabilities = {gpu.key: cuda_capability(gpu.name, gpu.sm) for gpu in GPUS}

    return [
        {
            "name": gpu.name,
            "sm": str(gpu.sm),
            "integers": integers[capabilities[gpu.key].int8_path],
            "INT8": show(gpu.int8_tops, "TOP/s"),
            "INT4 units": int4_units(capabilities[gpu.key].int4_units),
            "INT4": show(gpu.int4_tops, "TOP/s"),
            "bf16": show(gpu.bf16_tflops, "TFLOP/s"),
            "FP32": show(gpu.fp32_tflops, "TFLOP/s"),
            "bandwidth": show(gpu.bandwidth_gb_s, "GB/s"),
            "memory": show(gpu.memory_gb, "GB"),
            "source": gpu.source,
        }
        for gpu in GPUS
    ]


LISTS: dict[str, Callable[[str | None], list[Row]]] = {
    "suites": _suites,
    "variants": _variants,
    "presets": _presets,
    "models": _models,
    "methods": _methods,
    "hypernets": functools.partial(_parts, "hypernet"),
    "strategies": functools.partial(_parts, "strategy"),
    "quantizers": functools.partial(_parts, "quantizer"),
    "optimizers": functools.partial(_parts, "optimizer"),
    "datasets": _datasets,
    "gpus": _gpus,
}
