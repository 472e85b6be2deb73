"""Which of a step's tensors belong to which category of memory, as far as somebody holds them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.utils import _pytree as pytree

from bench.kernels import workspace
from bench.profilers.memory_categories import Owner
from bench.training.assemble import Parts

MADE_BY_UPDATE = "hypernet_activations"  # what a delayed update makes between the phases


def owners_of(parts: Parts, batches: Callable[[], Sequence[Tensor]]) -> Callable[[], Iterable[Owner]]:
    """Ask a cell's parts what they hold now; for ``CategoryTracker``.

    Args:
        parts: of the cell.
        batches: images and labels that are alive.
    """
    return lambda: _owners(parts, batches())


def _owners(parts: Parts, batches: Sequence[Tensor]) -> Iterator[Owner]:
    parameters = list(parts.model.parameters())
    yield Owner("weights", [*parameters, *parts.model.buffers()])
    yield Owner("optimizer_state", _tensors(parts.optimizer.state_dict()))
    yield Owner("gradients", [parameter.grad for parameter in parameters if parameter.grad is not None])
    yield Owner("data", batches)
    yield Owner("workspaces", workspace.buffers())
    update = parts.delayed
    if update is None:
        return
    psi = list(update.hypernet.parameters())
    yield Owner("hypernet_parameters", psi)
    yield Owner("gradients", [parameter.grad for parameter in psi if parameter.grad is not None])
    yield Owner("optimizer_state", _tensors(update.optimizer.state_dict(), update.meta_optimizer.state_dict()))
    kept = (update.strategy.state_dict(), update.old_weights, update.old_factors, update.pi_prime)
    yield Owner("hypernet_activations", _tensors(kept))
    yield Owner("pending_gradients", update.pending or [], from_now=True)


def _tensors(*trees: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(trees) if isinstance(leaf, Tensor)]
