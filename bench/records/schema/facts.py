"""What was trained: method, layers, model, data, and which products ran as integers."""

from __future__ import annotations

from dataclasses import dataclass

from bench.records.schema.values import NOT_RECORDED, Label
from bench.units import Absent


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
    compact: bool = False  # batch-norm's input is kept in bfloat16 for backward, codes up to 4 bits two to a byte
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
class GemmResult:
    """GEMMs of one training step, counted in its second, the first in which a hypernetwork runs."""

    integer_calls: dict[str, int]  # fprop, dgrad, wgrad through torch._int_mm
    float_calls: dict[str, int]
    integer_share_pct: float  # of the multiply-accumulates of the model's layers, the hypernetwork apart
    hypernet_float_macs: int  # floating-point multiply-accumulates of the hypernetwork in one step; 0 without one
    label: Label  # of the low-bit products: emulated for INT4 codes in int8 containers, float where none ran
