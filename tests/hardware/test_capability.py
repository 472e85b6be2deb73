from __future__ import annotations

import pytest

from bench.hardware.capability import (
    INT8_PATH_NOTES,
    cpu_capability,
    cuda_capability,
    has_int4_tensor_cores,
    integer_path,
)
from bench.units import Absent

SERVER_CPU = ("fpu", "avx2", "avx512f", "avx512_vnni", "amx_int8", "amx_bf16")


@pytest.mark.parametrize("sm", [75, 80, 86, 87, 89])
def test_turing_to_ada_have_int4_units_that_stay_unused(sm: int) -> None:
    gpu = cuda_capability("a GPU", sm)
    assert gpu.int4_units is True
    path = integer_path(4, gpu)
    assert path.label == "emulated"
    assert f"sm_{sm} has INT4 tensor cores, present but unused" in path.reason


@pytest.mark.parametrize("sm", [70, 90, 100, 120])
def test_volta_and_hopper_onwards_have_no_int4_units(sm: int) -> None:
    gpu = cuda_capability("a GPU", sm)
    assert gpu.int4_units is False
    assert integer_path(4, gpu).reason.endswith(f"sm_{sm} has no INT4 tensor cores")


def test_an_unknown_gpu_is_not_guessed_at() -> None:
    assert isinstance(has_int4_tensor_cores(999), Absent)
    assert "no source" in integer_path(4, cuda_capability("a new GPU", 999)).reason


def test_eight_bits_are_integer_and_fewer_are_emulated() -> None:
    gpu = cuda_capability("a GPU", 90)
    assert [integer_path(bits, gpu).label for bits in (8, 6, 4, 1, 32)] == [
        "integer",
        "emulated",
        "emulated",
        "emulated",
        "float",
    ]


def test_a_failed_self_check_leaves_simulation_and_says_why() -> None:
    path = integer_path(8, cuda_capability("a GPU", 90), self_check_error="12 sums were wrong")
    assert path.label == "simulated"
    assert path.reason == "the self-check of the integer product failed: 12 sums were wrong"


@pytest.mark.parametrize("bits", [0, 9, 16])
def test_a_width_without_an_integer_product_is_refused(bits: int) -> None:
    with pytest.raises(ValueError, match=f"{bits}-bit operands"):
        integer_path(bits, cuda_capability("a GPU", 90))


@pytest.mark.parametrize(
    ("flags", "onednn", "expected"),
    [
        (SERVER_CPU, "", "amx"),
        (SERVER_CPU, "avx512_core_vnni", "avx512_vnni"),
        (SERVER_CPU, "AVX2", "unsafe"),
        (SERVER_CPU, "AVX512_CORE", "unsafe"),
        (("avx2", "avx512_vnni"), "", "avx512_vnni"),
        (("avx2", "avx_vnni"), "", "reference"),
        (("avx2",), "AVX2", "reference"),
        (("neon", "asimddp"), "", "reference"),
    ],
)
def test_the_cpu_path_follows_the_flags_and_onednns_limit(flags: tuple[str, ...], onednn: str, expected: str) -> None:
    assert cpu_capability("a CPU", flags, onednn_max_isa=onednn).int8_path == expected


def test_a_saturating_cpu_path_is_never_called_integer() -> None:
    cpu = cpu_capability("a CPU", SERVER_CPU, onednn_max_isa="AVX2")
    assert integer_path(8, cpu).label == "simulated"
    assert integer_path(8, cpu).reason == INT8_PATH_NOTES["unsafe"]


def test_flags_are_kept_in_a_fixed_order_and_unknown_ones_left_out() -> None:
    cpu = cpu_capability("a CPU", ("amx_int8", "fpu", "avx2"))
    assert cpu.instruction_sets == ("avx2", "amx_int8")


def test_old_gpus_multiply_without_tensor_cores_or_not_at_all() -> None:
    assert [cuda_capability("a GPU", sm).int8_path for sm in (60, 61, 70, 75)] == [
        "none",
        "dp4a",
        "dp4a",
        "tensor_core",
    ]
    assert integer_path(8, cuda_capability("a GPU", 60)).label == "simulated"
