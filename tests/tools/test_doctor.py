"""Doctor runs as a command; its advice is tested on planted machines."""

from __future__ import annotations

import copy
import getpass
import json
import os
import platform
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console

from bench.hardware.capability import cuda_capability, integer_path
from bench.locks import device_lock
from bench.units import Absent
from tools.doctor import devices
from tools.doctor.advice import advise
from tools.doctor.tables import path_rows, render
from tools.doctor.verb import build_parser, main

CHECKOUT = Path(__file__).resolve().parents[2]


def run_doctor(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tools.doctor", *arguments],
        cwd=CHECKOUT,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def json_text() -> str:
    result = run_doctor("--json", "--no-measure")
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture
def report(json_text: str) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(json_text)
    return parsed


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [leaf for part in value.values() for leaf in leaves(part)]
    if isinstance(value, list):
        return [leaf for part in value for leaf in leaves(part)]
    return [value]


def test_json_has_a_value_or_a_reason_everywhere(report: dict[str, Any]) -> None:
    assert all(leaf is not None and leaf != "" for leaf in leaves(report))
    cpu = report["devices"][0]
    assert cpu["device"] == "cpu"
    assert cpu["ceilings"] == {"reason": "not measured: --no-measure"}
    assert set(cpu["integer_paths"]) == set("12345678")
    assert cpu["energy_counter"] == "readable" or cpu["energy_counter"]["reason"]
    for path in cpu["integer_paths"].values():
        assert path["label"] in {"integer", "emulated", "simulated"}
        assert path["reason"]
    assert set(report["nvidia"]) == {"driver", "driver_cuda", "gpus_seen"}
    assert isinstance(report["advice"], list)


def test_a_cpu_has_every_key_that_a_gpu_has_with_a_value_or_a_reason(report: dict[str, Any]) -> None:
    cpu = report["devices"][0]
    assert set(gpu()) <= set(cpu)
    assert set(gpu()["state"]) <= set(cpu["state"])
    assert cpu["state"]["mig"] == {"reason": "only GPUs are divided into instances"}
    assert cpu["state"]["power_limit_w"] == {"reason": "power limits are read of GPUs only"}
    reasons = cpu["state"]["clock_reasons"]
    assert isinstance(reasons, list) or "thermal throttling" in reasons["reason"]
    assert "the load average tells of others" in cpu["other_processes"]["reason"]
    load = cpu["state"]["utilisation_pct"]
    assert isinstance(load, dict) or 0 <= load <= 100


def test_neither_user_nor_host_nor_home_is_printed(json_text: str) -> None:
    assert str(Path.home()) not in json_text
    assert str(CHECKOUT) not in json_text
    words = set(re.findall(r"[\w.-]+", json_text))
    for private in (platform.node(), getpass.getuser()):
        assert private not in words or private in {"", "root"}


def test_the_table_shows_measured_ceilings_and_takes_any_width() -> None:
    result = run_doctor(COLUMNS="100")
    assert result.returncode == 0, result.stderr
    assert "This machine" in result.stdout
    assert re.search(r"int8 product\s+│ [\d,]+ GOP/s measured", result.stdout)
    assert re.search(r"copy\s+│ [\d,.]+ GB/s measured", result.stdout)
    assert re.search(r"8-bit products\s+│ integer: ", result.stdout)


def test_help_is_complete_and_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for words in ("--json", "--no-measure", "metagrad-bench doctor --json", "exit code"):
        assert words in text
    assert build_parser().prog == "metagrad-bench doctor"


def test_an_unknown_argument_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["--nonsense"])
    assert stop.value.code == 2
    assert "--nonsense" in capsys.readouterr().err


@pytest.fixture
def quiet(report: dict[str, Any]) -> dict[str, Any]:
    """A machine on which nothing spoils a measurement."""
    report = copy.deepcopy(report)
    report.pop("advice")
    report["load_average"] = 0.0
    report["on_battery"] = False
    report["torch"]["threads"] = 2
    report["cpu"] |= {
        "usable_cores": 2,
        "physical_cores": 2,
        "governor": "performance",
        "cgroup_cores": {"reason": "none"},
    }
    report["memory"]["available_bytes"] = 2**34
    report["nvidia"] = {key: {"reason": "no driver"} for key in ("driver", "driver_cuda", "gpus_seen")}
    report["devices"] = report["devices"][:1]
    report["devices"][0] |= {
        "self_check": "passed",
        "instruction_sets": ["avx512_vnni"],
        "elementwise": "compiled by gcc",
        "elementwise_notice": {"reason": "in the user's cache"},
    }
    return report


def gpu(**changes: Any) -> dict[str, Any]:
    state = {
        "mig": False, "clock_mhz": 1980, "max_clock_mhz": 1980, "clock_reasons": ["idle"], "driver": "570.86.10",
        "power_limit_w": 700.0, "default_power_limit_w": 700.0, "temperature_c": 40, "utilisation_pct": 0,
        "memory_used_bytes": 2**20, "power_w": 70.0, "memory_clock_mhz": 2619,
    }  # fmt: skip
    state.update(changes.pop("state", {}))
    return {
        "device": "cuda:0", "name": "NVIDIA A100-SXM4-80GB", "sm": 80, "instruction_sets": [], "int4_units": True,
        "limits": {"min_rows": 17, "multiple": 8}, "self_check": "passed",
        "elementwise": {"reason": "torch's own operators"},
        "integer_paths": {"4": {"label": "emulated", "reason": "sm_80 has INT4 tensor cores, present but unused"}},
        "ceilings": {"reason": "not measured"}, "published": {"reason": "[not] in the table"}, "state": state,
        "other_processes": 0, "energy_counter": "readable",
    } | changes  # fmt: skip


def test_a_machine_without_a_compiler_is_told_what_it_lacks(tmp_path: Path) -> None:
    result = run_doctor("--json", "--no-measure", PATH=str(tmp_path))
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert "no C compiler found" in found["devices"][0]["elementwise"]["reason"]
    assert any("A C compiler with OpenMP" in sentence for sentence in found["advice"])


def test_a_quiet_machine_gets_no_advice(quiet: dict[str, Any]) -> None:
    assert advise(quiet) == []
    quiet["devices"].append(gpu())
    assert advise(quiet) == []


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        (("load_average",), 3.2, "load average 3.2 on 2 cores"),
        (("on_battery",), True, "plug it in"),
        (("torch", "threads"), 8, "OMP_NUM_THREADS=2"),
        (("torch", "threads"), 1, "torch uses 1 of 2 cores"),
        (("cpu", "physical_cores"), 1, "1 physical cores"),
        (("cpu", "cgroup_cores"), 1.5, "only 1.5 cores may be used: set OMP_NUM_THREADS=1"),
        (("cpu", "governor"), "powersave", "governor is powersave"),
        (("memory", "available_bytes"), 2**30, "Less than 2 GiB"),
        (("nvidia",), {"driver": "570", "driver_cuda": "12.8", "gpus_seen": 1}, "sees a GPU that torch"),
        (("devices", 0, "instruction_sets"), ["avx2"], "neither AVX512-VNNI nor AMX"),
        (("devices", 0, "self_check"), {"reason": "3 sums were wrong"}, "(3 sums were wrong): use dispatch=simulate"),
        (("devices", 0, "elementwise"), {"reason": "no C compiler found"}, "(no C compiler found): results are right"),
        (("devices", 0, "elementwise_notice"), "They lie in /tmp/x.", "They lie in /tmp/x."),
    ],
)
def test_each_spoiler_gets_one_sentence(quiet: dict[str, Any], path: tuple[Any, ...], value: Any, words: str) -> None:
    part = quiet
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    advice = advise(quiet)
    assert len(advice) == 1
    assert words in advice[0]
    assert advice[0].endswith(".")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"other_processes": 2}, "2 other process(es) use cuda:0"),
        ({"state": {"clock_reasons": ["idle", "sw_thermal_slowdown"]}}, "throttled (sw_thermal_slowdown)"),
        ({"state": {"mig": True, "clock_mhz": {"reason": "MIG"}}}, "is a MIG instance"),
        ({"state": {"clock_mhz": {"reason": "no permission"}}}, "cannot be read (no permission)"),
        ({"state": {"power_limit_w": 400.0}}, "limited to 400 W of its 700 W"),
        (
            {"other_processes": {"reason": "hidden"}, "state": {"utilisation_pct": 80}},
            "is 80 % busy though nothing of ours runs there",
        ),
        ({"ceilings": {"reason": "not measured: another pass holds cuda:0"}}, "under way on cuda:0"),
        ({"self_check": {"reason": "it did not run."}}, "(it did not run): use dispatch=simulate"),
    ],
)
def test_each_spoiler_on_a_gpu_gets_one_sentence(quiet: dict[str, Any], changes: dict[str, Any], words: str) -> None:
    quiet["devices"].append(gpu(**changes))
    advice = advise(quiet)
    assert len(advice) == 1
    assert words in advice[0]


def test_the_table_says_that_int4_units_stay_unused_and_prints_brackets_as_they_are(quiet: dict[str, Any]) -> None:
    quiet["devices"].append(gpu())
    console = Console(width=120, record=True, file=open(os.devnull, "w"))  # noqa: PTH123, SIM115
    with console.file:
        render(quiet | {"advice": []}, console)
        text = console.export_text()
    assert "emulated: sm_80 has INT4 tensor cores, present but unused" in text
    assert "n/a ([not] in the table)" in text
    assert "at least 17 rows, K and N in multiples of 8" in text
    assert "Nothing seen that would spoil a measurement." in text


GPU_WITHOUT_CUDA = """
import json, os, torch
import bench.kernels.selfcheck
from bench.hardware import nvml
from bench.hardware.environment import to_plain
from tools.doctor.devices import describe_device

def fail(device):
    raise RuntimeError("The NVIDIA driver on your system is too old.\\nPlease update it.")

bench.kernels.selfcheck.check_device = fail
nvml._INIT_PID_NAMESPACE = os.readlink("/proc/self/ns/pid")  # as on a host, also where the tests run in a container
print(json.dumps(to_plain(describe_device(torch.device("cuda", 1), measure=True))))
"""


def test_a_gpu_that_cuda_cannot_start_is_described_and_not_measured(under_driver: Callable[..., Any]) -> None:
    device = under_driver(GPU_WITHOUT_CUDA)
    too_old = {"reason": "The NVIDIA driver on your system is too old."}
    assert device["self_check"] == device["ceilings"] == too_old
    assert {path["label"] for path in device["integer_paths"].values()} == {"simulated"}
    assert device["name"] == "NVIDIA H100 80GB HBM3"
    assert device["published"]["int8_tops"] == 1979
    assert device["state"]["clock_reasons"] == ["sw_power_cap", "sw_thermal_slowdown"]
    assert device["other_processes"] == 0
    assert (device["state"]["power_limit_w"], device["state"]["default_power_limit_w"]) == (700.0, 750.0)
    assert device["energy_counter"] == "readable"


def test_data_sets_are_found_or_said_to_be_fetched(report: dict[str, Any]) -> None:
    assert report["data"]["digits"] == "found"
    imagenet = report["data"].pop("imagenet")  # found where it lies in the user's cache
    assert imagenet == "found" or "data.root names your folder" in imagenet["reason"]
    assert all(answer in ("found", "downloaded when first used") for answer in report["data"].values())


def test_a_run_that_holds_the_device_is_not_measured_into(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "LOCK_WAIT_S", 0.1)
    with device_lock("cpu"):
        ceilings = devices.device_ceilings(torch.device("cpu"), measure=True)
    assert ceilings == Absent("not measured: another pass holds cpu: wait until it is done")


def test_widths_of_one_path_share_a_row(report: dict[str, Any]) -> None:
    names = [name for name, _ in path_rows(report["devices"][0]["integer_paths"])]
    assert names == ["8-bit products", "7- to 1-bit products"]
    with_int4 = {str(bits): integer_path(bits, cuda_capability("NVIDIA A100", 80)) for bits in range(8, 0, -1)}
    rows = path_rows({bits: {"label": p.label, "reason": p.reason} for bits, p in with_int4.items()})
    assert [name for name, _ in rows] == [
        "8-bit products", "7- to 5-bit products", "4-bit products", "3- to 1-bit products"
    ]  # fmt: skip
    assert "present but unused" in rows[2][1]


def test_a_log_that_knows_only_ascii_gets_its_tables() -> None:
    result = run_doctor("--no-measure", PYTHONIOENCODING="ascii")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.isascii()
    assert "| self-check of int8" in result.stdout
    assert "\\u" not in result.stdout


@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_reader_that_went_away_or_a_closed_output_is_no_failure(form: list[str]) -> None:
    command = [sys.executable, "-m", "tools.cli", "doctor", "--no-measure", *form]
    reader, writer = os.pipe()
    os.close(reader)
    gone = subprocess.run(command, cwd=CHECKOUT, stdout=writer, stderr=subprocess.PIPE, timeout=300, check=False)
    os.close(writer)
    assert (gone.returncode, gone.stderr) == (0, b"")
    closed = subprocess.run(
        ["sh", "-c", 'exec "$@" >&-', "sh", *command], cwd=CHECKOUT, stderr=subprocess.PIPE, timeout=300, check=False
    )
    assert (closed.returncode, closed.stderr) == (0, b"")


def test_a_full_disk_is_one_sentence() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "tools.cli", "doctor", "--no-measure"], cwd=CHECKOUT, stdout=full,
            stderr=subprocess.PIPE, timeout=300, check=False,
        )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        b"metagrad-bench: The output cannot be written: No space left on device; free space or print elsewhere.\n"
    )
