"""Prints what ``collect`` has read as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tools.doctor.advice import is_known
from tools.output import knows_unicode

if TYPE_CHECKING:
    from rich.console import Console


def render(report: dict[str, Any], console: Console) -> None:
    """Print the report as tables.

    Args:
        report: what ``collect`` returns.
        console: where to print.
    """
    from rich import box
    from rich.table import Table
    from rich.text import Text

    from bench.units import format_bytes

    lines = box.HEAVY_HEAD if knows_unicode() else box.ASCII

    def show(title: str, rows: Sequence[tuple[str, str]]) -> None:
        table = Table("", "", title=title, title_justify="left", show_header=False, box=lines)
        for name, text in rows:
            table.add_row(name, Text(text))
        console.print(table)

    cpu, build = report["cpu"], report["torch"]
    show(
        "This machine",
        [
            ("metagrad-bench", f"{report['package']['version']}, {_commit(report['package'])}"),
            ("python", f"{report['python']['version']}, {report['os']['system']} {report['os']['kernel']}"),
            ("torch", f"{build['version']}, built with {_text(build['compiler'])}"),
            ("oneDNN, MKL", f"{_text(build['mkldnn'])}, {_text(build['mkl'])}"),
            ("torch's CUDA", _text(build["cuda_build"])),
            ("NVIDIA driver", _text(report["nvidia"]["driver"])),
            (
                "threads",
                f"torch {build['threads']}, usable cores {cpu['usable_cores']} of {_text(cpu['logical_cores'])}",
            ),
            ("CPU quota", _text(cpu["cgroup_cores"], "{:g} cores")),
            ("CPU settings", " ".join(f"{k}={v}" for k, v in report["kernel_variables"].items()) or "none set"),
            (
                "memory",
                f"{format_bytes(report['memory']['available_bytes'])} of {format_bytes(cpu['memory_bytes'])} free",
            ),
            ("allocator", _text(report["allocator"])),
            ("load average", _text(report["load_average"], "{:.2f} (one minute)")),
            ("data", "; ".join(f"{name}: {_text(answer)}" for name, answer in report["data"].items())),
        ],
    )
    for device in report["devices"]:
        show(f"{device['device']}: {device['name']}", _device_rows(device))
    if report["advice"]:
        show("Advice", [(str(number), sentence) for number, sentence in enumerate(report["advice"], 1)])
    else:
        console.print("Nothing seen that would spoil a measurement.")


def _device_rows(device: dict[str, Any]) -> list[tuple[str, str]]:
    rows = [
        ("compute capability", _text(device["sm"], "sm_{}")),
        ("instruction sets", " ".join(device["instruction_sets"]) or "n/a (a GPU)"),
        ("INT4 units", _text(device["int4_units"])),
        ("int8 product takes", _shapes(device["limits"])),
        ("self-check of int8", _text(device["self_check"])),
        ("element-wise pieces", _text(device["elementwise"])),
    ]
    rows += path_rows(device["integer_paths"])
    measured: list[tuple[str, str, str]] = [
        ("int8 product", "int8_gops", "{:,.0f} GOP/s measured"),
        ("FP32 product", "fp32_gflops", "{:,.0f} GFLOP/s measured"),
        ("bf16 product", "bf16_gflops", "{:,.0f} GFLOP/s measured"),
        ("copy", "copy_gb_s", "{:,.1f} GB/s measured"),
    ]
    ceilings = device["ceilings"]
    rows += [
        (name, _text(ceilings[key], unit) if is_known(ceilings) else _text(ceilings)) for name, key, unit in measured
    ]
    published = device["published"]
    if is_known(published):
        figures = ("int8_tops", "int4_tops", "bf16_tflops", "fp32_tflops", "bandwidth_gb_s")
        rows += [(f"published {key}", _text(published[key])) for key in figures]
        rows.append(("published by", published["source"]))
    else:
        rows.append(("published peaks", _text(published)))
    shown = (
        "governor",
        "driver",
        "mig",
        "clock_mhz",
        "max_clock_mhz",
        "memory_clock_mhz",
        "power_w",
        "power_limit_w",
        "default_power_limit_w",
        "temperature_c",
        "utilisation_pct",
        "memory_used_bytes",
        "clock_reasons",
    )
    rows += [(key.replace("_", " "), _text(device["state"][key])) for key in shown if key in device["state"]]
    rows.append(("energy counter", _text(device["energy_counter"])))
    rows.append(("other processes", _text(device["other_processes"])))
    return rows


def path_rows(paths: dict[str, dict[str, str]]) -> list[tuple[str, str]]:
    """The path of each bit width, widths of the same path in one row."""
    rows: list[tuple[list[str], str]] = []
    for bits, path in paths.items():
        text = f"{path['label']}: {path['reason']}".replace(f"{bits}-bit codes", "codes")
        if rows and rows[-1][1] == text:
            rows[-1][0].append(bits)
        else:
            rows.append(([bits], text))
    names = (widths[0] if len(widths) == 1 else f"{widths[0]}- to {widths[-1]}" for widths, _ in rows)
    return [(f"{name}-bit products", text) for name, (_, text) in zip(names, rows, strict=True)]


def _text(value: Any, template: str = "{}") -> str:
    if not is_known(value):
        return f"n/a ({value['reason']})"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "none"
    return template.format(value)


def _shapes(limits: dict[str, int]) -> str:
    if limits == {"min_rows": 1, "multiple": 1}:
        return "any shape"
    return f"at least {limits['min_rows']} rows, K and N in multiples of {limits['multiple']} (padded where smaller)"


def _commit(package: dict[str, Any]) -> str:
    if not is_known(package["git_commit"]):
        return _text(package["git_commit"])
    return f"commit {package['git_commit'][:12]}{' with changes' if package['git_dirty'] is True else ''}"
