"""What the training came to: accuracy, its curve, and what the hypernetwork did."""

from __future__ import annotations

from dataclasses import dataclass, field

from bench.records.schema.values import NOT_RECORDED, NOT_SAMPLED
from bench.units import Absent


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
