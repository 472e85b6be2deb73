from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from bench.errors import HardwareError
from bench.hardware import probe as room
from bench.hardware.capability import Capability
from bench.hardware.probe import cpu_instruction_sets, cpu_name, probe, resolve_device


def test_cpu_resolves_everywhere() -> None:
    assert resolve_device("cpu") == torch.device("cpu")


def test_auto_takes_the_first_gpu_or_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "count_cuda_devices", lambda: 0)
    assert resolve_device("auto") == torch.device("cpu")
    monkeypatch.setattr(room, "count_cuda_devices", lambda: 2)
    assert resolve_device("auto") == resolve_device("cuda") == torch.device("cuda", 0)
    assert resolve_device("cuda:1") == torch.device("cuda", 1)


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "CPU", "", "cpu:0", "mps"])
def test_an_unknown_device_lists_the_known_ones(name: str) -> None:
    with pytest.raises(HardwareError, match=r"is not a device: use auto, cpu, cuda or cuda:N\."):
        resolve_device(name)


def test_cuda_without_a_gpu_says_why_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "count_cuda_devices", lambda: 0)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    with pytest.raises(HardwareError) as caught:
        resolve_device("cuda:3")
    assert str(caught.value) == (
        f"device=cuda:3 needs an NVIDIA GPU, but this torch ({torch.__version__}) is built without CUDA; "
        "use device=cpu or device=auto."
    )


def test_hidden_gpus_are_named_as_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "count_cuda_devices", lambda: 0)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(HardwareError, match="CUDA_VISIBLE_DEVICES hides every GPU"):
        resolve_device("cuda")


@pytest.mark.parametrize(("count", "words"), [(1, "there is only cuda:0"), (4, "there are cuda:0 to cuda:3")])
def test_an_index_out_of_range_lists_the_gpus(monkeypatch: pytest.MonkeyPatch, count: int, words: str) -> None:
    monkeypatch.setattr(room, "count_cuda_devices", lambda: count)
    with pytest.raises(HardwareError, match=f"device=cuda:7 does not exist: {words}."):
        resolve_device("cuda:7")


@pytest.mark.parametrize(
    ("names", "kinds"),
    [
        ([], ("cpu",)),
        (["H100"], ("cpu", "cuda:0")),
        (["H100", "H100", "T4", "H100", "T4"], ("cpu", "cuda:0", "cuda:2")),
    ],
)
def test_all_means_the_cpu_and_the_first_gpu_of_every_model(
    monkeypatch: pytest.MonkeyPatch, names: list[str], kinds: tuple[str, ...]
) -> None:
    monkeypatch.setattr(room, "count_cuda_devices", lambda: len(names))
    monkeypatch.setattr(room, "read_gpu_names", lambda: names)
    assert room.device_kinds() == kinds


def test_gpus_without_names_are_all_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "count_cuda_devices", lambda: 2)
    monkeypatch.setattr(room, "_NAMES_IN_CHILD", "raise SystemExit(1)")
    assert room.device_kinds() == ("cpu", "cuda:0", "cuda:1")


def test_all_in_a_config_file_is_refused_with_its_place() -> None:
    with pytest.raises(HardwareError, match=r"belongs on the command line of `metagrad-bench run`"):
        resolve_device("all")


def test_the_cpu_is_probed_without_starting_cuda() -> None:
    capability = probe(torch.device("cpu"))
    assert isinstance(capability, Capability)
    assert capability.kind == "cpu"
    assert capability.name == cpu_name() != ""
    assert set(capability.instruction_sets) <= set(cpu_instruction_sets())
    assert not torch.cuda.is_initialized()


def test_proc_cpuinfo_is_read_in_both_dialects(tmp_path: Path) -> None:
    file = tmp_path / "cpuinfo"
    file.write_text(
        "processor\t: 0\nmodel name\t: A CPU\nflags\t\t: fpu avx2\n\nprocessor\t: 1\nmodel name\t: Another\n"
    )
    assert room._read_cpuinfo(file)["model name"] == "A CPU"
    assert room._read_cpuinfo(file)["flags"] == "fpu avx2"
    file.write_text("processor\t: 0\nFeatures\t: fp asimd asimddp\nCPU part\t: 0xd0c\n")
    assert room._read_cpuinfo(file)["Features"] == "fp asimd asimddp"
    assert room._read_cpuinfo(tmp_path / "missing") == {}


def test_where_proc_is_missing_py_cpuinfo_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "_read_cpuinfo", lambda path: {})
    monkeypatch.setattr(room, "_py_cpuinfo", lambda: {"brand_raw": "Apple M3", "flags": ["neon"]})
    assert cpu_name.__wrapped__() == "Apple M3"
    assert cpu_instruction_sets.__wrapped__() == ("neon",)


def test_a_gpu_is_probed_through_the_driver_without_starting_cuda(under_driver: Callable[..., Any]) -> None:
    script = (
        "import json, torch\n"
        "from bench.hardware.probe import probe\n"
        "gpu = probe(torch.device('cuda', 0))\n"
        "print(json.dumps([gpu.name, gpu.sm, gpu.int8_path, gpu.int4_units, torch.cuda.is_initialized()]))"
    )
    assert under_driver(script) == ["NVIDIA H100 80GB HBM3", 90, "tensor_core", False, False]
