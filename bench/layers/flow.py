"""Who reads whose output: what a trace of a model proves about its modules, in training and in evaluation alike.

Only what is certain counts: a module that is called more than once, or whose output leaves the model or goes into an
operator, has readers that nobody here knows. A model that cannot be traced proves nothing.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import nn
from torch.fx import Node

from bench.errors import is_ours
from bench.layers.activation import CEILINGS
from bench.layers.base import IntegerLayer
from bench.layers.handover import has_hooks
from bench.layers.integer_conv import IntegerConv2d
from bench.layers.join import AddReLU
from bench.layers.shortcut import PadShortcut

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Read:
    """Readers of one module's output: convolutions by name, whether there are others, and all names on the way."""

    layers: tuple[str, ...]
    others: bool
    watched: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Flow:
    """What is certain, by module name.

    ``relus``: the ReLU that alone reads a batch-norm. ``feeding``: convolutions that a batch-norm reads. ``reads``:
    readers of a batch-norm's rectified output or of a join. ``joined``: for a batch-norm that a join alone reads, as
    its first operand, itself and all modules up to the join. ``bypassing``: joins whose shortcut is the very input of a
    convolution that the rest of the block begins with, or made of it by a padding shortcut for the join alone; nobody
    else reads that input.
    """

    relus: dict[str, str]
    feeding: frozenset[str]
    reads: dict[str, Read]
    joined: dict[str, tuple[str, ...]]
    bypassing: frozenset[str]


def trace_flow(model: nn.Module) -> Flow:
    """Trace the model in both modes, before its norms and activations are swapped."""
    modes = [(module, module.training) for module in model.modules()]
    found: list[Flow] = []
    try:
        for training in (True, False):
            for module, _ in modes:
                module.training = training
            found.append(_flow_in_this_mode(model))
    finally:
        for module, training in modes:
            module.training = training
    first, second = found
    return Flow(
        relus=_common(first.relus, second.relus),
        feeding=first.feeding & second.feeding,
        reads=_common(first.reads, second.reads),
        joined=_common(first.joined, second.joined),
        bypassing=first.bypassing & second.bypassing,
    )


def _common(one: dict[str, Value], other: dict[str, Value]) -> dict[str, Value]:
    return {key: value for key, value in one.items() if other.get(key) == value}


class _ModuleTracer(torch.fx.Tracer):
    """Looks at calls of modules only as far as the leaves that could be swapped or converted."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        leaf = isinstance(m, IntegerLayer) or not list(m.children())
        return leaf or super().is_leaf_module(m, module_qualified_name)


class _Graph:
    """A trace with its modules."""

    def __init__(self, model: nn.Module, graph: torch.fx.Graph) -> None:
        self.modules = dict(model.named_modules(remove_duplicate=False))
        self.calls = [node for node in graph.nodes if node.op == "call_module"]
        self.counts: dict[int, int] = {}
        for node in self.calls:
            key = id(self.modules[str(node.target)])
            self.counts[key] = self.counts.get(key, 0) + 1

    def once(self, node: Node, *kinds: type[nn.Module]) -> bool:
        """Whether a node is the only call of a module of these very types."""
        if node.op != "call_module":
            return False
        module = self.modules[str(node.target)]
        return type(module) in kinds and self.counts[id(module)] == 1

    def is_norm(self, node: Node) -> bool:
        return self.once(node, nn.BatchNorm2d) and bool(self.modules[str(node.target)].affine)

    def is_identity(self, node: Node) -> bool:
        return node.op == "call_module" and type(self.modules[str(node.target)]) is nn.Identity

    def readers(self, node: Node) -> Iterator[tuple[Node, Node, tuple[str, ...]]]:
        """(reader, what it reads, names of the identities between) of a node's output, identities seen through."""
        for user in node.users:
            if self.is_identity(user):
                for reader, operand, between in self.readers(user):
                    yield reader, operand, (str(user.target), *between)
            else:
                yield user, node, ()

    def source(self, node: Node) -> Node:
        """The node behind identities."""
        while self.is_identity(node):
            node = node.all_input_nodes[0]
        return node


def _flow_in_this_mode(model: nn.Module) -> Flow:
    flow = Flow(relus={}, feeding=frozenset(), reads={}, joined={}, bypassing=frozenset())
    try:
        trace = _ModuleTracer().trace(model)
    except Exception as error:  # the user's own code runs on stand-ins here: what it raises means "cannot tell"
        if is_ours(error):
            raise
        return flow
    graph = _Graph(model, trace)
    feeding, bypassing = set(), set()
    for node in graph.calls:
        name = str(node.target)
        if graph.is_norm(node):
            relu = _relu_after(graph, node)
            if relu is not None:
                flow.relus[name] = str(relu.target)
                flow.reads[name] = _read(graph, relu, (name, str(relu.target)))
            join = _join_after(graph, node)
            if join is not None:
                flow.joined[name] = (name, *join)
        elif graph.once(node, IntegerConv2d):
            if any(graph.is_norm(user) for user in node.users):
                feeding.add(name)
        elif graph.once(node, AddReLU):
            flow.reads[name] = _read(graph, node, (name,))
            if _is_bypass(graph, node):
                bypassing.add(name)
    return Flow(
        relus=flow.relus, feeding=frozenset(feeding), reads=flow.reads, joined=flow.joined,
        bypassing=frozenset(bypassing),
    )  # fmt: skip


def _relu_after(graph: _Graph, norm: Node) -> Node | None:
    """The ReLU that alone reads a batch-norm, neither of them watched."""
    users = list(norm.users)
    if len(users) != 1 or not graph.once(users[0], *CEILINGS):
        return None
    watched = any(has_hooks(graph.modules[str(node.target)]) for node in (norm, users[0]))
    return None if watched else users[0]


def _join_after(graph: _Graph, norm: Node) -> tuple[str, ...] | None:
    """Names up to the join that alone reads a batch-norm, as its first operand."""
    readers = list(graph.readers(norm))
    if len(readers) != 1:
        return None
    reader, operand, between = readers[0]
    if not graph.once(reader, AddReLU) or reader.args[:1] != (operand,) or reader.args[1:] == (operand,):
        return None
    return (*between, str(reader.target))


def _read(graph: _Graph, node: Node, on_the_way: tuple[str, ...]) -> Read:
    layers, others, watched = [], False, list(on_the_way)
    for reader, _, between in graph.readers(node):
        if graph.once(reader, IntegerConv2d):
            layers.append(str(reader.target))
            watched += [*between, str(reader.target)]
        else:
            others = True
    return Read(layers=tuple(layers), others=others, watched=tuple(watched))


def _is_bypass(graph: _Graph, join: Node) -> bool:
    """Whether the shortcut's source is one convolution's input upstream of the other operand, and no one else's."""
    if len(join.args) != 2 or not all(isinstance(operand, Node) for operand in join.args):
        return False
    out, shortcut = join.args
    assert isinstance(out, Node), "checked above"
    assert isinstance(shortcut, Node), "checked above"
    source, end = graph.source(shortcut), join
    if graph.once(source, PadShortcut):
        if [reader for reader, _, _ in graph.readers(source)] != [join]:
            return False
        source, end = graph.source(source.all_input_nodes[0]), source
    readers = [reader for reader, _, _ in graph.readers(source)]
    convolutions = [reader for reader in readers if graph.once(reader, IntegerConv2d)]
    if len(readers) != 2 or len(convolutions) != 1 or end not in readers:
        return False
    seen, waiting = set(), [out]
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen.add(node)
            waiting += node.all_input_nodes
    return convolutions[0] in seen
