"""Swap a float model's batch-norm layers for a method's own."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn

from bench.errors import ConfigError
from bench.layers.fixed_point_norm import FixedPointBatchNorm2d
from bench.layers.range_norm import RangeBatchNorm2d
from bench.quantizers import check_name

NORMS: dict[str, Callable[[nn.BatchNorm2d], nn.Module]] = {
    "range": RangeBatchNorm2d,
    "fixed_point": FixedPointBatchNorm2d,
}


def replace_norms(model: nn.Module, name: str) -> tuple[str, ...]:
    """Replace every ``nn.BatchNorm2d`` in place; parameters stay the very same tensors.

    Args:
        model: float32 model.
        name: batch (nothing is replaced), range (SBM) or fixed_point (WAGEUBN).

    Returns:
        The names of the layers that were replaced; none for a model without batch-norm.

    Raises:
        ConfigError: for an unknown name, or a batch-norm that lacks parameters or statistics.
    """
    check_name("norm", name, ("batch", *NORMS))
    if name == "batch":
        return ()
    found = {key: layer for key, layer in model.named_modules() if type(layer) is nn.BatchNorm2d}
    for key, layer in found.items():
        if not (layer.affine and layer.track_running_stats and layer.momentum is not None):
            raise ConfigError(
                f"norm {name} takes over weight, bias, running statistics and a momentum, and layer {key} lacks one of "
                "them: give it all, or take a method that leaves batch-norm as it is (any but sbm and wageubn)"
            )
    replacements = {id(layer): NORMS[name](layer) for layer in found.values()}
    for parent in list(model.modules()):
        for child_name, child in list(parent._modules.items()):
            if id(child) in replacements:
                setattr(parent, child_name, replacements[id(child)])
    return tuple(found)
