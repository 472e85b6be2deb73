from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.seeding import (
    CUBLAS_VARIABLE,
    STREAMS,
    deterministic,
    global_stream,
    numpy_generator,
    seed_globals,
    sub_seed,
    torch_generator,
)

SEEDS = st.integers(0, 2**32 - 1)
INDICES = st.lists(st.integers(0, 2**32 - 1), max_size=3)


def test_sub_seeds_keep_their_golden_values() -> None:
    assert sub_seed(0, "loader_order", 0) == 2004138204843363183
    assert sub_seed(0, "model_init") == 1977080671136935416
    assert sub_seed(7, "augmentation", 3, 5) == 8490181514605935731


@given(SEEDS, st.sampled_from(sorted(STREAMS)), INDICES)
def test_a_sub_seed_is_a_function_of_its_arguments_that_torch_takes(seed: int, stream: str, indices: list[int]) -> None:
    value = sub_seed(seed, stream, *indices)
    assert value == sub_seed(seed, stream, *indices)
    assert 0 <= value < 2**63
    assert torch.Generator().manual_seed(value).initial_seed() == value


def test_streams_seeds_and_positions_all_differ() -> None:
    values = [sub_seed(seed, stream) for seed in range(20) for stream in STREAMS]
    values += [sub_seed(0, "loader_order", epoch) for epoch in range(100)]
    values += [sub_seed(0, "augmentation", epoch, step) for epoch in range(10) for step in range(10)]
    assert len({value % 2**32 for value in values}) == len(values)


def test_an_unknown_stream_is_a_programming_error_that_names_the_known_ones() -> None:
    with pytest.raises(AssertionError, match="loader_order"):
        sub_seed(0, "lodaer_order")


def test_generators_of_one_stream_repeat_and_of_two_differ() -> None:
    def draw(stream: str) -> torch.Tensor:
        return torch.rand(64, generator=torch_generator(3, stream))

    assert torch.equal(draw("stochastic_rounding"), draw("stochastic_rounding"))
    assert not torch.equal(draw("stochastic_rounding"), draw("slim_layer"))
    first, again = (numpy_generator(3, "synthetic_data").random(64) for _ in range(2))
    np.testing.assert_array_equal(first, again)


def test_drawing_from_one_stream_leaves_the_global_generator_alone() -> None:
    torch.manual_seed(1)
    expected = torch.rand(4)
    torch.manual_seed(1)
    torch.rand(1000, generator=torch_generator(0, "slim_layer"))
    with global_stream(0, "model_init"):
        torch.nn.Linear(8, 8)
    assert torch.equal(torch.rand(4), expected)


def test_weights_built_in_a_global_stream_do_not_depend_on_what_was_drawn_before() -> None:
    def build() -> torch.Tensor:
        with global_stream(5, "model_init"):
            return torch.nn.Linear(8, 8).weight.detach()

    first = build()
    torch.rand(17)
    assert torch.equal(build(), first)


def test_seed_globals_seeds_torch_numpy_and_python_apart() -> None:
    def draw() -> tuple[float, float, float]:
        return float(torch.rand(1)), float(np.random.random()), random.random()

    seed_globals(11)
    first = draw()
    seed_globals(11)
    assert draw() == first
    seed_globals(12)
    assert all(a != b for a, b in zip(draw(), first, strict=True))


def test_deterministic_mode_sets_and_restores_every_switch() -> None:
    cudnn = torch.backends.cudnn

    def state() -> tuple[object, ...]:
        return (
            torch.are_deterministic_algorithms_enabled(),
            cudnn.deterministic,
            cudnn.benchmark,
            torch.utils.deterministic.fill_uninitialized_memory,
            os.environ.get(CUBLAS_VARIABLE),
        )

    before = state()
    with deterministic():
        assert state() == (True, True, False, False, ":4096:8")
    assert state() == before
    with pytest.raises(KeyError), deterministic():
        raise KeyError
    assert state() == before


def test_deterministic_mode_refuses_an_operator_that_cannot_repeat_itself() -> None:
    values = torch.zeros(4)
    with deterministic(), pytest.raises(RuntimeError, match="put_"):
        values.put_(torch.tensor([0, 0]), torch.tensor([1.0, 2.0]), accumulate=False)
