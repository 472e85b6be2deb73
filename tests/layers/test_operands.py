"""Operands on their way to backward: codes of at most four bits go two to a byte where `compact` asks for it."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from bench.layers import QuantSpec, quantize_model
from bench.layers.base import IntegerLayer
from bench.layers.operands import Packed, keep_operand, restore_operand
from bench.quantizers.base import QTensor


def operand(bits: int, *shape: int) -> QTensor:
    largest = 2 ** (bits - 1)
    codes = torch.randint(-largest, largest, shape, dtype=torch.int8)
    return QTensor(
        codes=codes, scale=torch.tensor(0.5), mult=1, offset=largest, bits=bits, code_max=largest, value_max=2 * largest
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 8])
@pytest.mark.parametrize("compact", [False, True])
def test_an_operand_comes_back_as_it_was(bits, compact):
    before = operand(bits, 3, 5, 7, 1)
    kept = keep_operand(before, compact=compact)
    assert kept.tensors[0].nbytes == (53 if compact and bits <= 4 else 105)
    saved = [*kept.tensors, torch.zeros(1)]
    after = restore_operand(kept.grid, saved)
    assert isinstance(after, QTensor)
    assert torch.equal(after.codes, before.codes)
    assert (after.mult, after.offset, after.bits, after.code_max, after.value_max) == (
        before.mult, before.offset, before.bits, before.code_max, before.value_max,
    )  # fmt: skip
    assert len(saved) == 1, "what comes after it stays"


def test_floats_are_kept_as_they_are():
    values = torch.rand(3)
    kept = keep_operand(values, compact=True)
    assert restore_operand(kept.grid, list(kept.tensors)) is values


def test_all_readers_of_an_activation_keep_the_same_packed_codes():
    shared, activation = Packed(), operand(4, 6)
    first, second = (keep_operand(activation, compact=True, readers=shared) for _ in range(2))
    assert first.tensors[0] is second.tensors[0]


class Fork(nn.Module):
    """An activation that two convolutions read."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm, self.relu = nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()
        self.left, self.right = nn.Conv2d(16, 16, 3, padding=1), nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.stem(x)))
        return self.head((self.left(x) + self.right(x)).mean((2, 3)))


def step(model: nn.Module, x: Tensor) -> int:
    """Take gradients; answers the bytes kept for them, each memory once."""
    saved: dict[int, Tensor] = {}
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.setdefault(t.data_ptr(), t), lambda t: t):
        loss = model(x).square().sum()
    loss.backward()
    return sum(tensor.nbytes for tensor in saved.values())


@pytest.mark.parametrize("dispatch", ["integer", "simulate"])
def test_a_step_with_packed_codes_has_the_same_bits_and_keeps_the_fork_once(dispatch):
    model = Fork()
    spec = QuantSpec(weight_bits=4, activation_bits=4, error="uniform", error_bits=4, dispatch=dispatch)
    x = torch.rand(4, 3, 12, 12).contiguous(memory_format=torch.channels_last)
    quantize_model(model, spec, sample_input=x)
    twin = copy.deepcopy(model)
    for module in twin.modules():
        if isinstance(module, IntegerLayer):
            module.compact = True
    kept = [step(each, x) for each in (model, twin)]
    for ours, theirs in zip(model.parameters(), twin.parameters(), strict=True):
        assert ours.grad is not None
        assert torch.equal(ours.grad, theirs.grad)
    activations = (3 + 16) * 4 * 12 * 12 + 4 * 16
    weights = sum(p.numel() for p in model.parameters() if p.dim() > 1)
    assert kept[0] - kept[1] == (activations + weights) // 2
