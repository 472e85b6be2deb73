from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from bench.kernels.int_mm import int_mm
from bench.profilers.work import WorkCounter


def test_an_integer_product_counts_two_operations_a_multiply_add() -> None:
    a = torch.ones(32, 16, dtype=torch.int8)
    b = torch.ones(24, 16, dtype=torch.int8)
    with WorkCounter() as work:
        int_mm(a, b.t())
    (product,) = [operator for operator in work.operators if operator.kind == "int8"]
    assert product.operations == 2 * 32 * 16 * 24
    assert product.num_bytes == 32 * 16 + 24 * 16 + 4 * 32 * 24


def test_a_convolution_counts_forward_and_both_gradients() -> None:
    conv = nn.Conv2d(3, 8, 3, padding=1, bias=False)
    images = torch.randn(2, 3, 10, 10, requires_grad=True)
    with WorkCounter() as work:
        conv(images).sum().backward()
    products = [operator.operations for operator in work.operators if operator.kind == "fp32"]
    forward = 2 * 2 * 8 * 10 * 10 * 3 * 9
    assert products == [forward, 2 * forward]


def test_element_wise_operators_count_their_bytes_and_views_nothing() -> None:
    x = torch.ones(1000)
    with WorkCounter() as work:
        y = x.view(10, 100).t()
        y.add(1.0)
    (added,) = work.operators
    assert (added.kind, added.operations, added.num_bytes) == ("none", 0, 8000)
    work.clear()
    assert not work.operators


def test_bf16_products_are_told_apart() -> None:
    with WorkCounter() as work:
        torch.ones(4, 4, dtype=torch.bfloat16) @ torch.ones(4, 4, dtype=torch.bfloat16)
    assert [operator.kind for operator in work.operators if operator.operations] == ["bf16"]


@pytest.mark.parametrize(
    ("run", "moved"),
    [
        (lambda a, b, c: torch.mm(a, b, out=c), 3),
        (lambda a, b, c: torch.addmm(c, a, b, out=c), 4),
        (lambda a, b, c: torch.add(a, b, out=c), 3),
        (lambda a, b, c: a.copy_(b), 2),
        (lambda a, b, c: a.zero_(), 1),
        (lambda a, b, c: a.add_(b), 3),
        (lambda a, b, c: a * a, 2),
        (lambda a, b, c: torch._foreach_add_([a, b], 1.0), 4),
    ],
    ids=["mm out", "addmm into its summand", "add out", "copy", "zero", "add in place", "square", "foreach"],
)
def test_a_tensor_that_is_filled_counts_once_and_one_that_is_updated_twice(
    run: Callable[..., object], moved: int
) -> None:
    tensors = [torch.ones(16, 16) for _ in range(3)]
    with WorkCounter() as work:
        run(*tensors)
    assert sum(operator.num_bytes for operator in work.operators) == moved * 16 * 16 * 4
