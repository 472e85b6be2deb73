"""Published peak rates of NVIDIA GPUs, each row with the vendor document it was taken from.

Every rate is dense (half of a figure that the vendor gives with sparsity) and at the boost clock that the document
names. bf16 and INT8 are tensor-core rates with FP32 and INT32 sums. A figure that no document gives, or that we could
not make sure of, is ``Absent``; an unknown GPU has no row, and ``find_gpu`` says so. Memory is the vendor's round
figure; what a process can use is what the driver reports.

A row is verified where all its figures were found again in a public page that quotes the vendor's document, which is
named behind it. The others say ``unverified``: they were taken from the document and not held
against it again (the T4's bandwidth is 300 GB/s in one quotation; a B200 is given 75 and 80 TFLOP/s of FP32).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from bench.units import Absent

_NO_BF16 = Absent("no bf16 tensor cores before sm_80")
_NO_I8_V = Absent("sm_70 has no INT8 tensor cores and its datasheet gives no DP4A rate")
_NO_I4_V = Absent("sm_70 has no INT4 tensor cores")
_NO_I4_H = Absent("sm_90 has no INT4 tensor cores")
_NO_I4_B = Absent("sm_100 has no INT4 tensor cores")
_NO_I4_R = Absent("sm_120 has no INT4 tensor cores")
_NO_I4_B3 = Absent("no source in our table says that sm_103 has INT4 tensor cores")
_DISAGREE = Absent("NVIDIA's documents and resellers disagree")
_UNSAID = Absent("not in the datasheet")
_REPEATED = Absent("the datasheet repeats its INT8 figure")

_V100 = "NVIDIA V100 datasheet"
_A100 = "NVIDIA A100 datasheet"
_H100 = "NVIDIA H100 datasheet"
_H200 = "NVIDIA H200 datasheet"
_GH200 = "NVIDIA GH200 Grace Hopper Superchip datasheet"
_PRO_6000 = "NVIDIA RTX PRO 6000 Blackwell datasheet of this edition"
_TURING = "NVIDIA Turing GPU Architecture whitepaper, appendix; the Founders Edition where it differs"
_GA102 = "NVIDIA Ampere GA102 GPU Architecture whitepaper"
_ADA = "NVIDIA Ada GPU Architecture whitepaper, appendix"
_ADA_PRO = "NVIDIA Ada Architecture for Professional Visualization whitepaper"
_BLACKWELL_BRIEF = "NVIDIA Blackwell Architecture Technical Brief, table 3 (per GPU, as quoted by DataCrunch)"
_BLACKWELL_RTX = "NVIDIA RTX Blackwell GPU Architecture whitepaper, appendix"

_SPECS = "github.com/gmasse/gpu-specs"
_LOCKWOOD = "glennklockwood.com/garden/processors"
_PC2 = "PC2, Paderborn University"
_MULLET = "mullet.se, product 355414"


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuPeaks:
    """One GPU's published dense peaks: tera-operations a second, GB/s and GB as the vendor counts them (10**9)."""

    key: str  # short name for the command line, h100-sxm
    name: str  # as the driver reports it, without NVIDIA, Tesla or GeForce
    sm: int
    fp32_tflops: float | Absent  # outside tensor cores
    bf16_tflops: float | Absent
    int8_tops: float | Absent
    int4_tops: float | Absent
    bandwidth_gb_s: float | Absent
    memory_gb: float | Absent
    source: str  # the vendor's document, and who quotes it or "unverified"
    verified: bool


def _row(
    key: str,
    name: str,
    sm: int,
    fp32: float | Absent,
    bf16: float | Absent,
    int8: float | Absent,
    int4: float | Absent,
    bandwidth: float | Absent,
    memory: float | Absent,
    source: str,
    quoted_by: str = "",
) -> GpuPeaks:
    """One line of the table below, in its columns' order."""
    return GpuPeaks(
        key=key,
        name=name,
        sm=sm,
        fp32_tflops=fp32,
        bf16_tflops=bf16,
        int8_tops=int8,
        int4_tops=int4,
        bandwidth_gb_s=bandwidth,
        memory_gb=memory,
        source=f"{source} (as quoted by {quoted_by})" if quoted_by else f"{source}; unverified",
        verified=bool(quoted_by),
    )


# fmt: off
# key, name, sm, FP32, bf16, INT8, INT4, GB/s, GB, source, who quotes it
GPUS: tuple[GpuPeaks, ...] = (
    _row("v100-sxm2-16gb", "V100-SXM2-16GB", 70, 15.7, _NO_BF16, _NO_I8_V, _NO_I4_V, 900, 16, _V100, _SPECS),
    _row("v100-sxm2-32gb", "V100-SXM2-32GB", 70, 15.7, _NO_BF16, _NO_I8_V, _NO_I4_V, 900, 32, _V100, _SPECS),
    _row("v100-pcie-16gb", "V100-PCIE-16GB", 70, 14.0, _NO_BF16, _NO_I8_V, _NO_I4_V, 900, 16, _V100),
    _row("v100-pcie-32gb", "V100-PCIE-32GB", 70, 14.0, _NO_BF16, _NO_I8_V, _NO_I4_V, 900, 32, _V100),
    _row("t4", "T4", 75, 8.1, _NO_BF16, 130, 260, 320, 16, "NVIDIA T4 datasheet"),
    _row("rtx2080", "RTX 2080", 75, 10.6, _NO_BF16, 169.6, 339.1, 448, 8, _TURING),
    _row("rtx2080super", "RTX 2080 SUPER", 75, 11.2, _NO_BF16, 178.4, 356.8, 496, 8, _GA102),
    _row("rtx2080ti", "RTX 2080 Ti", 75, 14.2, _NO_BF16, 227.7, 455.4, 616, 11, _TURING),
    _row("a100-sxm-40gb", "A100-SXM4-40GB", 80, 19.5, 312, 624, 1248, 1555, 40, _A100, _PC2),
    _row("a100-sxm-80gb", "A100-SXM4-80GB", 80, 19.5, 312, 624, 1248, 2039, 80, _A100, _LOCKWOOD),
    _row("a100-pcie-40gb", "A100-PCIE-40GB", 80, 19.5, 312, 624, 1248, 1555, 40, _A100),
    _row("a100-pcie-80gb", "A100 80GB PCIe", 80, 19.5, 312, 624, 1248, 1935, 80, _A100),
    _row("a30", "A30", 80, 10.3, 165, 330, 661, 933, 24, "NVIDIA A30 datasheet"),
    _row("a10", "A10", 86, 31.2, 125, 250, 500, 600, 24, "NVIDIA A10 datasheet", _SPECS),
    _row("a40", "A40", 86, 37.4, 149.7, 299.3, 598.7, 696, 48, "NVIDIA A40 datasheet", "ecer.com, uuuedqa"),
    _row("a2", "A2", 86, 4.5, 18, 36, 72, 200, 16, "NVIDIA A2 datasheet"),
    _row("rtxa6000", "RTX A6000", 86, 38.7, 154.8, 309.7, 619.3, 768, 48, _GA102),
    _row("rtx3070", "RTX 3070", 86, 20.3, 40.6, 162.6, 325.2, 448, 8, _GA102),
    _row("rtx3080", "RTX 3080", 86, 29.8, 59.5, 238, 476, 760, 10, f"{_GA102}; the 10 GB board"),
    _row("rtx3090", "RTX 3090", 86, 35.6, 71, 284, 568, 936, 24, _GA102),
    _row("l4", "L4", 89, 30.3, 121, 242.5, _UNSAID, 300, 24, "NVIDIA L4 datasheet", _SPECS),
    _row("l40", "L40", 89, 90.5, 181, 362, 724, 864, 48, "NVIDIA L40 datasheet", _MULLET),
    _row("l40s", "L40S", 89, 91.6, 362, 733, _REPEATED, 864, 48, "NVIDIA L40S datasheet", _SPECS),
    _row("rtx6000ada", "RTX 6000 Ada Generation", 89, 91.1, 364.2, 728.5, 1457, 960, 48, _ADA_PRO),
    _row("rtx4080", "RTX 4080", 89, 48.7, 97.5, 389.9, 779.8, 716.8, 16, _ADA),
    _row("rtx4090", "RTX 4090", 89, 82.6, 165.2, 660.6, 1321.2, 1008, 24, _ADA),
    _row("h100-sxm", "H100 80GB HBM3", 90, 67, 989, 1979, _NO_I4_H, 3350, 80, _H100, _LOCKWOOD),
    _row("h100-pcie", "H100 PCIe", 90, 51, 756, 1513, _NO_I4_H, 2000, 80, _H100),
    _row("h100-nvl", "H100 NVL", 90, 60, 835, 1671, _NO_I4_H, 3900, 94, _H100),
    _row("h200-sxm", "H200", 90, 67, 989, 1979, _NO_I4_H, 4800, 141, _H200),
    _row("h200-nvl", "H200 NVL", 90, 60, 835, 1671, _NO_I4_H, 4800, 141, _H200),
    _row("gh200-96gb", "GH200 480GB", 90, 67, 990, 1979, _NO_I4_H, 4000, 96, _GH200),
    _row("gh200-144gb", "GH200 144G HBM3e", 90, 67, 990, 1979, _NO_I4_H, 4900, 144, _GH200),
    _row("b200", "B200", 100, 75, 2250, 4500, _NO_I4_B, 8000, 180, "NVIDIA DGX B200 datasheet, per GPU"),
    _row("gb200", "GB200", 100, 80, 2500, 5000, _NO_I4_B, 8000, 186, "NVIDIA GB200 NVL72 datasheet, per GPU"),
    _row("b300", "B300 SXM6 AC", 103, _DISAGREE, 2250, 150, _NO_I4_B3, 8000, 288, _BLACKWELL_BRIEF),
    _row("rtx5070", "RTX 5070", 120, 30.9, 61.7, 246.9, _NO_I4_R, 672, 12, _BLACKWELL_RTX),
    _row("rtx5070ti", "RTX 5070 Ti", 120, 43.9, 87.9, 351.5, _NO_I4_R, 896, 16, _BLACKWELL_RTX),
    _row("rtx5080", "RTX 5080", 120, 56.3, 112.6, 450.2, _NO_I4_R, 960, 16, _BLACKWELL_RTX),
    _row("rtx5090", "RTX 5090", 120, 104.8, 209.5, 838, _NO_I4_R, 1792, 32, _BLACKWELL_RTX),
    _row("rtxpro6000-workstation", "RTX PRO 6000 Blackwell Workstation Edition", 120, 125, _UNSAID, _UNSAID, _NO_I4_R,
         1792, 96, _PRO_6000),
    _row("rtxpro6000-server", "RTX PRO 6000 Blackwell Server Edition", 120, 120, _UNSAID, _UNSAID, _NO_I4_R, 1597, 96,
         _PRO_6000),
    _row("gb10", "GB10", 121, _UNSAID, _UNSAID, _UNSAID, _UNSAID, 273, 128, "NVIDIA DGX Spark datasheet"),
)
# fmt: on

# FP32 results that a multiprocessor gives each clock.
FP32_LANES = {
    70: 64,
    72: 64,
    75: 64,
    80: 64,
    86: 128,
    87: 128,
    89: 128,
    90: 128,
    100: 128,
    103: 128,
    120: 128,
    121: 128,
}

_VENDOR_PREFIX = re.compile(r"^(NVIDIA|Tesla|GeForce|Graphics Device|Quadro)\s+", re.IGNORECASE)


def find_gpu(name: str) -> GpuPeaks | Absent:
    """Find a GPU's published peaks.

    Args:
        name: a short key (``h100-sxm``) or the name as the driver reports it (``NVIDIA H100 80GB HBM3``). Laptop
            GPUs and MIG instances carry longer names and match no row: their rates are others.
    """
    bare = name.strip()
    while (stripped := _VENDOR_PREFIX.sub("", bare)) != bare:
        bare = stripped
    for gpu in GPUS:
        if bare.lower() in (gpu.key, gpu.name.lower()):
            return gpu
    return Absent(f"{name} is not in the table of published peaks")


def peaks_from_properties(
    *,
    name: str,
    sm: int,
    num_multiprocessors: int,
    memory_bytes: int,
    clock_mhz: float | Absent,
    memory_clock_mhz: float | Absent,
    memory_bus_bits: int | Absent,
) -> GpuPeaks:
    """Peaks of a GPU that has no row, as far as its own properties give them.

    FP32 follows from multiprocessors, FP32 lanes and clock; bandwidth from the memory's clock, both of whose edges
    carry data, and the width of its bus. Rates of tensor cores cannot be had from properties.

    Args:
        name: as the driver reports it.
        sm: compute capability without the point.
        num_multiprocessors: of the device.
        memory_bytes: of the device.
        clock_mhz: highest clock of the multiprocessors.
        memory_clock_mhz: highest clock of the memory, as the driver reports it.
        memory_bus_bits: width of the memory's bus.

    Source: CUDA C++ Programming Guide, "Throughput of Native Arithmetic Instructions", for the FP32 lanes.
    """
    lanes = FP32_LANES.get(sm)
    fp32: float | Absent = Absent(f"no source in our table gives the FP32 lanes of sm_{sm}")
    if lanes is not None:
        fp32 = (
            clock_mhz
            if isinstance(clock_mhz, Absent)
            else round(2 * lanes * num_multiprocessors * clock_mhz * 1e6 / 1e12, 1)
        )
    bandwidth: float | Absent
    if isinstance(memory_clock_mhz, Absent):
        bandwidth = memory_clock_mhz
    elif isinstance(memory_bus_bits, Absent):
        bandwidth = memory_bus_bits
    else:
        bandwidth = round(2 * memory_clock_mhz * 1e6 * memory_bus_bits / 8 / 1e9)
    untold = Absent("not in the table of published peaks, and a GPU's properties do not tell")
    return GpuPeaks(
        key="",
        name=name,
        sm=sm,
        fp32_tflops=fp32,
        bf16_tflops=_NO_BF16 if sm < 80 else untold,
        int8_tops=untold,
        int4_tops=untold,
        bandwidth_gb_s=bandwidth,
        memory_gb=round(memory_bytes / 1e9, 1),
        source="computed from the device's properties",
        verified=True,
    )
