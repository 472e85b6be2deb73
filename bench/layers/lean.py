"""Swap batch-norm, ReLU, max pooling and padding shortcuts for modules that keep less and compute the same.

A quantized convolution keeps its input as one byte of codes; a ReLU or pooling that kept the float32 input beside it
would undo that. Where a trace of the model shows that a batch-norm feeds nothing but one ReLU, the norm takes it in.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn

from bench.layers.activation import CEILINGS, LeanReLU
from bench.layers.flow import Flow, trace_flow
from bench.layers.handover import Readers, has_hooks
from bench.layers.join import AddReLU, LeanAddReLU
from bench.layers.norm import NO_ACTIVATION, LeanBatchNorm2d
from bench.layers.pool import LeanMaxPool2d, can_replace
from bench.layers.shortcut import LeanPadShortcut, PadShortcut


@dataclass(frozen=True, slots=True, kw_only=True)
class LeanReport:
    """What was swapped: names by kind, and the norms that took their ReLU in."""

    norms: tuple[str, ...]
    activations: tuple[str, ...]
    pools: tuple[str, ...]
    shortcuts: tuple[str, ...]
    fused: tuple[str, ...]


def make_lean(model: nn.Module, *, compact: bool = False) -> LeanReport:
    """Swap modules in place; parameters and buffers stay the very same tensors, names in the state dict too.

    Subclasses, batch-norms without weight and bias, poolings with indices or ``ceil_mode``, and modules with hooks
    are left alone.

    Args:
        model: any module, after its layers are converted, if they are; not a bare batch-norm, ReLU or pooling.
        compact: keep batch-norm's input in bfloat16 (backward changes within a bound: docs/method.md section 7).
    """
    flow = trace_flow(model)
    absorbed = set(flow.relus.values())
    replacements: dict[int, nn.Module] = {}
    norms, activations, pools, shortcuts = [], [], [], []
    for name, module in model.named_modules():
        if has_hooks(module):
            continue
        if type(module) is nn.BatchNorm2d and module.affine:
            relu = flow.relus.get(name)
            ceiling = NO_ACTIVATION if relu is None else CEILINGS[type(model.get_submodule(relu))]
            replacements[id(module)] = LeanBatchNorm2d(module, name, ceiling=ceiling, compact=compact)
            norms.append(name)
        elif type(module) in CEILINGS:
            replacements[id(module)] = nn.Identity() if name in absorbed else LeanReLU(module, name)
            activations.append(name)
        elif type(module) is AddReLU:
            replacements[id(module)] = LeanAddReLU(module, name)
            activations.append(name)
        elif type(module) is nn.MaxPool2d and can_replace(module):
            replacements[id(module)] = LeanMaxPool2d(module, name)
            pools.append(name)
        elif type(module) is PadShortcut:
            replacements[id(module)] = LeanPadShortcut(module, name)
            shortcuts.append(name)
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if id(child) in replacements:
                setattr(parent, child_name, replacements[id(child)])
    _introduce(model, flow)
    return LeanReport(
        norms=tuple(norms), activations=tuple(activations), pools=tuple(pools), shortcuts=tuple(shortcuts),
        fused=tuple(sorted(flow.relus)),
    )  # fmt: skip


def _introduce(model: nn.Module, flow: Flow) -> None:
    """Tell the swapped modules who reads them."""

    def of(names: Iterable[str]) -> tuple[nn.Module, ...]:
        return tuple(model.get_submodule(name) for name in names)

    for name in flow.feeding:
        model.get_submodule(name).feeds_norm = True  # type: ignore[assignment]
    for name, read in flow.reads.items():
        writer = model.get_submodule(name)
        if isinstance(writer, LeanBatchNorm2d | LeanAddReLU):
            writer.readers = Readers(layers=of(read.layers), others=read.others, watched=of(read.watched))
    for name, watched in flow.joined.items():
        norm = model.get_submodule(name)
        if isinstance(norm, LeanBatchNorm2d) and isinstance(of(watched)[-1], LeanAddReLU):
            norm.joined = of(watched)
    for name in flow.bypassing:
        join = model.get_submodule(name)
        if isinstance(join, LeanAddReLU):
            join.hands_gradient_over = True
