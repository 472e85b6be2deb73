"""Swap a float model's convolutions and linear layers for integer ones, and say which and why not.

Source: docs/method.md sections 1 (inputs that are not in [0, 1]), 2 and 5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from bench.errors import ConfigError
from bench.layers.base import DISPATCHES, IntegerLayer, LayerFacts, LayerQuantizers
from bench.layers.integer_conv import IntegerConv2d
from bench.layers.integer_linear import IntegerLinear
from bench.layers.lean import LeanReport, make_lean
from bench.quantizers import (
    ERROR_QUANTIZERS,
    ONE_BIT,
    ONE_STATE,
    WEIGHT_QUANTIZERS,
    CyclicActivation,
    CyclicPrecision,
    CyclicWeight,
    activation_of,
    build_activation_quantizer,
    build_error_quantizer,
    build_weight_quantizer,
    check_name,
    check_weight_bits,
)
from bench.quantizers.base import FLOAT_BITS, ForwardQuantizer, WeightQuantizer, check_bits
from bench.quantizers.daint8 import check_granularity
from bench.quantizers.uniform import check_choices

EDGE_LAYERS = ("full", "int8", "same")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantSpec:
    """How a model's layers are quantized; checked by ``check_spec``."""

    forward: str = "dorefa"
    """Weight quantizer: dorefa, bwn, bwn_f (one α per output filter), minmax, fixed_point or wageubn; activations take
    the one of the same name, with bwn and bwn_f DoReFa's."""
    weight_bits: int = 8
    """2..8, or 32 for float; dorefa has 1 too, bwn and bwn_f nothing else."""
    activation_bits: int = 8
    """2..8, or 32 for float."""
    error: str = "none"
    """Error-signal quantizer: none, uniform, dorefa, uint8, daint8, sbm, wageubn, afp or fp4."""
    error_bits: int = 32
    """2..8, or 32 with error=none; fp4 has 4, afp starts at 8."""
    error_rounding: str = "nearest"
    """nearest or stochastic."""
    error_granularity: str = "tensor"
    """tensor; sample and channel fit one of the two backward products only, so they need dispatch=simulate. DAINT8
    adds codes per output channel for wgrad to those per tensor for dgrad."""
    edge_layers: str = "same"
    """First convolution and last linear layer: full (left float), int8 (8 bits), same."""
    dispatch: str = "integer"
    """integer, auto (the fastest of each product's paths that give the same bits), or simulate: the same quantizers
    with floating-point products, for comparison."""
    compact: bool = False
    """Keep less for backward: batch-norm's input in bfloat16 (docs/method.md section 7 bounds the change), and codes of
    at most four bits two to a byte, which changes nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeptLayer:
    """A layer that stayed float, and why."""

    name: str
    kind: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """What ``quantize_model`` did.

    ``generator`` draws every stochastic rounding of the model; ``generator.get_state()`` belongs into a checkpoint.
    """

    swapped: tuple[LayerFacts, ...]
    kept: tuple[KeptLayer, ...]
    generator: torch.Generator
    lean: LeanReport


def check_spec(spec: QuantSpec) -> None:
    """Refuse what cannot run.

    Raises:
        ConfigError: for an unknown name, a width out of range, or a combination without integer products, naming the
            ones that have them.
    """
    check_name("forward quantizer", spec.forward, WEIGHT_QUANTIZERS)
    check_name("edge_layers", spec.edge_layers, EDGE_LAYERS)
    check_name("dispatch", spec.dispatch, DISPATCHES)
    check_name("error quantizer", spec.error, ("none", *ERROR_QUANTIZERS))
    check_choices(spec.error_rounding, spec.error_granularity)
    for field in ("weight_bits", "activation_bits", "error_bits"):
        bits = getattr(spec, field)
        if bits != FLOAT_BITS and (field, bits) != ("weight_bits", 1):
            check_bits(bits, field)
    if spec.weight_bits != FLOAT_BITS:
        check_weight_bits(spec.forward, spec.weight_bits)
    if spec.forward == "bwn_f" and spec.error in ONE_STATE:
        raise ConfigError(
            f"forward=bwn_f folds one scale per filter into dgrad's error signal, and error={spec.error} keeps one "
            "state per layer; take forward=bwn, or error=uniform, dorefa or daint8"
        )
    if (spec.error == "none") != (spec.error_bits == FLOAT_BITS):
        raise ConfigError(
            f"error={spec.error} with error_bits={spec.error_bits}: float error signals are error=none with "
            f"error_bits=32, quantized ones a quantizer ({', '.join(ERROR_QUANTIZERS)}) with error_bits 2 to 8"
        )
    if spec.error not in ("none", "uniform", "dorefa", "daint8") and spec.error_granularity != "tensor":
        raise ConfigError(
            f"error={spec.error} takes one scale per tensor; set error_granularity=tensor or error=uniform"
        )
    if spec.error == "daint8":
        check_granularity(spec.error_granularity)
    if spec.dispatch == "simulate":
        return
    if FLOAT_BITS in (spec.weight_bits, spec.activation_bits):
        raise ConfigError(
            f"weight_bits={spec.weight_bits}, activation_bits={spec.activation_bits}, error_bits={spec.error_bits} has "
            "no integer product with dispatch=integer: weights must have 1 to 8 and activations 2 to 8 bits (with "
            "error_bits 2 to 8 or 32); use dispatch=simulate, or an FP32 method for an unquantized model"
        )
    if spec.error_granularity != "tensor":
        raise ConfigError(
            f"error_granularity={spec.error_granularity}: one scale per {spec.error_granularity} cannot leave both "
            "backward products' sums; set error_granularity=tensor or dispatch=simulate"
        )


def quantize_model(
    model: nn.Module,
    spec: QuantSpec,
    *,
    sample_input: Tensor | None = None,
    keep: Callable[[str, nn.Module], bool] | None = None,
    generator: torch.Generator | None = None,
    precision: CyclicPrecision | None = None,
) -> Conversion:
    """Replace ``nn.Conv2d`` and ``nn.Linear`` in place; parameters and hooks stay the very same.

    Args:
        model: float32 model. A subclass of the two layers is left alone, since it may compute something else; so is a
            layer with a ``forward`` or tensors of its own (weight_norm, pruning), or with hooks on its state dict.
        spec: the quantizers.
        sample_input: a batch to run once in evaluation mode: it shows the layers' order, and which inputs are negative
            somewhere and so take the symmetric quantizer. A layer that it never calls stays float. Without it the first
            convolution in the order of registration takes the symmetric quantizer, and no other.
        keep: called with (name, layer); True leaves the layer float.
        generator: source of stochastic rounding, on the model's device; seeded with 0 if not given.
        precision: schedule that lowers the bits of weights and activations below the spec's; edge layers at 8 bits
            of their own keep them. The first swapped layer holds it, for the state dict and for ``train``/``eval``.

    Returns:
        The facts of every swapped layer, and each kept one with its reason.

    Raises:
        ConfigError: for a spec that cannot run, a model without a layer to swap, or a compiled one.
    """
    check_spec(spec)
    _refuse_compiled(model)
    if isinstance(model, nn.Conv2d | nn.Linear):
        raise ConfigError(f"the model is a bare {type(model).__name__}; wrap it in nn.Sequential to have it replaced")
    candidates = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
    if not candidates:
        raise ConfigError("the model holds no Conv2d or Linear to quantize; give an unconverted float model")
    device = next(iter(candidates.values())).weight.device
    if generator is None:
        generator = torch.Generator(device=device).manual_seed(0)
    if generator.device.type != device.type:
        raise ConfigError(
            f"the generator is on {generator.device} and the model on {device}; make it on the model's device"
        )
    order, signed = _observe(model, candidates, sample_input)
    uncalled = set(candidates) - set(order)
    edges = _edges(order, candidates)
    swapped: list[LayerFacts] = []
    kept: list[KeptLayer] = []
    replacements: dict[int, IntegerLayer] = {}
    for name, layer in candidates.items():
        edge = name in edges
        reason = _reason_to_keep(name, layer, spec, edge, keep)
        if reason is None and name in uncalled:
            reason = "the sample input never calls it: it is read by others, or used in training alone"
        if reason is not None:
            kept.append(KeptLayer(name=name, kind=type(layer).__name__, reason=reason))
            continue
        own_spec = _edge_spec(spec) if edge and spec.edge_layers == "int8" else spec
        quantizers = _layer_quantizers(
            own_spec,
            signed=name in signed,
            generator=generator,
            channels=layer.weight.shape[0],
            precision=precision if own_spec is spec else None,
        )
        replacement = (
            IntegerConv2d(layer, name, quantizers)
            if isinstance(layer, nn.Conv2d)
            else IntegerLinear(layer, name, quantizers)
        ).to(layer.weight.device)
        replacement.take_hooks(layer)
        replacements[id(layer)] = replacement
        swapped.append(replacement.facts())
    if not swapped:
        raise ConfigError(f"every layer of the model stays float ({kept[0].reason}); relax keep or edge_layers")
    if precision is not None:
        next(iter(replacements.values())).precision = precision
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if id(child) in replacements:
                setattr(parent, child_name, replacements[id(child)])
    lean = make_lean(model, compact=spec.compact)
    return Conversion(swapped=tuple(swapped), kept=tuple(kept), generator=generator, lean=lean)


def quantized_layers(model: nn.Module) -> dict[str, IntegerLayer]:
    """The model's integer layers by name, in the order of registration."""
    return {name: layer for name, layer in model.named_modules() if isinstance(layer, IntegerLayer)}


def _observe(
    model: nn.Module, candidates: dict[str, nn.Conv2d | nn.Linear], sample_input: Tensor | None
) -> tuple[list[str], set[str]]:
    """Names in the order of execution, as far as the sample calls them, and those whose input is signed."""
    if sample_input is None:
        order = list(candidates)
        first = next((name for name in order if isinstance(candidates[name], nn.Conv2d)), None)
        return order, set() if first is None else {first}
    order, signed = [], set()

    def hook(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], dict[str, Tensor]], None]:
        def see(_: nn.Module, inputs: tuple[Tensor, ...], named: dict[str, Tensor]) -> None:
            order.append(name)
            if any(bool((x < 0).any()) for x in (*inputs, *named.values())):
                signed.add(name)

        return see

    handles = [layer.register_forward_pre_hook(hook(name), with_kwargs=True) for name, layer in candidates.items()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        with torch.no_grad():
            model(sample_input)
    finally:
        for handle in handles:
            handle.remove()
        for module, training in modes:
            module.training = training
    return order, signed


def _edges(order: list[str], candidates: dict[str, nn.Conv2d | nn.Linear]) -> set[str]:
    convolutions = [name for name in order if isinstance(candidates[name], nn.Conv2d)]
    linears = [name for name in order if isinstance(candidates[name], nn.Linear)]
    return {*convolutions[:1], *linears[-1:]}


def _reason_to_keep(
    name: str, layer: nn.Conv2d | nn.Linear, spec: QuantSpec, edge: bool, keep: Callable[[str, nn.Module], bool] | None
) -> str | None:
    if keep is not None and keep(name, layer):
        return "the caller's filter"
    if type(layer) not in (nn.Conv2d, nn.Linear):
        return f"{type(layer).__name__} is a subclass that may compute something else"
    altered = _alteration(layer)
    if altered is not None:
        return altered
    if edge and spec.edge_layers == "full":
        return "edge_layers=full"
    if isinstance(layer, nn.Conv2d) and layer.padding_mode != "zeros":
        return f"padding_mode={layer.padding_mode}"
    if layer.weight.dtype != torch.float32:
        return f"its weight is {layer.weight.dtype}, not float32"
    return None


def _refuse_compiled(model: nn.Module) -> None:
    """torch.compile traces a module's operators, and what layers hand over to each other is none of them."""
    for name, module in model.named_modules():
        if "_orig_mod" in module._modules or getattr(module, "_compiled_call_impl", None) is not None:
            which = f"module {name}" if name else "the model"
            raise ConfigError(
                f"{which} is compiled (torch.compile), and integer layers run uncompiled: give the network as it was"
            )


def _alteration(layer: nn.Conv2d | nn.Linear) -> str | None:
    """What was done to this very layer that a replacement would undo; None if nothing."""
    if "forward" in vars(layer):
        return "a forward of its own"
    extra = {*layer._parameters, *layer._buffers, *layer._modules} - {"weight", "bias"}
    if extra or "weight" not in layer._parameters:
        return f"its weight is made from {', '.join(sorted(extra))}" if extra else "its weight is no parameter"
    on_state = (layer._state_dict_hooks, layer._state_dict_pre_hooks, layer._load_state_dict_pre_hooks)
    return "hooks on its state dict" if any(on_state) or layer._load_state_dict_post_hooks else None


def _edge_spec(spec: QuantSpec) -> QuantSpec:
    """The same with 8 bits wherever something is quantized."""
    return replace(
        spec,
        forward="dorefa" if spec.forward in ONE_BIT else spec.forward,
        error="uniform" if spec.error == "fp4" else spec.error,  # FP4 has no 8 bits
        weight_bits=_to_eight(spec.weight_bits),
        activation_bits=_to_eight(spec.activation_bits),
        error_bits=_to_eight(spec.error_bits),
    )


def _to_eight(bits: int) -> int:
    return bits if bits == FLOAT_BITS else 8


def _layer_quantizers(
    spec: QuantSpec, *, signed: bool, generator: torch.Generator, channels: int, precision: CyclicPrecision | None
) -> LayerQuantizers:
    def weight(bits: int) -> WeightQuantizer:
        return build_weight_quantizer(spec.forward, bits)

    def activation(bits: int) -> ForwardQuantizer:
        return build_activation_quantizer(activation_of(spec.forward, signed=signed), bits)

    if precision is None:
        forward = (
            None if spec.weight_bits == FLOAT_BITS else weight(spec.weight_bits),
            None if spec.activation_bits == FLOAT_BITS else activation(spec.activation_bits),
        )
    else:
        forward = (
            CyclicWeight(spec.weight_bits, precision, weight),
            CyclicActivation(spec.activation_bits, precision, activation),
        )
    return LayerQuantizers(
        weight=forward[0],
        activation=forward[1],
        error=None
        if spec.error == "none"
        else build_error_quantizer(
            spec.error,
            spec.error_bits,
            rounding=spec.error_rounding,
            granularity=spec.error_granularity,
            generator=generator,
            channels=channels,
        ),
        dispatch=spec.dispatch,
        compact=spec.compact,
    )
