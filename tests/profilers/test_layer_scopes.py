from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bench.profilers.layer_scopes import LayerScopes


class Log:
    def __init__(self) -> None:
        self.entries: list[tuple[str, str, str]] = []

    def begin_layer(self, name: str, module: nn.Module, direction: str) -> None:
        self.entries.append(("begin", name, direction))

    def end_layer(self, name: str, module: nn.Module, direction: str) -> None:
        self.entries.append(("end", name, direction))


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.second = nn.Tanh()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.softplus(self.first(x)))) + x


def run(log: Log) -> None:
    model = nn.Sequential(Block(), nn.Linear(4, 2))
    with LayerScopes(model, log):
        model(torch.randn(3, 4, requires_grad=True)).sum().backward()


def test_forward_calls_nest_as_the_modules_do() -> None:
    log = Log()
    run(log)
    forward = [(what, name) for what, name, direction in log.entries if direction == "forward"]
    assert forward == [
        ("begin", ""), ("begin", "0"), ("begin", "0.first"), ("end", "0.first"), ("begin", "0.second"),
        ("end", "0.second"), ("end", "0"), ("begin", "1"), ("end", "1"), ("end", ""),
    ]  # fmt: skip


def test_each_backward_node_belongs_to_the_innermost_module_that_made_it() -> None:
    log = Log()
    run(log)
    backward = [(what, name) for what, name, direction in log.entries if direction == "backward"]
    begun = [name for what, name in backward if what == "begin"]
    assert [what for what, _ in backward] == ["begin", "end"] * len(begun), "nodes do not nest"
    order = list(dict.fromkeys(begun))
    assert order == ["1", "0", "0.second", "0.first"]
    assert begun.count("0") == 3, "the sum, relu and softplus, of which softplus lies between inner modules"


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Linear(2, 2)
    with LayerScopes(model, Log()):
        assert model._forward_hooks
    assert not model._forward_hooks
    assert not model._forward_pre_hooks
