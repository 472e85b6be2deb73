from __future__ import annotations

import copy
import getpass
import json
import os
import platform
import re
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.hardware import environment as room
from bench.hardware.environment import (
    FINGERPRINT_FIELDS,
    cgroup_cores,
    cpu_clock_mhz,
    cpu_governor,
    describe_differences,
    fingerprint,
    memory_allocator,
    read_environment,
)
from bench.units import Absent

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def environment() -> dict[str, Any]:
    return read_environment(CPU)


def leaves(value: Any) -> list[Any]:
    if isinstance(value, dict) and set(value) != {"reason"}:
        return [leaf for part in value.values() for leaf in leaves(part)]
    return [value]


def test_the_block_is_plain_json_with_a_value_or_a_reason_everywhere(environment: dict[str, Any]) -> None:
    assert json.loads(json.dumps(environment)) == environment
    for leaf in leaves(environment):
        assert type(leaf) in (str, int, float, bool, list, dict), "torch's version, for one, is a class of its own"
        assert leaf != ""


def test_the_block_describes_this_torch_and_this_cpu(environment: dict[str, Any]) -> None:
    assert environment["torch"]["version"] == torch.__version__
    assert environment["torch"]["threads"] == torch.get_num_threads()
    assert environment["python"]["version"] == platform.python_version()
    assert environment["device"]["kind"] == "cpu"
    assert environment["cpu"]["usable_cores"] == len(os.sched_getaffinity(0))


def test_compiled_and_plain_pieces_are_no_comparable_timings() -> None:
    plain, compiled = (
        read_environment(CPU, elementwise=pieces) for pieces in (Absent("no C compiler found"), "compiled by gcc")
    )
    assert plain["elementwise"] == {"reason": "no C compiler found"}
    assert fingerprint(plain) != fingerprint(compiled)
    assert describe_differences(plain, compiled) == ("element-wise pieces: unknown against compiled by gcc",)


def test_no_user_host_home_or_folder_is_named(environment: dict[str, Any]) -> None:
    text = json.dumps({**environment, "kernel_variables": {}})
    assert str(Path.home()) not in text
    assert str(Path.cwd()) not in text
    words = set(re.findall(r"[\w.-]+", text))
    for private in (platform.node(), getpass.getuser()):
        assert private not in words or private in {"", "root"}


def test_a_checkout_names_its_commit_and_whether_it_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=A", "-c", "user.email=a@example.org"]
        command = ["git", "-C", str(tmp_path), *identity, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    monkeypatch.setattr(room, "_CHECKOUT", tmp_path)
    assert room._package()["git_commit"] == Absent("the package does not run from a git checkout")
    git("init", "-q")
    (tmp_path / "pyproject.toml").write_text("[project]\n")
    git("add", "pyproject.toml")
    git("commit", "-q", "-m", "first")
    package = room._package()
    assert (package["git_commit"], package["git_dirty"]) == (git("rev-parse", "HEAD"), False)
    (tmp_path / "pyproject.toml").write_text("[project]\nname = 'changed'\n")
    assert room._package()["git_dirty"] is True


def test_a_package_inside_somebody_elses_repository_names_no_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    inside = tmp_path / "venv" / "site-packages"
    inside.mkdir(parents=True)
    monkeypatch.setattr(room, "_CHECKOUT", inside)
    assert isinstance(room._package()["git_commit"], Absent)


def test_the_fingerprint_ignores_what_does_not_change_timings(environment: dict[str, Any]) -> None:
    other = copy.deepcopy(environment)
    other["package"] = {"version": "9", "git_commit": "0" * 40, "git_dirty": True}
    other["cpu"]["clock_mhz"] = 1234.5
    other["device"]["temperature_c"] = 80
    other["cpu"]["governor"] = {"reason": "said in other words"}
    environment = {**environment, "cpu": {**environment["cpu"], "governor": {"reason": "not to be seen"}}}
    assert fingerprint(other) == fingerprint(environment)
    assert describe_differences(environment, other) == ()


@pytest.mark.parametrize("path", [path for path, _ in FINGERPRINT_FIELDS])
def test_every_field_of_the_fingerprint_changes_it_and_is_named(environment: dict[str, Any], path: str) -> None:
    other = copy.deepcopy(environment)
    *parents, last = path.split(".")
    part = other
    for key in parents:
        part = part[key]
    part[last] = "something else"
    words = dict(FINGERPRINT_FIELDS)[path]
    assert fingerprint(other) != fingerprint(environment)
    differences = describe_differences(environment, other)
    assert len(differences) == 1
    assert differences[0].startswith(f"{words}: ")
    assert differences[0].endswith(" against something else")


def test_a_difference_reads_as_words(environment: dict[str, Any]) -> None:
    ours, theirs = copy.deepcopy(environment), copy.deepcopy(environment)
    ours["torch"]["threads"], theirs["torch"]["threads"] = 2, 4
    ours["cpu"]["governor"], theirs["cpu"]["governor"] = "powersave", {"reason": "not shown"}
    assert describe_differences(ours, theirs) == (
        "number of threads: 2 against 4",
        "CPU frequency governor: powersave against unknown",
    )


def test_the_fingerprint_starts_with_the_kind_of_device(environment: dict[str, Any]) -> None:
    assert re.fullmatch(r"cpu-[0-9a-f]{12}", fingerprint(environment))


def test_cpu_quotas_of_both_cgroup_versions_are_cores(tmp_path: Path) -> None:
    new, old, free = tmp_path / "new", tmp_path / "old", tmp_path / "free"
    for folder in (new, old / "cpu", free):
        folder.mkdir(parents=True)
    (new / "cpu.max").write_text("150000 100000\n")
    (old / "cpu" / "cpu.cfs_quota_us").write_text("50000\n")
    (old / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    (free / "cpu.max").write_text("max 100000\n")
    assert cgroup_cores(new) == 1.5
    assert cgroup_cores(old) == 0.5
    assert cgroup_cores(free) == Absent("no CPU quota is set")
    assert isinstance(cgroup_cores(tmp_path / "nowhere"), Absent)


def test_clocks_and_governor_come_from_sysfs_or_have_a_reason(tmp_path: Path) -> None:
    assert isinstance(cpu_governor(tmp_path), Absent)
    assert isinstance(cpu_clock_mhz(tmp_path), Absent)
    (tmp_path / "scaling_governor").write_text("powersave\n")
    (tmp_path / "scaling_cur_freq").write_text("2400000\n")
    assert cpu_governor(tmp_path) == "powersave"
    assert cpu_clock_mhz(tmp_path) == 2400.0


def test_a_preloaded_allocator_is_named(tmp_path: Path) -> None:
    maps = tmp_path / "maps"
    maps.write_text("7f00 r-xp 0 08:01 1 /usr/lib/libc.so.6\n7f01 r-xp 0 08:01 2 /usr/lib/libjemalloc.so.2\n")
    assert memory_allocator(maps) == "jemalloc"
    maps.write_text("7f00 r-xp 0 08:01 1 /usr/lib/libc.so.6\n")
    assert memory_allocator(maps) == "system"
    assert isinstance(memory_allocator(tmp_path / "missing"), Absent)


def test_a_gpus_state_is_read_through_the_driver_without_its_serial_numbers(under_driver: Callable[..., Any]) -> None:
    script = (
        "import json, torch\n"
        "from bench.hardware.environment import fingerprint, read_environment\n"
        "block = read_environment(torch.device('cuda', 1))\n"
        "print(json.dumps([block, fingerprint(block), torch.cuda.is_initialized()]))"
    )
    block, name, started = under_driver(script)
    assert block["device"] == {
        "kind": "cuda", "name": "NVIDIA H100 80GB HBM3", "sm": 90, "int8_path": "tensor_core", "int4_units": False,
        "driver": "570.86.10", "driver_cuda": "12.8", "mig": False, "memory_bytes": 85520809984, "power_limit_w": 700.0,
        "clock_mhz": 1200, "max_clock_mhz": 1980, "memory_clock_mhz": 2619, "temperature_c": 86,
        "clock_reasons": ["sw_power_cap", "sw_thermal_slowdown"],
    }  # fmt: skip
    assert name.startswith("cuda-")
    assert "GPU-2222" not in json.dumps(block)
    assert not started
