from __future__ import annotations

import pytest

from bench.hardware.capability import has_int4_tensor_cores
from bench.hardware.peaks import GPUS, GpuPeaks, find_gpu, peaks_from_properties
from bench.units import Absent


@pytest.mark.parametrize(
    ("driver_name", "key"),
    [
        ("NVIDIA H100 80GB HBM3", "h100-sxm"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H200", "h200-sxm"),
        ("NVIDIA A100-SXM4-80GB", "a100-sxm-80gb"),
        ("Tesla T4", "t4"),
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("Tesla V100-SXM2-32GB", "v100-sxm2-32gb"),
        ("h100-sxm", "h100-sxm"),
        ("RTX5090", "rtx5090"),
    ],
)
def test_a_gpu_is_found_by_the_drivers_name_or_by_its_key(driver_name: str, key: str) -> None:
    gpu = find_gpu(driver_name)
    assert isinstance(gpu, GpuPeaks)
    assert gpu.key == key


@pytest.mark.parametrize(
    "name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA GeForce RTX 9999", ""]
)
def test_a_gpu_with_other_rates_or_unknown_ones_is_absent(name: str) -> None:
    assert isinstance(find_gpu(name), Absent)


def test_keys_and_names_are_unique_and_every_row_has_a_source() -> None:
    assert len({gpu.key for gpu in GPUS}) == len({gpu.name.lower() for gpu in GPUS}) == len(GPUS)
    assert all(gpu.source.startswith("NVIDIA ") for gpu in GPUS)


def test_a_row_says_who_quotes_its_document_or_that_it_is_unverified() -> None:
    for gpu in GPUS:
        assert ("(as quoted by" in gpu.source) == gpu.verified
        assert gpu.source.endswith("; unverified") != gpu.verified
    assert {gpu.key for gpu in GPUS if gpu.verified} >= {"a100-sxm-80gb", "h100-sxm", "l40s"}


def test_the_table_spans_volta_to_blackwell() -> None:
    assert {70, 75, 80, 86, 89, 90, 100, 120} <= {gpu.sm for gpu in GPUS}


@pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: gpu.key)
def test_rates_of_one_row_agree_with_each_other(gpu: GpuPeaks) -> None:
    """Tensor cores do INT8 at twice bf16 and INT4 at twice INT8 on data-centre and workstation parts, four times
    bf16 (with FP32 sums at half rate) on GeForce; B300 gave its INT8 units up for FP4."""
    if not isinstance(gpu.int4_tops, Absent):
        assert has_int4_tensor_cores(gpu.sm) is True
        assert not isinstance(gpu.int8_tops, Absent)
        assert gpu.int4_tops == pytest.approx(2 * gpu.int8_tops, rel=0.01)
    if has_int4_tensor_cores(gpu.sm) is False:
        assert isinstance(gpu.int4_tops, Absent)
    if gpu.sm != 103 and not isinstance(gpu.bf16_tflops, Absent) and not isinstance(gpu.int8_tops, Absent):
        assert gpu.int8_tops / gpu.bf16_tflops == pytest.approx(
            2, rel=0.02
        ) or gpu.int8_tops / gpu.bf16_tflops == pytest.approx(4, rel=0.02)
        assert gpu.bf16_tflops > (gpu.fp32_tflops if not isinstance(gpu.fp32_tflops, Absent) else 0)


def test_a_gpu_without_a_row_gets_what_its_properties_give() -> None:
    h100 = {"name": "NVIDIA H100 80GB HBM3", "sm": 90, "num_multiprocessors": 132, "memory_bytes": 85_520_809_984}
    clocks = {"clock_mhz": 1980.0, "memory_clock_mhz": 2619.0, "memory_bus_bits": 5120}
    computed, listed = peaks_from_properties(**h100, **clocks), find_gpu("h100-sxm")
    assert not isinstance(listed, Absent)
    assert computed.fp32_tflops == pytest.approx(listed.fp32_tflops, rel=0.01)
    assert computed.bandwidth_gb_s == pytest.approx(listed.bandwidth_gb_s, rel=0.01)
    assert computed.memory_gb == 85.5
    for rate in (computed.bf16_tflops, computed.int8_tops, computed.int4_tops):
        assert isinstance(rate, Absent)
    assert not computed.source.startswith("NVIDIA ")


def test_what_a_gpus_properties_leave_out_is_absent_with_the_reason() -> None:
    untold = Absent("not reported")
    computed = peaks_from_properties(
        name="NVIDIA X", sm=130, num_multiprocessors=1, memory_bytes=10**9, clock_mhz=1000.0,
        memory_clock_mhz=untold, memory_bus_bits=64,
    )  # fmt: skip
    assert computed.bandwidth_gb_s == untold
    assert computed.fp32_tflops == Absent("no source in our table gives the FP32 lanes of sm_130")
