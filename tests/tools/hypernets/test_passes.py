from __future__ import annotations

import torch

from bench.models import build_model
from bench.update import build_strategy
from tools.hypernets.passes import Work, build_operands, count_weights, free_bytes, strategies_pass, update

SMALL = Work(model="resnet20", hidden=3, stride=200, device="cpu")


def test_the_operands_are_every_layer_of_the_network_thinned_evenly() -> None:
    operands = build_operands(SMALL)
    model = build_model("resnet20", num_classes=10, in_channels=3, image_size=32)
    sizes = [p.numel() for name, p in model.named_parameters() if p.dim() > 1]
    assert [w.numel() for w in operands.weights] == [-(-size // SMALL.stride) for size in sizes]
    assert operands.num_weights == count_weights(SMALL)
    assert all(bool(grad.any()) for grad in operands.grads)
    assert not torch.equal(operands.grads[0], operands.new_grads[0])


def test_an_update_leaves_the_same_gradient_by_psi_whatever_the_exact_strategy() -> None:
    operands = build_operands(SMALL)
    taken = {}
    for name in ("retain", "recompute"):
        update(build_strategy(name), operands)
        # with a zero state nothing reaches the hidden-to-hidden weights
        taken[name] = [torch.zeros_like(p) if p.grad is None else p.grad for p in operands.hypernet.parameters()]
    assert sum(float(grad.norm()) for grad in taken["retain"]) > 0
    for one, other in zip(*taken.values(), strict=True):
        assert torch.allclose(one, other, rtol=1e-3, atol=1e-9)


def test_every_strategy_gets_the_same_number_of_rounds_and_the_warm_up_does_not_count() -> None:
    times = strategies_pass(report=lambda _: None, work=SMALL, names=("recompute", "tabulate"), rounds=3)
    assert {name: len(samples) for name, samples in times.items()} == {"recompute": 3, "tabulate": 3}


def test_free_memory_is_what_the_system_says() -> None:
    assert 0 < free_bytes(torch.device("cpu")) < 2**50
