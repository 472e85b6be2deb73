"""Tells an observer which layer of a model runs, forward and backward, without touching the numbers.

Forward by hooks on every module; backward by hooks on the nodes that a module's call put into autograd's graph. A node
belongs to the innermost module that made it.
"""

from __future__ import annotations

from collections.abc import Iterable
from types import TracebackType
from typing import Any, Protocol

from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils.hooks import RemovableHandle

FORWARD, BACKWARD = "forward", "backward"
_OWNER = "metagrad-bench layer"


class LayerObserver(Protocol):
    """Hears where a model's computation stands; calls nest forward and do not nest backward."""

    def begin_layer(self, name: str, module: nn.Module, direction: str) -> None:
        """A module's forward, or one of its nodes in backward, begins."""

    def end_layer(self, name: str, module: nn.Module, direction: str) -> None:
        """It has ended."""


class LayerScopes:
    """A context in which an observer is told about a model's layers."""

    def __init__(self, model: nn.Module, observer: LayerObserver) -> None:
        """Watch a model.

        Args:
            model: named by ``named_modules``; the model itself is "".
            observer: told.
        """
        self._model = model
        self._observer = observer
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> LayerScopes:
        """Set the hooks."""
        for name, module in self._model.named_modules():
            self._handles.append(module.register_forward_pre_hook(self._entered(name)))
            self._handles.append(module.register_forward_hook(self._left(name)))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Take the modules' hooks away; those of the nodes go with their graph."""
        while self._handles:
            self._handles.pop().remove()

    def _entered(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any) -> None:
            self._observer.begin_layer(name, module, FORWARD)

        return hook

    def _left(self, name: str) -> Any:
        def hook(module: nn.Module, inputs: Any, output: Any) -> None:
            self._observer.end_layer(name, module, FORWARD)
            self._claim_nodes(name, module, inputs, output)

        return hook

    def _claim_nodes(self, name: str, module: nn.Module, inputs: Any, output: Any) -> None:
        """Hook the graph's nodes between a call's output and its inputs that no inner module has claimed."""
        pending = list(_nodes_of(output))
        seen = set(_nodes_of(inputs))
        while pending:
            node = pending.pop()
            if node in seen or node.name() == "torch::autograd::AccumulateGrad":
                continue
            seen.add(node)
            pending.extend(before for before, _ in node.next_functions if before is not None)
            if _OWNER not in node.metadata:
                node.metadata[_OWNER] = name
                node.register_prehook(lambda grads: self._observer.begin_layer(name, module, BACKWARD))
                node.register_hook(lambda new, grads: self._observer.end_layer(name, module, BACKWARD))


def _nodes_of(values: Any) -> Iterable[Any]:
    if isinstance(values, Tensor):
        tensors = [values]
    elif isinstance(values, tuple) and all(isinstance(value, Tensor) for value in values):
        tensors = list(values)
    else:
        tensors = [leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor)]
    return (tensor.grad_fn for tensor in tensors if tensor.grad_fn is not None)
