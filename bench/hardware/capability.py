"""What a device can do for integer training, as a value; the rules are data, so a laptop can ask an H100's.

No function here touches a device: ``probe.py`` reads the machine into a ``Capability``.

INT4 tensor cores: sm_75 by the NVIDIA Turing architecture whitepaper, sm_80, 86, 87 and 89 by the Ampere and Ada
whitepapers; nvcc 13.0 turns one s4 ``mma.m16n8k64`` into a single IMMA.16864.S4.S4 for sm_80, 86 and 89, but into two
IMMA.16832.S8.S8 for sm_90, 100 and 120: those have no INT4 units (docs/method.md section 2).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from bench.units import Absent

DeviceKind = Literal["cpu", "cuda"]
IntLabel = Literal["integer", "emulated", "simulated", "float"]
Int8Path = Literal["tensor_core", "dp4a", "amx", "avx512_vnni", "reference", "unsafe", "none"]

INT4_TENSOR_CORES: dict[int, bool] = {
    70: False,
    75: True,
    80: True,
    86: True,
    87: True,
    89: True,
    90: False,
    100: False,
    120: False,
}

INT8_PATH_NOTES: dict[Int8Path, str] = {
    "tensor_core": "INT8 tensor cores through cuBLASLt",
    "dp4a": "DP4A instructions through cuBLASLt: no INT8 tensor cores on this GPU",
    "amx": "AMX INT8 tiles through oneDNN",
    "avx512_vnni": "AVX512-VNNI through oneDNN",
    "reference": "torch's reference loop: exact but slow, since this CPU has neither AVX512-VNNI nor AMX",
    "unsafe": "oneDNN held below VNNI by ONEDNN_MAX_CPU_ISA, where its products of full-range int8 saturate",
    "none": "no integer product on this device",
}

# The instructions that decide speed, in the order they are reported; names as in /proc/cpuinfo.
KNOWN_INSTRUCTION_SETS = (
    "avx2",
    "fma",
    "avx512f",
    "avx512_bf16",
    "avx512_fp16",
    "avx_vnni",
    "avx512_vnni",
    "amx_bf16",
    "amx_int8",
    "neon",
    "asimddp",
    "i8mm",
    "bf16",
    "sve",
)

# oneDNN's own levels (its guide "CPU Dispatcher Control") under which full-range int8 products were seen to saturate
# on torch 2.13; AVX512_CORE_VNNI and above, and AVX2_VNNI and above, are exact.
ONEDNN_ISA_WITHOUT_VNNI = frozenset({"SSE41", "AVX", "AVX2", "AVX512_CORE"})


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmLimits:
    """Shapes that ``torch._int_mm`` takes on a device: a_MK times b_KN; zeros that pad smaller operands are exact."""

    min_rows: int  # smallest M
    multiple: int  # K and N must be positive multiples of it


CPU_LIMITS = GemmLimits(min_rows=1, multiple=1)
CUDA_LIMITS = GemmLimits(min_rows=17, multiple=8)


@dataclass(frozen=True, slots=True, kw_only=True)
class Capability:
    """One device: what kind it is, which integer product it runs and under which shape rules."""

    kind: DeviceKind
    name: str
    sm: int | Absent  # 90 for compute capability 9.0; absent on a CPU
    instruction_sets: tuple[str, ...]  # of KNOWN_INSTRUCTION_SETS; empty on a GPU
    int8_path: Int8Path
    int4_units: bool | Absent  # absent: no source says whether this sm has INT4 tensor cores
    limits: GemmLimits


@dataclass(frozen=True, slots=True)
class IntegerPath:
    """The integer product that would run for a bit width, and why it is that one."""

    label: IntLabel
    reason: str


def has_int4_tensor_cores(sm: int) -> bool | Absent:
    """Say whether GPUs of compute capability ``sm`` (90 for 9.0) multiply INT4 in tensor cores.

    Source: docs/method.md section 2; see this module's first lines.
    """
    if sm in INT4_TENSOR_CORES:
        return INT4_TENSOR_CORES[sm]
    return Absent(f"no source in our table says whether sm_{sm} has INT4 tensor cores")


def cuda_capability(name: str, sm: int) -> Capability:
    """Build the capability of an NVIDIA GPU.

    Args:
        name: product name as the driver reports it.
        sm: compute capability without the point, 86 for 8.6.
    """
    path: Int8Path = "tensor_core" if sm >= 72 else "dp4a" if sm >= 61 else "none"
    return Capability(
        kind="cuda",
        name=name,
        sm=sm,
        instruction_sets=(),
        int8_path=path,
        int4_units=has_int4_tensor_cores(sm),
        limits=CUDA_LIMITS,
    )


def cpu_capability(name: str, instruction_sets: tuple[str, ...], *, onednn_max_isa: str = "") -> Capability:
    """Build the capability of a CPU.

    Args:
        name: model name of the processor.
        instruction_sets: flags as /proc/cpuinfo spells them; unknown ones are left out.
        onednn_max_isa: value of ONEDNN_MAX_CPU_ISA in this process, "" where unset.
    """
    known = tuple(flag for flag in KNOWN_INSTRUCTION_SETS if flag in instruction_sets)
    path: Int8Path = "reference"
    if "avx512_vnni" in known or "amx_int8" in known:
        path = "amx" if "amx_int8" in known else "avx512_vnni"
        level = onednn_max_isa.upper()
        if level in ONEDNN_ISA_WITHOUT_VNNI:
            path = "unsafe"
        elif level and "AMX" not in level and level not in ("DEFAULT", "ALL") and path == "amx":
            path = "avx512_vnni"
    return Capability(
        kind="cpu",
        name=name,
        sm=Absent("the device is a CPU"),
        instruction_sets=known,
        int8_path=path,
        int4_units=False,
        limits=CPU_LIMITS,
    )


def integer_path(bits: int, capability: Capability, *, self_check_error: str = "") -> IntegerPath:
    """Say what an integer product of ``bits``-bit operands would run as on a device.

    Args:
        bits: operand width, 1 to 8, or 32 for floating point.
        capability: the device.
        self_check_error: sentence of a failed self-check on this device; "" where it passed or has not run.

    Returns:
        ``integer`` (int8 operands, int32 sums), ``emulated`` (fewer bits in int8 containers: the same integers, not
        the speed of narrower units), ``simulated`` (floating point on quantized values) or ``float``.

    Raises:
        ValueError: if bits is neither 1 to 8 nor 32.
    """
    if bits == 32:
        return IntegerPath("float", "32 bits mean floating point")
    if not 1 <= bits <= 8:
        raise ValueError(f"no integer product has {bits}-bit operands: bits is 1 to 8, or 32")
    if self_check_error:
        return IntegerPath("simulated", f"the self-check of the integer product failed: {self_check_error}")
    note = INT8_PATH_NOTES[capability.int8_path]
    if capability.int8_path in ("none", "unsafe"):
        return IntegerPath("simulated", note)
    if bits == 8:
        return IntegerPath("integer", note)
    return IntegerPath("emulated", f"{bits}-bit codes in int8 containers, {note}{_int4_note(bits, capability)}")


def _int4_note(bits: int, capability: Capability) -> str:
    """Say that INT4 units exist and stay unused, or that none exist."""
    if bits != 4 or capability.kind == "cpu":
        return ""
    if isinstance(capability.int4_units, Absent):
        return f"; {capability.int4_units.reason}"
    if capability.int4_units:
        return f"; sm_{capability.sm} has INT4 tensor cores, present but unused: no native INT4 kernel exists here yet"
    return f"; sm_{capability.sm} has no INT4 tensor cores"
