"""What integer layers share: their quantizers, their name, and the facts a record keeps about them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bench.errors import ShapeError
from bench.kernels.int4 import gemm_label
from bench.kernels.selfcheck import check_device
from bench.layers.dispatch import INT_MM, PathChoice, choices_of, ran_as_integer
from bench.layers.operands import quantizations_of
from bench.quantizers import (
    CyclicPrecision,
    ErrorQuantizer,
    ForwardQuantizer,
    GradQuantizer,
    Uint8ClipQuantizer,
    WeightQuantizer,
)
from bench.quantizers.base import FLOAT_BITS, QTensor, dequantize

GEMMS = ("fprop", "dgrad", "wgrad")
DISPATCHES = ("integer", "auto", "simulate")
_HOOKS = (
    "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_backward_hooks", "_backward_pre_hooks", "_is_full_backward_hook",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerFacts:
    """One row of the record's layer table: quantizers as sentences, bits, and what each GEMM is.

    ``fprop``, ``dgrad`` and ``wgrad`` are "integer", "emulated" (INT4 codes in int8 containers), "simulated" (quantized
    values in floating point, also where dispatch=auto found that faster; of fprop also with float activations) or
    "float" (an operand is not quantized).
    """

    name: str
    kind: str
    weight: str
    activation: str
    error: str
    weight_bits: int
    activation_bits: int
    error_bits: int
    fprop: str
    dgrad: str
    wgrad: str
    error_quantizations: int  # of one error signal where both backward products run
    fprop_path: str = ""  # which path ran and why, in words; "" of a product that has not run
    dgrad_path: str = ""
    wgrad_path: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerQuantizers:
    """The quantizers of one layer; None stands for float."""

    weight: WeightQuantizer | None
    activation: ForwardQuantizer | None
    error: ErrorQuantizer | None
    dispatch: str = "integer"
    compact: bool = False  # keep codes of at most four bits two to a byte for backward


class IntegerLayer(nn.Module):
    """A layer whose products run on integer codes; ``weight`` stays a float32 parameter.

    After backward ``weight.grad`` is ∇W, through ∂Ŵ/∂W (MetaGrad Eq. 2), or ∇Ŵ with ``leaves_quantized_gradient``. A
    value that is not finite anywhere in the input, the weight or the error signal makes the scale of its codes NaN,
    hence the output, the loss or the gradients NaN: nothing inside the step waits for the device, and the training
    loop says it where it reads the loss.

    The bias stays float; its gradient sums the error signal that the other gradients see, the quantized one.
    """

    weight: Tensor
    bias: Tensor | None
    kind = "layer"
    has_several_paths = False  # whether dispatch=auto has a choice

    def __init__(self, name: str, quantizers: LayerQuantizers) -> None:
        """Attach the quantizers.

        Args:
            name: the layer's name in its model, for the GEMM log and the record.
            quantizers: what quantizes each operand.
        """
        super().__init__()
        self.name = name
        self.dispatch, self.compact = quantizers.dispatch, quantizers.compact
        self.weight_quantizer = quantizers.weight
        self.activation_quantizer = quantizers.activation
        self.error_quantizer = quantizers.error  # a Module (UINT8) registers itself, its clip travels in the state dict
        # by product: what dispatch=auto chose; restored from an earlier process, or filled in the first step
        self.paths: dict[str, PathChoice] = {}
        self.leaves_quantized_gradient = False  # MetaQuant: ``weight.grad`` is ∇Ŵ, before the factor ∂Ŵ/∂W
        self.precision: CyclicPrecision | None = None  # in one layer of a model with cyclic precision
        self.grad_quantizer: GradQuantizer | None = None  # of ∇W; the step calls it, its state travels here

    def take_hooks(self, source: nn.Module) -> None:
        """Call the hooks of ``source`` from now on; the tables are shared, so that handles remove them here too."""
        for table in _HOOKS:
            setattr(self, table, getattr(source, table))

    @property
    def lr_factor(self) -> Tensor:
        """() float32 that multiplies this layer's learning rate: UINT8's, 1 for every other method."""
        if isinstance(self.error_quantizer, Uint8ClipQuantizer):
            return self.error_quantizer.lr_factor
        return torch.ones((), device=self.weight.device)

    def facts(self) -> LayerFacts:
        """What the record says about this layer."""
        weight, activation, error = (
            FLOAT_BITS if quantizer is None else quantizer.bits
            for quantizer in (self.weight_quantizer, self.activation_quantizer, self.error_quantizer)
        )
        # what the product reads may be wider than the format's name (FP4's codes reach 64)
        code_bits = getattr(self.error_quantizer, "code_bits", error)
        operands = {"fprop": (activation, weight), "dgrad": (code_bits, weight), "wgrad": (code_bits, activation)}
        labels = {gemm: self._label(gemm, *bits) for gemm, bits in operands.items()}
        if self.dispatch == "simulate" and weight != FLOAT_BITS:
            labels["fprop"] = "simulated"  # also where the activations are float: weight-only quantization
        return LayerFacts(
            name=self.name,
            kind=self.kind,
            weight=_describe(self.weight_quantizer),
            activation=_describe(self.activation_quantizer),
            error=_describe(self.error_quantizer),
            weight_bits=weight,
            activation_bits=activation,
            error_bits=error,
            error_quantizations=quantizations_of(self.weight_quantizer, self.error_quantizer),
            **labels,
            **{f"{gemm}_path": self._path(gemm, label) for gemm, label in labels.items()},
        )

    def _label(self, gemm: str, a_bits: int, b_bits: int) -> str:
        if max(a_bits, b_bits) == FLOAT_BITS:
            return "float"
        floats = any(not ran_as_integer(choice.path) for choice in choices_of(self.paths, gemm))
        return "simulated" if self.dispatch == "simulate" or floats else gemm_label(a_bits, b_bits)

    def _path(self, gemm: str, label: str) -> str:
        """Which path a product takes and why; each one's where error signals on several grids have one each."""
        if label == "float":
            return "floating point: an operand is not quantized"
        if self.dispatch == "simulate":
            return "floating point: dispatch=simulate"
        if self.dispatch == "integer":
            return f"{INT_MM}: dispatch=integer"
        if not self.has_several_paths:
            return f"{INT_MM}: the only path of a {self.kind} layer"
        chosen = (f"{choice.path}: {choice.reason}" for choice in choices_of(self.paths, gemm))
        return " and ".join(dict.fromkeys(chosen))

    def _checked_input(self, x: Tensor) -> Tensor:
        """Float32 input, beside float32 parameters, on a device whose integer product is right."""
        if not x.is_floating_point() or x.layout != torch.strided:
            found = x.dtype if x.layout == torch.strided else x.layout
            raise ShapeError(f"layer {self.name}: the input is {found}; give a dense floating-point tensor")
        for what, parameter in (("weight", self.weight), ("bias", self.bias)):
            if parameter is None:
                continue
            if parameter.dtype != torch.float32:
                raise ShapeError(
                    f"layer {self.name}: its {what} is {parameter.dtype}; keep a converted model in float32 "
                    "(model.float()), its quantizers set the widths"
                )
            if parameter.device != x.device:
                raise ShapeError(
                    f"layer {self.name}: its {what} lies on {parameter.device} and the input on {x.device}; put them "
                    "on one device"
                )
        if self.dispatch != "simulate":
            check_device(x.device)
        return x if x.dtype == torch.float32 else x.float()


def values_of(operand: QTensor | Tensor) -> Tensor:
    """Float values of an operand, quantized or not."""
    return dequantize(operand) if isinstance(operand, QTensor) else operand


def _describe(quantizer: ForwardQuantizer | ErrorQuantizer | None) -> str:
    return "float" if quantizer is None else quantizer.describe()
