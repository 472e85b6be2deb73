"""``metagrad-bench doctor``: what this machine can do, and what on it would spoil a measurement.

``collect`` reads the machine into a plain dict, ``advise`` turns that into sentences, ``render`` prints both. Unknown
values are ``{"reason": "..."}`` in JSON and ``n/a (...)`` in the table. No user, host or path is printed.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tools.output import emit, knows_unicode

if TYPE_CHECKING:
    import torch
    from rich.console import Console

    from bench.hardware.nvml import NvmlDevice
    from bench.hardware.peaks import GpuPeaks
    from bench.profilers.ceilings import Ceilings
    from bench.units import Absent

REPORT_VERSION = 1
BIT_WIDTHS = (8, 7, 6, 5, 4, 3, 2, 1)
_LOCK_WAIT_S = 5.0  # a run may hold the device for hours
_CEILING_BUDGET_S = 0.8  # for each of four figures a device: under 5 s in all on a machine with one device
BUSY_LOAD = 0.3  # processes running besides us, on average over the last minute, that already show in timings
_BUSY_GPU_PCT = 5
_LITTLE_MEMORY_BYTES = 2 * 1024**3

_EPILOG = """examples:
  metagrad-bench doctor                 a table, with measured ceilings (a few seconds)
  metagrad-bench doctor --no-measure    the same without running any product but the self-check
  metagrad-bench doctor --json          for programs; unknown values are {"reason": "..."}

exit code: 0, also where something would spoil a measurement (the advice says it); 2 for wrong arguments.
"""


def build_parser() -> argparse.ArgumentParser:
    """Describe the arguments of the verb."""
    parser = argparse.ArgumentParser(
        prog="metagrad-bench doctor",
        description="Say what this machine can do: devices, the integer path that each bit width would take and why, "
        "the self-check of the integer product, measured ceilings, clocks, threads, memory allocator, and one "
        "sentence of advice for whatever would spoil a measurement.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of tables")
    parser.add_argument(
        "--no-measure",
        action="store_true",
        help="leave out the measured ceilings (integer product, FP32, bf16, copy bandwidth)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the verb.

    Args:
        argv: arguments after ``doctor``; by default those of the process.

    Returns:
        The exit code.
    """
    arguments = build_parser().parse_args(argv)
    report = collect(measure=not arguments.no_measure)
    if arguments.json:
        emit(json.dumps(report, indent=2) + "\n")
        return 0
    from rich.console import Console

    is_terminal = sys.stdout is not None and sys.stdout.isatty()
    console = Console(file=io.StringIO(), force_terminal=is_terminal, width=shutil.get_terminal_size((100, 24)).columns)
    render(report, console)
    assert isinstance(console.file, io.StringIO), "the console writes into memory"
    emit(console.file.getvalue())
    return 0


def collect(*, measure: bool) -> dict[str, Any]:
    """Read the machine.

    Args:
        measure: whether to measure ceilings, which takes a few seconds a device.

    Returns:
        Plain JSON values; see the module's first lines for unknown ones.
    """
    load = load_average()  # before anything of ours runs
    import torch

    from bench.hardware.environment import read_environment, to_plain
    from bench.hardware.probe import count_cuda_devices

    cpu = torch.device("cpu")
    environment = read_environment(cpu)
    devices = [cpu, *(torch.device("cuda", index) for index in range(count_cuda_devices()))]
    report: dict[str, Any] = {
        "report_version": REPORT_VERSION,
        **{part: environment[part] for part in ("package", "python", "os", "torch", "cpu", "kernel_variables")},
        "allocator": environment["allocator"],
        "load_average": load,
        "memory": _memory(),
        "on_battery": _on_battery(),
        "nvidia": _driver(),
        "data": _data_sets(),
        "devices": [_device(device, measure=measure) for device in devices],
    }
    plain: dict[str, Any] = to_plain(report)
    plain["advice"] = advise(plain)
    return plain


def _device(device: torch.device, *, measure: bool) -> dict[str, Any]:
    """Everything about one device."""
    from bench.errors import HardwareError
    from bench.hardware.capability import integer_path
    from bench.hardware.environment import read_environment
    from bench.hardware.peaks import find_gpu
    from bench.hardware.probe import open_nvml, probe, read_peaks
    from bench.kernels.selfcheck import check_device
    from bench.native import notice, pieces
    from bench.units import Absent

    capability = probe(device)
    error, starts = "", True
    try:
        check_device(device)
    except HardwareError as failure:
        error = str(failure)
    except RuntimeError as failure:  # CUDA does not start: a driver too old for this torch, a GPU in a bad state
        error, starts = str(failure).splitlines()[0], False
    paths = {bits: integer_path(bits, capability, self_check_error=error) for bits in BIT_WIDTHS}
    gpu = open_nvml(device)
    load = _load_of(gpu)  # before our own products, while what holds the clocks back is read right after them
    ceilings = _ceilings(device, measure=measure) if starts else Absent(error)
    peaks: GpuPeaks | Absent = Absent("published peaks are listed for GPUs only")
    if device.type == "cuda":
        peaks = read_peaks(device, capability.name) if starts else find_gpu(capability.name)
    environment = read_environment(device)
    return {
        "device": str(device),
        "name": capability.name,
        "sm": capability.sm,
        "instruction_sets": capability.instruction_sets,
        "int4_units": capability.int4_units,
        "limits": {"min_rows": capability.limits.min_rows, "multiple": capability.limits.multiple},
        "self_check": Absent(error) if error else "passed",
        "elementwise": pieces(device),
        "elementwise_notice": notice() if device.type == "cpu" else Absent("the pieces are compiled for CPUs"),
        "integer_paths": {str(bits): {"label": path.label, "reason": path.reason} for bits, path in paths.items()},
        "ceilings": ceilings,
        "published": peaks
        if isinstance(peaks, Absent)
        else {
            "fp32_tflops": peaks.fp32_tflops,
            "bf16_tflops": peaks.bf16_tflops,
            "int8_tops": peaks.int8_tops,
            "int4_tops": peaks.int4_tops,
            "bandwidth_gb_s": peaks.bandwidth_gb_s,
            "memory_gb": peaks.memory_gb,
            "source": peaks.source,
        },
        "state": environment["device"] | load
        if device.type == "cuda"
        else {name: environment["cpu"][name] for name in ("governor", "clock_mhz", "max_clock_mhz")},
        "energy_counter": _energy_counter(device),
        "other_processes": _other_processes(gpu, holds_context=starts),
    }


def _other_processes(gpu: NvmlDevice | Absent, *, holds_context: bool) -> Any:
    from bench.units import Absent

    return gpu if isinstance(gpu, Absent) else gpu.count_other_processes(holds_context=holds_context)


def _load_of(gpu: NvmlDevice | Absent) -> dict[str, Any]:
    """What a GPU is doing and how it is set, beyond what a record keeps."""
    names = ("utilisation_pct", "memory_used_bytes", "power_w", "default_power_limit_w")
    from bench.units import Absent

    return {name: gpu if isinstance(gpu, Absent) else getattr(gpu, name)() for name in names}


def _energy_counter(device: torch.device) -> Any:
    """Whether the energy of a step can be measured here."""
    from bench.profilers.nvml_sampler import open_sensor
    from bench.units import Absent

    counters = open_sensor(device).energy_counters_j()
    return counters if isinstance(counters, Absent) else "readable"


def _ceilings(device: torch.device, *, measure: bool) -> Any:
    """Measured while no pass runs on the device; where one does for long, the reason."""
    from bench.errors import HardwareError
    from bench.locks import device_lock
    from bench.profilers.ceilings import measure_ceilings
    from bench.units import Absent

    if not measure:
        return Absent("not measured: --no-measure")
    try:
        with device_lock(str(device), wait_s=_LOCK_WAIT_S):
            ceilings: Ceilings = measure_ceilings(device, budget_s=_CEILING_BUDGET_S)
    except HardwareError as error:
        return Absent(f"not measured: {str(error).rstrip('.')}")
    return {
        "int8_gops": ceilings.int8_gops,
        "fp32_gflops": ceilings.fp32_gflops,
        "bf16_gflops": ceilings.bf16_gflops,
        "copy_gb_s": ceilings.copy_gb_s,
    }


def _driver() -> dict[str, Any]:
    from bench.hardware import nvml

    return {
        "driver": nvml.driver_version(),
        "driver_cuda": nvml.driver_cuda_version(),
        "gpus_seen": nvml.count_gpus(),
    }


def _data_sets() -> dict[str, Any]:
    """Which data sets are on this machine; no path is told."""
    from bench.data import DATASETS, check_data
    from bench.errors import DataError
    from bench.units import Absent

    def look(name: str) -> Any:
        try:
            check_data(name, download=False)
        except DataError:
            if not DATASETS[name].can_download:
                return Absent("not in the cache; data.root names your folder")
            try:
                check_data(name, download=True)
            except DataError:
                return Absent("damaged, and metagrad-bench run with it says which file")
            return "downloaded when first used"
        return "found"

    return {name: look(name) for name in DATASETS if name != "synthetic"}


def load_average() -> Any:
    """Processes that ran or waited to run, on average over the last minute."""
    try:
        return os.getloadavg()[0]
    except (OSError, AttributeError):
        return {"reason": "this system keeps no load average"}


def _memory() -> dict[str, int]:
    import psutil

    memory = psutil.virtual_memory()
    return {"total_bytes": memory.total, "available_bytes": memory.available}


def _on_battery() -> Any:
    import psutil

    read = getattr(psutil, "sensors_battery", None)
    battery = read() if read else None
    return {"reason": "this machine has no battery"} if battery is None else not battery.power_plugged


def advise(report: dict[str, Any]) -> list[str]:
    """Say what would spoil a measurement, one sentence each.

    Args:
        report: what ``collect`` returns, advice apart.
    """
    advice: list[str] = []
    cores = report["cpu"]["usable_cores"]
    if _known(report["load_average"]) and report["load_average"] > BUSY_LOAD:
        advice.append(
            f"Other programs ran in the last minute (load average {report['load_average']:.1f} on {cores} cores): wait "
            "or stop them, since they share the cores with what is timed."
        )
    advice += _thread_advice(report)
    governor = report["cpu"]["governor"]
    if _known(governor) and governor != "performance":
        advice.append(
            f"The CPU governor is {governor}, so clocks follow the load: set it to performance while measuring "
            "(cpupower frequency-set -g performance)."
        )
    if report["on_battery"] is True:
        advice.append("The machine runs on its battery and will lower its clocks: plug it in.")
    if report["memory"]["available_bytes"] < _LITTLE_MEMORY_BYTES:
        advice.append("Less than 2 GiB of memory is free: a training step may be swapped out while it is timed.")
    if len(report["devices"]) == 1 and _known(report["nvidia"]["driver"]) and report["nvidia"]["gpus_seen"] != 0:
        advice.append(
            f"The NVIDIA driver sees a GPU that torch {report['torch']['version']} cannot use: install a torch built "
            "for CUDA, or look at CUDA_VISIBLE_DEVICES."
        )
    for device in report["devices"]:
        advice += _device_advice(device)
    return advice


def _thread_advice(report: dict[str, Any]) -> list[str]:
    threads, cpu = report["torch"]["threads"], report["cpu"]
    limit = cpu["usable_cores"]
    if _known(cpu["cgroup_cores"]) and cpu["cgroup_cores"] < limit:
        limit = cpu["cgroup_cores"]
    if threads > limit:
        return [
            f"torch uses {threads} threads where only {limit:g} cores may be used: set OMP_NUM_THREADS="
            f"{max(1, int(limit))}, or threads will wait for one another."
        ]
    physical = cpu["physical_cores"]
    if _known(physical) and threads > physical:
        return [f"torch uses {threads} threads on {physical} physical cores: OMP_NUM_THREADS={physical} is steadier."]
    if _known(physical) and threads < min(physical, int(limit)):
        return [
            f"torch uses {threads} of {min(physical, int(limit))} cores: raise OMP_NUM_THREADS if that is not meant."
        ]
    return []


def _device_advice(device: dict[str, Any]) -> list[str]:
    name, advice = device["device"], []
    if not _known(device["self_check"]):
        advice.append(
            f"On {name} the integer product is wrong or does not run ({device['self_check']['reason'].rstrip('.')}): "
            "use dispatch=simulate there."
        )
    elif name == "cpu" and not {"avx512_vnni", "amx_int8"} & set(device["instruction_sets"]):
        advice.append(
            "This CPU has neither AVX512-VNNI nor AMX: integer products are exact but slow here, so read accuracy and "
            "memory from this machine and not speed."
        )
    if name == "cpu" and not _known(device["elementwise"]):
        advice.append(
            f"Element-wise work runs in plain torch ({device['elementwise']['reason']}): results are right, steps "
            "slower. A C compiler with OpenMP (on Debian: apt-get install gcc) is found at the next start."
        )
    if name == "cpu" and _known(device["elementwise_notice"]):
        advice.append(device["elementwise_notice"])
    ceilings = device["ceilings"]
    if not _known(ceilings) and "another pass holds" in ceilings["reason"]:
        advice.append(f"A run of metagrad-bench is under way on {name}: wait for its end, its times would suffer too.")
    if name == "cpu":
        return advice
    others, state = device["other_processes"], device["state"]
    if _known(others) and others:
        advice.append(f"{others} other process(es) use {name}: stop them, since they share its clocks and memory.")
    if state["mig"] is True:
        advice.append(f"{name} is a MIG instance: its neighbours share power and clocks, which cannot be read here.")
    reasons = set(state["clock_reasons"]) if _known(state["clock_reasons"]) else set()
    from bench.hardware.nvml import THROTTLE_REASONS

    if reasons & THROTTLE_REASONS:
        held = ", ".join(sorted(reasons & THROTTLE_REASONS))
        advice.append(f"{name} is being throttled ({held}): let it cool or raise its power limit before measuring.")
    limit, default = state["power_limit_w"], state["default_power_limit_w"]
    if _known(limit) and _known(default) and limit < default:
        advice.append(
            f"{name} is limited to {limit:g} W of its {default:g} W: times hold for this limit only (nvidia-smi -pl)."
        )
    if _known(state["utilisation_pct"]) and state["utilisation_pct"] > _BUSY_GPU_PCT and not _known(others):
        advice.append(
            f"{name} is {state['utilisation_pct']} % busy though nothing of ours runs there: others use it, and their "
            "processes cannot be seen from here."
        )
    if not _known(state["clock_mhz"]) and state["mig"] is not True:
        advice.append(
            f"The clocks of {name} cannot be read ({state['clock_mhz']['reason']}): throttling would go unseen."
        )
    return advice


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
    rows += _path_rows(device["integer_paths"])
    measured: list[tuple[str, str, str]] = [
        ("int8 product", "int8_gops", "{:,.0f} GOP/s measured"),
        ("FP32 product", "fp32_gflops", "{:,.0f} GFLOP/s measured"),
        ("bf16 product", "bf16_gflops", "{:,.0f} GFLOP/s measured"),
        ("copy", "copy_gb_s", "{:,.1f} GB/s measured"),
    ]
    ceilings = device["ceilings"]
    rows += [
        (name, _text(ceilings[key], unit) if _known(ceilings) else _text(ceilings)) for name, key, unit in measured
    ]
    published = device["published"]
    if _known(published):
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


def _path_rows(paths: dict[str, dict[str, str]]) -> list[tuple[str, str]]:
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


def _known(value: Any) -> bool:
    """Whether a plain value is one, and not the reason why there is none."""
    return not (isinstance(value, dict) and set(value) == {"reason"})


def _text(value: Any, template: str = "{}") -> str:
    if not _known(value):
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
    if not _known(package["git_commit"]):
        return _text(package["git_commit"])
    return f"commit {package['git_commit'][:12]}{' with changes' if package['git_dirty'] is True else ''}"


if __name__ == "__main__":
    sys.exit(main())
