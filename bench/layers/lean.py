"""Swap batch-norm, ReLU and max pooling for modules that keep less for backward and compute the same.

A quantized convolution keeps its input as one byte of codes; a ReLU or pooling that kept the float32 input beside it
would undo that. Where a trace of the model shows that a batch-norm feeds nothing but one ReLU, the norm takes it in.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import nn

from bench.layers.activation import CEILINGS, LeanReLU
from bench.layers.norm import NO_ACTIVATION, LeanBatchNorm2d
from bench.layers.pool import LeanMaxPool2d, can_replace


@dataclass(frozen=True, slots=True, kw_only=True)
class LeanReport:
    """What was swapped: names by kind, and the norms that took their ReLU in."""

    norms: tuple[str, ...]
    activations: tuple[str, ...]
    pools: tuple[str, ...]
    fused: tuple[str, ...]


def make_lean(model: nn.Module, *, compact: bool = False) -> LeanReport:
    """Swap modules in place; parameters and buffers stay the very same tensors, names in the state dict too.

    Subclasses, batch-norms without weight and bias, poolings with indices or ``ceil_mode``, and modules with hooks
    are left alone.

    Args:
        model: any module, before or after its layers are converted; not a bare batch-norm, ReLU or pooling.
        compact: keep batch-norm's input in bfloat16 (backward changes within a bound: docs/method.md section 7).
    """
    followers = _norms_with_one_relu(model)
    absorbed = set(followers.values())
    replacements: dict[int, nn.Module] = {}
    norms, activations, pools = [], [], []
    for name, module in model.named_modules():
        if _has_hooks(module):
            continue
        if type(module) is nn.BatchNorm2d and module.affine:
            relu = followers.get(name)
            ceiling = NO_ACTIVATION if relu is None else CEILINGS[type(model.get_submodule(relu))]
            replacements[id(module)] = LeanBatchNorm2d(module, name, ceiling=ceiling, compact=compact)
            norms.append(name)
        elif type(module) in CEILINGS:
            replacements[id(module)] = nn.Identity() if name in absorbed else LeanReLU(module, name)
            activations.append(name)
        elif type(module) is nn.MaxPool2d and can_replace(module):
            replacements[id(module)] = LeanMaxPool2d(module, name)
            pools.append(name)
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if id(child) in replacements:
                setattr(parent, child_name, replacements[id(child)])
    return LeanReport(
        norms=tuple(norms), activations=tuple(activations), pools=tuple(pools), fused=tuple(sorted(followers))
    )


class _ModuleTracer(torch.fx.Tracer):
    """Looks at calls of modules only as far as the leaves that could be swapped or converted."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return not list(m.children()) or super().is_leaf_module(m, module_qualified_name)


def _norms_with_one_relu(model: nn.Module) -> dict[str, str]:
    """Batch-norms whose output goes to one ReLU alone, both called once, training or not; {} if no trace can tell."""
    modes = [(module, module.training) for module in model.modules()]
    found: list[set[tuple[str, str]]] = []
    try:
        for training in (True, False):
            for module, _ in modes:
                module.training = training
            found.append(set(_followed_in_this_mode(model).items()))
    finally:
        for module, training in modes:
            module.training = training
    return dict(found[0] & found[1])


def _followed_in_this_mode(model: nn.Module) -> dict[str, str]:
    try:
        graph = _ModuleTracer().trace(model)
    except Exception:  # the user's own code runs on stand-ins here: whatever it raises means "cannot tell"
        return {}
    modules = dict(model.named_modules(remove_duplicate=False))
    calls = [node for node in graph.nodes if node.op == "call_module"]
    counts: dict[int, int] = {}
    for node in calls:
        counts[id(modules[str(node.target)])] = counts.get(id(modules[str(node.target)]), 0) + 1
    found = {}
    for node in calls:
        norm = modules[str(node.target)]
        users = list(node.users)
        if type(norm) is not nn.BatchNorm2d or not norm.affine or counts[id(norm)] != 1 or len(users) != 1:
            continue
        relu = modules.get(str(users[0].target)) if users[0].op == "call_module" else None
        if relu is None or type(relu) not in CEILINGS or counts[id(relu)] != 1:
            continue
        if not (_has_hooks(norm) or _has_hooks(relu)):
            found[str(node.target)] = str(users[0].target)
    return found


def _has_hooks(module: nn.Module) -> bool:
    """Whether somebody watches this very module: a replacement would not call them."""
    return bool(
        module._forward_hooks or module._forward_pre_hooks or module._backward_hooks or module._backward_pre_hooks
    )
