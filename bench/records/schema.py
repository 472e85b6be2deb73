"""What one run leaves behind: ``RunRecord`` and its parts, frozen, versioned, plain values with units in their names.

A value that could not be known is ``Absent(reason)``; in JSON it reads ``{"reason": "..."}`` where the number would
stand. A whole part that a run does not have is None, with its reason in ``RunRecord.missing`` under the part's name.
Nothing here formats, logs or saves itself: ``records/store.py`` saves, ``reports/`` formats.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from bench.units import Absent

SCHEMA_VERSION = 1

Status = Literal["ok", "diverged", "out_of_memory", "timed_out", "killed", "crashed", "failed"]
NOT_RECORDED = Absent("not recorded by the version that wrote this")
NOT_SAMPLED = Absent("not sampled in this step")

# Best first.
STATUSES: tuple[Status, ...] = (
    "ok",
    "diverged",
    "out_of_memory",
    "timed_out",
    "killed",
    "crashed",
    "failed",
)  # best first
FINISHED: tuple[Status, ...] = ("ok", "diverged")  # results; a cell of any other status is measured again
STATUS_VERBS: dict[Status, str] = {  # what a cell did, in a sentence
    "ok": "finished", "diverged": "diverged", "out_of_memory": "ran out of memory", "timed_out": "took too long",
    "killed": "was killed", "crashed": "crashed", "failed": "failed",
}  # fmt: skip
Label = Literal["integer", "emulated", "simulated", "float"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """A sample's middle and spread, in the unit that the field's name carries."""

    median: float
    q1: float
    q3: float
    n: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """An estimate with its 95 % confidence interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class MethodFacts:
    """Which gradients are low-bit and by what: the two choices of docs/method.md section 5 apart."""

    name: str  # fp32, ste, uint8, metagrad, ...
    forward_quantizer: str  # dorefa, bwn, none
    weight_bits: int  # 32 = FP32
    activation_bits: int
    error_quantizer: str  # of the error signals: none, uniform, uint8, ...
    error_bits: int  # with afp those that a layer starts with
    error_rounding: str  # nearest, stochastic, none
    grad_quantizer: str  # of the weight gradient: none, uniform, dorefa, uint8, daint8, wageubn, or hypernet
    grad_bits: int
    hypernet: str  # none, dual_lstm_fc, ...
    hypernet_form: str  # residual, literal, none
    hidden: int | Absent
    strategy: str  # none, retain, slim, recompute, tabulate
    optimizer: str
    edge_layers: str
    dispatch: str
    compact: bool = False  # batch-norm's input is kept in bfloat16 for backward
    error_granularity: str = "tensor"  # tensor, sample, channel: how far one scale reaches
    grad_rounding: str = "nearest"  # nearest, stochastic, none
    hypernet_depth: int | Absent = NOT_RECORDED  # linear layers of the fully connected ones
    hypernet_activation: str = "none"  # between them
    hypernet_state: str = "none"  # of the LSTMs: zero at each iteration, or carry
    pi_prime: str = "none"  # the optimizer's derivative in the meta-gradient: analytic, or one
    norm: str = "batch"  # batch, range, fixed_point
    cycle_min_bits: int | Absent = NOT_RECORDED  # cyclic precision: the lower bound, weight_bits and so on the upper
    cycles: int | Absent = NOT_RECORDED


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """One convolution or linear layer: what ran in it."""

    name: str
    kind: str  # conv2d, linear
    quantized: bool
    reason: str  # why it was left in floating point, or "" when quantized
    weight_shape: tuple[int, ...]
    weight_bits: int
    activation_bits: int
    error_bits: int
    fprop: Label
    dgrad: Label | Absent  # absent: the layer's input needs no gradient
    wgrad: Label
    error: str = ""  # the error signal's quantizers in words, "" when not quantized
    error_quantizations: int | Absent = NOT_RECORDED  # that ran each step
    fprop_path: str = ""  # which path the product took and why; "" where it was not recorded
    dgrad_path: str = ""
    wgrad_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The model's size and its layers."""

    name: str
    num_parameters: int
    num_quantized_weights: int
    layers: tuple[LayerFacts, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DataFacts:
    """Which data, how much of it, and a fingerprint of its content."""

    name: str
    synthetic: bool
    train_samples: int
    test_samples: int
    image_shape: tuple[int, ...]
    num_classes: int
    source: str
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochPoint:
    """One epoch of the convergence curve."""

    epoch: int  # 1-based
    step: int  # steps finished by its end
    seconds: float  # training seconds since the first step
    learning_rate: float
    train_loss: float | Absent  # mean over the epoch
    test_accuracy_pct: float | Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class HypernetPoint:
    """What the hypernetwork did to one layer's gradient in one observed step; a row of ``hypernet.csv``."""

    step: int  # 1-based
    layer: str
    amplification: float | Absent  # |g̃|/|g| (MetaQuant Fig. 4)
    cosine: float | Absent  # between g̃ and g
    zero_share_pct: float | Absent  # share of zero codes
    meta_grad_norm: float | Absent  # of the whole step, the same for all its layers
    # `tabulate` held against the exact strategy; the error and the angle are the whole step's
    interpolation_error: float | Absent = NOT_SAMPLED  # as a share of f_psi's maximum
    same_codes_pct: float | Absent = NOT_SAMPLED  # share of the layer's codes that are the exact ones
    meta_angle_deg: float | Absent = NOT_SAMPLED  # between the gradient for psi and the exact one


@dataclass(frozen=True, slots=True, kw_only=True)
class SurfaceAxis:
    """One input of the hypernetwork and the values it was given."""

    name: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class HypernetSurface:
    """What f_psi answers over its inputs before the first and after the last step; ``hypernet_surface.json``."""

    schema_version: int
    axes: tuple[SurfaceAxis, ...]  # one or two: weight, gradient
    output: str  # what the values are: f/max|∇W|, f/∇W, f
    before: tuple[tuple[float, ...], ...]  # a row per value of the second axis, a column per value of the first
    after: tuple[tuple[float, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class AccuracyResult:
    """Accuracy of the trained model, in percent of the whole test set."""

    test_accuracy_pct: float | Absent  # after the last epoch, never the best one; absent where training diverged
    pretrained_accuracy_pct: float | Absent  # of the FP32 model that fine-tuning started from
    final_train_loss: float | Absent
    epochs: int
    steps: int
    curve: tuple[EpochPoint, ...]
    losses_digest: str  # sha256 over the float32 bytes of every step's loss: equal seeds, equal digest
    weights_digest: str | Absent = NOT_RECORDED  # sha256 over the trained model's parameters and buffers
    # by layer, how many of its error signals had 8, 16 and 24 bits; only where the method chooses (afp)
    error_bits_used: dict[str, dict[str, int]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepWindow:
    """A stretch of uninterrupted steps of one kind."""

    name: str  # cell, fp32: a block of samples; forward, forward_backward, energy_cell, energy_fp32: for energy alone
    start_s: float  # on the machine's monotonic clock; in a record, since the process was started
    end_s: float
    steps: int


Series = tuple[float | Absent, ...] | Absent


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceSeries:
    """The device while one process was timed, watched from another: one entry a sample in every series."""

    time_s: tuple[float, ...]  # since the process was started
    power_w: Series
    clock_mhz: Series
    memory_clock_mhz: Series
    temperature_c: Series
    utilisation_pct: Series
    process_bytes: Series  # of the timing process: GPU memory, on a CPU resident memory; not the memory pass's process
    throttled: tuple[bool | Absent, ...] | Absent
    throttle_reasons: tuple[str, ...]  # all that were seen
    num_throttled: int | Absent  # samples
    energy_j: float | Absent  # of the whole window, start-up included


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingRepeat:
    """Raw samples of one fresh process; blocks of the cell's steps alternate with blocks of FP32 steps."""

    step_ms: tuple[float, ...]
    fp32_step_ms: tuple[float, ...]
    phases_ms: dict[str, tuple[float, ...]]  # data, forward, backward, meta, optimizer, unattributed; one sample a step
    throttled: bool | Absent
    stopped_by: str | Absent = NOT_RECORDED  # interval: both medians were narrow enough; budget: time was up
    half_width_pct: float | Absent = NOT_RECORDED  # of the wider median's 95 % interval when sampling stopped
    marked_step_ms: tuple[float, ...] = ()  # steps with each phase marked `mark_repeats` times, in turn with
    unmarked_step_ms: tuple[float, ...] = ()  # steps without marks
    mark_repeats: int | Absent = NOT_RECORDED
    windows: tuple[StepWindow, ...] = ()
    throttled_steps: int | Absent = NOT_RECORDED  # samples, of both sides, in whose block the device was throttled
    energy_j: dict[str, float | Absent] = field(default_factory=dict)  # of one step, fp32_step, ...
    device: DeviceSeries | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TimingResult:
    """Step time against the FP32 step of the same model and batch in the same processes."""

    batch_size: int
    warmup_steps: int
    repeats: tuple[TimingRepeat, ...]
    step_ms: Summary  # over all repeats' samples
    fp32_step_ms: Summary
    time_vs_fp32: Interval  # ratio of medians, hierarchical bootstrap over processes
    phases_ms: dict[str, Summary]
    phase_share_pct: dict[str, float]  # of the mean step; sums to 100
    phase_mark_cost_pct: Interval | None = None  # what marking the phases adds to a step; None: not recorded
    throttled_steps: int | Absent = NOT_RECORDED  # samples of all repeats, both sides
    energy_j: dict[str, float | Absent] = field(default_factory=dict)  # a step, median over processes


#: Of a step's memory, with what belongs to each.
MEMORY_CATEGORIES: dict[str, str] = {
    "weights": "the model's parameters and buffers",
    "integer_copies": "int8 codes of weights for as long as they are kept, and of any operand while its layer runs",
    "activations": "what the forward made and keeps for backward, codes and masks among it, or hands to the next layer",
    "gradients": "weight gradients from backward to the optimizer, and the error signals between layers",
    "optimizer_state": "momentum and moments, those of the hypernetwork's parameters among them",
    "hypernet_parameters": "the hypernetwork's parameters",
    "hypernet_activations": "what evaluating the hypernetwork and its gradient makes or keeps: graphs, chunks, tables, "
    "outputs, LSTM states, the old weights and the derivative of the optimizer's step",
    "pending_gradients": "weight gradients that wait for the next iteration",
    "workspaces": "buffers that the kernels reuse, and what one call of a layer or the optimizer makes and frees",
    "data": "the batches",
    "other": "what no rule claims",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPhase:
    """What was alive when a phase of the step held most; docs/measuring.md defines each category in one line."""

    phase: str  # data, forward, backward, meta, optimizer, unattributed
    peak_bytes: int  # the sum of the categories
    categories: dict[str, int]
    layer: str  # that ran at the peak, "" outside of the model's layers
    allocator_bytes: int | Absent  # CUDA's own figure at the same moment


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerMemory:
    """What one layer keeps and needs; its most over all its calls."""

    name: str
    kept_bytes: int  # made by its forward and kept for backward
    forward_extra_bytes: int  # most that was alive during its forward beyond what was alive before
    backward_extra_bytes: int  # the same of its backward


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryResult:
    """Peaks of a few training steps in a fresh process; see docs/measuring.md for each definition."""

    peak_allocated_bytes: int | Absent  # live tensor storage: allocator's peak on CUDA, dispatcher's tracking on CPU
    peak_reserved_bytes: int | Absent  # CUDA's caching allocator only
    peak_process_bytes: int | Absent  # of the memory pass's process: VmHWM on CPU, NVML's figure on CUDA
    peak_device_bytes: int | Absent  # whole device, CUDA only
    fp32_peak_allocated_bytes: int | Absent  # the same steps of the FP32 model
    fp32_peak_process_bytes: int | Absent
    hypernet_extra_allocated_bytes: int | Absent  # with minus without hypernetwork, two fresh processes
    hypernet_extra_process_bytes: int | Absent  # the same; both processes have run both cells' steps before
    hypernet_bound_bytes: int | Absent = NOT_RECORDED  # computed from shapes: most that the hypernetwork holds at once
    # of the allocated extra, what oneDNN's LSTM reserves and never writes, less what it takes inside its operators: the
    # process's extra lacks it
    hypernet_untouched_bytes: int | Absent = NOT_RECORDED
    # by how much more the process's peak grows in processes that have not: code, and caches of libraries
    hypernet_code_bytes: int | Absent = NOT_RECORDED
    phases: tuple[MemoryPhase, ...] | Absent = NOT_RECORDED  # by category at each phase's peak
    phases_missing: dict[str, str] = field(default_factory=dict)  # phases without a peak, and why
    layers: tuple[LayerMemory, ...] | Absent = NOT_RECORDED
    snapshot: str | Absent = NOT_RECORDED  # file beside the record for torch's memory viewer, CUDA only


@dataclass(frozen=True, slots=True, kw_only=True)
class HypernetResult:
    """Size and behaviour of the hypernetwork during training."""

    num_parameters: int
    amplification: float | Absent  # mean |g̃|/|g| over layers at the last observed step
    cosine: float | Absent  # between g̃ and g
    zero_share_pct: float | Absent  # share of zero codes
    meta_grad_norm: float | Absent  # of the gradient that stepped psi: with slim, one layer's share
    # `tabulate` only, at the last sampled step
    interpolation_error: float | Absent = NOT_RECORDED  # as a share of f_psi's maximum
    same_codes_pct: float | Absent = NOT_RECORDED  # share of all codes that are the exact strategy's
    meta_angle_deg: float | Absent = NOT_RECORDED  # between the gradient for psi and the exact one


@dataclass(frozen=True, slots=True, kw_only=True)
class GemmResult:
    """GEMMs of one training step, counted in its second, the first in which a hypernetwork runs."""

    integer_calls: dict[str, int]  # fprop, dgrad, wgrad through torch._int_mm
    float_calls: dict[str, int]
    integer_share_pct: float  # of the multiply-accumulates of the model's layers, the hypernetwork apart
    hypernet_float_macs: int  # floating-point multiply-accumulates of the hypernetwork in one step; 0 without one
    label: Label  # of the low-bit products: emulated for INT4 codes in int8 containers, float where none ran


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


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """One cell on one machine, measured once; written atomically and never edited."""

    schema_version: int
    key: str  # content of config, code version and environment
    suite: str
    variant: str
    model_name: str
    data_name: str
    seed: int
    device: str  # cpu, cuda:0
    status: Status
    reason: str  # why it is not ok, "" otherwise
    started_at: str  # UTC, ISO 8601
    duration_s: float
    code_version: str
    fingerprint: str  # of what makes timings comparable on this machine
    cell: dict[str, Any]  # the composed config, without paths
    environment: dict[str, Any]
    method: MethodFacts
    model: ModelFacts | None
    data: DataFacts | None
    accuracy: AccuracyResult | None
    timing: TimingResult | None
    memory: MemoryResult | None
    hypernet: HypernetResult | None
    gemms: GemmResult | None
    missing: dict[str, str]  # for each part above that is None: the reason
    notices: tuple[str, ...] = ()  # what a reader must know: fallbacks, emulation, thread limits
    profile: ProfileResult | None = None  # None and not in `missing`: written before there was this pass
