"""Reads the machine into a plain dict; ``advice`` turns that into sentences, ``tables`` prints both.

Unknown values are ``{"reason": "..."}`` in JSON and ``n/a (...)`` in the table. No user, host or path is told.
"""

from __future__ import annotations

import os
from typing import Any

from tools.doctor.advice import advise
from tools.doctor.devices import describe_device

REPORT_VERSION = 1


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
        "devices": [describe_device(device, measure=measure) for device in devices],
    }
    plain: dict[str, Any] = to_plain(report)
    plain["advice"] = advise(plain)
    return plain


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
