"""Where a step's time goes by layer and product, how far from the device's limits, and a trace."""

from __future__ import annotations

from dataclasses import dataclass

from bench.records.schema.values import NOT_RECORDED
from bench.units import Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceilings:
    """Best rates, measured on the spot: 10**9 operations a second (a multiply-add is two) and 10**9 bytes a second."""

    int8_gops: float | Absent
    fp32_gflops: float | Absent  # without TF32
    bf16_gflops: float | Absent
    copy_gb_s: float | Absent  # bytes read plus bytes written


@dataclass(frozen=True, slots=True, kw_only=True)
class SpanTime:
    """Time of one piece of work of one layer in a step with spans.

    Exclusive: what runs inside another span is counted there alone, so that all spans of one step add up to it. The
    median over the steps with spans of the sum within a step; ``SideProfile.span_rest_ms`` is what these medians leave.
    """

    phase: str  # data, forward, backward, meta, optimizer, unattributed
    layer: str  # as ``named_modules`` calls it; "" outside of them, and of short spans
    gemm: str  # fprop, dgrad, wgrad; "" of what serves both backward products or none
    # quantize, im2col, gemm, dequantize, norm, activation, pool, hypernet_forward, meta_gradient; rest: none of these
    piece: str
    span_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class ProductWork:
    """One product of one layer in a step: what it computes and moves at least, and how fast it ran. A roofline's point.

    ``operations / num_bytes`` is its arithmetic intensity; the roofline above it is the smaller of its kind's ceiling
    and that intensity times ``Ceilings.copy_gb_s``.
    """

    layer: str
    gemm: str  # fprop, dgrad, wgrad
    kind: str  # int8, fp32, bf16: which of the ceilings it is held against
    path: str  # the kernel that ran: int_mm, ...; float32, bfloat16
    operations: int  # two per multiply-add of the layer's shapes; padding and inserted zeros earn nothing
    num_bytes: int  # both operands and the result once each, in the types that ran
    product_ms: float | Absent  # of the product alone, in steps with spans
    all_ms: float | Absent  # with quantizing, laying out and dequantizing for it
    gops: float | Absent  # operations over product_ms, 10**9 a second
    ceiling_share_pct: float | Absent  # of gops in the kind's ceiling
    copy_share_pct: float | Absent  # of num_bytes over product_ms in the copy ceiling


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseWork:
    """What a phase, or one layer in it, computes and moves in a step.

    Operations are those of products: torch's flop formulas and the integer products. Element-wise work counts its
    bytes alone: each tensor that an operator reads and each that it writes, once.
    """

    phase: str  # data, forward, backward, meta, optimizer
    layer: str  # "" for the phase as a whole
    operations: dict[str, int]  # by kind (int8, fp32, bf16); a kind without any is left out
    num_bytes: int
    time_ms: float | Absent  # of the phase in steps without spans; of a layer in steps with them
    gops: float | Absent  # all operations over time_ms
    ceiling_share_pct: float | Absent  # time that the operations would take at their ceilings, over time_ms
    copy_share_pct: float | Absent  # of num_bytes over time_ms in the copy ceiling


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorTime:
    """One operator of a trace, all its calls together; a step's."""

    name: str  # aten::..., or an autograd node: compiled pieces are in the own time of the node that calls them
    calls: float
    self_ms: float  # the host's time without the operators that it calls
    device_ms: float | Absent  # of the kernels that it launched itself; CUDA only
    share_pct: float  # of all operators' self_ms, on CUDA of their device_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class KernelTime:
    """One GPU kernel of a trace, all its launches together; a step's."""

    name: str
    calls: float
    total_ms: float
    share_pct: float  # of all kernels' time
    tensor_cores: bool  # whether torch-tb-profiler's parser knows it to use them


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceResult:
    """A few steps under torch.profiler, read by torch-tb-profiler's parser."""

    file: str  # beside the record; Perfetto opens it, and TensorBoard shows its folder
    steps: int
    step_ms: float  # with the profiler on
    operators: tuple[OperatorTime, ...]  # the ten most expensive
    kernels: tuple[KernelTime, ...] | Absent  # the ten most expensive; CUDA only
    tensor_core_share_pct: float | Absent  # of all kernels' time; CUDA only


@dataclass(frozen=True, slots=True, kw_only=True)
class SideProfile:
    """The cell, or its FP32 reference, in the profile pass."""

    plain_step_ms: tuple[float, ...]  # steps without spans, in turn with
    spanned_step_ms: tuple[float, ...]  # steps with spans
    span_overhead_pct: float  # what spans add to the median step
    unattributed_pct: float  # of the plain steps: what no phase claims
    phases_ms: dict[str, float]  # medians of the plain steps
    spans: tuple[SpanTime, ...]  # less than 0.1 % of the step: summed up over layers, without their names
    products: tuple[ProductWork, ...]
    work: tuple[PhaseWork, ...]  # each phase as a whole, then by layer
    trace: TraceResult | None
    trace_missing: str = ""  # why there is no trace
    # the median spanned step less the sum of ``spans``: medians of parts do not add up to that of the whole
    span_rest_ms: float | Absent = NOT_RECORDED
    drawn_layer: str = ""  # slim: the layer that it took in every step, of about mean size; "" where none is drawn


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileResult:
    """Where a step's time goes by layer and product, how far from the device's limits, and a trace; in one process.

    Spans cost time: steps of this pass are never those whose times are reported elsewhere.
    """

    ceilings: Ceilings  # measured once per device and run of a suite
    cell: SideProfile
    fp32: SideProfile  # the same as ``cell`` where that is the FP32 reference
