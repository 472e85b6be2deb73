"""The real nvidia-ml-py against a fake driver library."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

PRELUDE = """
import json, os
from bench.hardware import nvml
from bench.units import Absent

def plain(value):
    return {"reason": value.reason} if isinstance(value, Absent) else value

def read(gpu, *names):
    return {name: plain(getattr(gpu, name)()) for name in names}

COUNTERS = ("power_w", "power_limit_w", "default_power_limit_w", "energy_j", "temperature_c", "clock_mhz",
            "max_clock_mhz", "memory_clock_mhz", "max_memory_clock_mhz", "utilisation_pct", "clock_reasons",
            "memory_total_bytes", "memory_used_bytes", "process_bytes")
"""
GPU_0 = PRELUDE + "gpu = nvml.open_device(0)\n"
READ_ALL = GPU_0 + "print(json.dumps({'name': plain(gpu.name()), 'sm': plain(gpu.sm()), **read(gpu, *COUNTERS)}))"


def test_each_counter_arrives_in_its_unit(under_driver: Callable[..., Any]) -> None:
    assert under_driver(READ_ALL) == {
        "name": "NVIDIA H100 80GB HBM3",
        "sm": 90,
        "power_w": 350.5,
        "power_limit_w": 700.0,
        "default_power_limit_w": 700.0,
        "energy_j": 1000.0,
        "temperature_c": 41,
        "clock_mhz": 1980,
        "max_clock_mhz": 1980,
        "memory_clock_mhz": 2619,
        "max_memory_clock_mhz": 2619,
        "utilisation_pct": 97,
        "clock_reasons": [],
        "memory_total_bytes": 85520809984,
        "memory_used_bytes": 3221225472,
        "process_bytes": 2147483648,
    }


def test_an_old_driver_is_asked_by_the_older_names(under_driver: Callable[..., Any]) -> None:
    answer = under_driver(READ_ALL, old_driver=True)
    assert answer["clock_reasons"] == []
    assert answer["process_bytes"] == 2147483648


def test_driver_versions_and_the_number_of_gpus(under_driver: Callable[..., Any]) -> None:
    script = PRELUDE + "print(json.dumps([nvml.driver_version(), nvml.driver_cuda_version(), nvml.count_gpus()]))"
    assert under_driver(script) == ["570.86.10", "12.8", 2]


def test_the_second_gpu_says_why_its_clock_is_low(under_driver: Callable[..., Any]) -> None:
    script = PRELUDE + "print(json.dumps(nvml.open_device(1).clock_reasons()))"
    assert under_driver(script) == ["sw_power_cap", "sw_thermal_slowdown"]


def test_a_process_is_counted_once_and_others_without_it(under_driver: Callable[..., Any]) -> None:
    script = GPU_0 + (
        "nvml._INIT_PID_NAMESPACE = os.readlink('/proc/self/ns/pid')\n"
        "print(json.dumps([gpu.process_bytes(), gpu.count_other_processes(holds_context=True), "
        "nvml.open_device(1).count_other_processes(holds_context=False)]))"
    )
    assert under_driver(script) == [2147483648, 1, 0]


def test_unsupported_energy_has_a_reason_and_power_a_value(under_driver: Callable[..., Any]) -> None:
    script = GPU_0 + "print(json.dumps(read(gpu, 'energy_j', 'power_w')))"
    assert under_driver(script, "no_energy") == {
        "energy_j": {"reason": "this GPU does not report it"},
        "power_w": 350.5,
    }


def test_without_permission_every_counter_says_so(under_driver: Callable[..., Any]) -> None:
    script = GPU_0 + "print(json.dumps(read(gpu, *COUNTERS)))"
    answer = under_driver(script, "no_permission")
    assert len(answer) == 14
    assert {value["reason"] for value in answer.values()} == {"the driver does not let this user read it"}


def test_a_driver_that_vanishes_leaves_a_reason_from_then_on(under_driver: Callable[..., Any]) -> None:
    script = GPU_0 + "print(json.dumps([plain(gpu.power_w()) for _ in range(4)]))"
    lost = {"reason": "the GPU is lost: it or its driver vanished"}
    assert under_driver(script, "lost", FAKE_NVML_CALLS="2") == [350.5, 350.5, lost, lost]


def test_a_driver_that_is_not_loaded_opens_nothing(under_driver: Callable[..., Any]) -> None:
    script = PRELUDE + "print(json.dumps([plain(nvml.open_device(0)), plain(nvml.count_gpus())]))"
    not_loaded = {"reason": "the NVIDIA driver is not loaded"}
    assert under_driver(script, "no_driver") == [not_loaded, not_loaded]


def test_a_mig_instance_has_memory_of_its_own_but_no_power(under_driver: Callable[..., Any]) -> None:
    answer = under_driver(READ_ALL, "mig")
    assert answer["name"] == "NVIDIA H100 80GB HBM3 MIG 1g.10gb"
    assert answer["sm"] == 90
    assert answer["memory_total_bytes"] == 10200547328
    for counter in ("power_w", "energy_j", "clock_mhz", "clock_reasons", "temperature_c", "utilisation_pct"):
        assert answer[counter]["reason"].startswith("a MIG instance has no such counter")


def test_a_mig_instance_named_in_the_environment_is_opened_by_its_uuid(under_driver: Callable[..., Any]) -> None:
    script = GPU_0 + "print(json.dumps([gpu.is_mig, gpu.memory_total_bytes()]))"
    assert under_driver(script, CUDA_VISIBLE_DEVICES="MIG-33333333") == [True, 10200547328]


@pytest.mark.parametrize(
    ("visible", "temperature"), [("1,0", 86), ("1", 86), ("GPU-2222", 86), ("GPU-11111111", 41), ("0", 41)]
)
def test_the_visible_order_decides_which_gpu_is_cuda_0(
    under_driver: Callable[..., Any], visible: str, temperature: int
) -> None:
    script = GPU_0 + "print(json.dumps(gpu.temperature_c()))"
    assert under_driver(script, CUDA_VISIBLE_DEVICES=visible) == temperature


def test_an_index_beyond_the_visible_gpus_says_how_many_there_are(under_driver: Callable[..., Any]) -> None:
    script = PRELUDE + "print(json.dumps(plain(nvml.open_device(1))))"
    answer = under_driver(script, CUDA_VISIBLE_DEVICES="0")
    assert answer["reason"] == "CUDA_VISIBLE_DEVICES leaves 1 GPU(s), so there is no cuda:1"


def test_unlike_gpus_are_not_guessed_at_by_index(under_driver: Callable[..., Any]) -> None:
    by_index = PRELUDE + "print(json.dumps(plain(nvml.open_device(1))))"
    by_address = PRELUDE + "print(json.dumps(nvml.open_device(1, pci_bus_id='00000000:86:00.0').name()))"
    by_order = PRELUDE + "print(json.dumps(nvml.open_device(1).name()))"
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in under_driver(by_index, "unlike")["reason"]
    assert under_driver(by_address, "unlike") == "NVIDIA T4"
    assert under_driver(by_order, "unlike", CUDA_DEVICE_ORDER="PCI_BUS_ID") == "NVIDIA T4"


def test_process_ids_of_another_namespace_are_not_taken_for_ours(under_driver: Callable[..., Any]) -> None:
    in_container = GPU_0 + (
        "nvml._INIT_PID_NAMESPACE = 'another'\n"
        "print(json.dumps([plain(gpu.process_bytes()), gpu.count_other_processes(holds_context=True), "
        "gpu.count_other_processes(holds_context=False)]))"
    )
    on_host = in_container.replace("'another'", "os.readlink('/proc/self/ns/pid')")
    hidden = {"reason": "NVML lists the host's process ids, which this container cannot match with its own"}
    assert under_driver(in_container, "foreign_pids") == [hidden, 1, 2]
    unlisted = {"reason": "NVML lists no GPU memory for this process"}
    assert under_driver(on_host, "foreign_pids") == [unlisted, 2, 2]


def test_a_forked_child_starts_the_driver_anew(under_driver: Callable[..., Any]) -> None:
    script = GPU_0 + (
        "gpu.power_w(); before = nvml._initialised_in\n"
        "reader, writer = os.pipe()\n"
        "if os.fork() == 0:\n"
        "    gpu = nvml.open_device(0)\n"
        "    os.write(writer, json.dumps([gpu.power_w(), nvml._initialised_in == os.getpid() != before]).encode())\n"
        "    os._exit(0)\n"
        "os.wait(); print(os.read(reader, 100).decode())"
    )
    assert under_driver(script) == [350.5, True]


def test_without_a_driver_library_there_is_a_reason() -> None:
    script = (
        "import ctypes, pynvml\n"
        "def missing(name, *rest, **more): raise OSError(name)\n"
        "pynvml.CDLL = missing\n"
        "from bench.hardware import nvml\n"
        "print(nvml.count_gpus().reason)"
    )
    answer = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=True)
    assert answer.stdout.strip() == "no NVIDIA driver library on this machine"


def test_an_empty_list_in_a_container_means_hidden_and_not_nobody(under_driver: Callable[..., Any]) -> None:
    script = PRELUDE + (
        "nvml._INIT_PID_NAMESPACE = 'another'\n"
        "print(json.dumps(plain(nvml.open_device(1).count_other_processes(holds_context=False))))"
    )
    assert under_driver(script) == {"reason": "NVML shows no process list to this container"}
