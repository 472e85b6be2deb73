"""Names, limits, sizes and fingerprints of build_data."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.data import DATASETS, build_data, check_data
from bench.data.base import content_fingerprint
from bench.errors import ConfigError


def test_an_unknown_name_lists_near_misses_and_the_known_ones() -> None:
    for function in (check_data, build_data):
        with pytest.raises(ConfigError, match="did you mean digits") as caught:
            function("digit")
        assert all(name in str(caught.value) for name in DATASETS)


@pytest.mark.parametrize("name", ["digits", "synthetic"])
def test_the_table_says_of_the_images_what_they_are(name: str) -> None:
    check_data(name, download=False)
    data, entry = build_data(name, download=False), DATASETS[name]
    assert (data.num_classes, data.in_channels, data.image_size) == (
        entry.num_classes, entry.in_channels, entry.image_size,
    )  # fmt: skip
    assert len(data.mean) == len(data.std) == data.in_channels
    assert data.synthetic == (name == "synthetic")


def test_every_entry_has_one_line_and_a_source() -> None:
    for entry in DATASETS.values():
        assert entry.summary
        assert entry.source
        assert "\n" not in entry.summary + entry.source


def test_a_data_set_is_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        build_data("digits").name = "other"  # type: ignore[misc]


@given(st.integers(1, 2000), st.integers(1, 500))
def test_limits_keep_the_first_images_and_change_the_fingerprint(train: int, test: int) -> None:
    whole, part = build_data("digits"), build_data("digits", train_limit=train, test_limit=test)
    assert len(part.train_labels) == min(train, 1437)
    assert len(part.test_labels) == min(test, 360)
    assert torch.equal(part.train_images, whole.train_images[:train])
    assert torch.equal(part.test_labels, whole.test_labels[:test])
    assert (part.fingerprint == whole.fingerprint) == (train >= 1437 and test >= 360)


@pytest.mark.parametrize("size", [4, 16, 28])
def test_another_image_size_interpolates_and_keeps_the_mean(size: int) -> None:
    native, other = build_data("digits"), build_data("digits", image_size=size)
    assert other.train_images.shape == (1437, 1, size, size)
    assert other.train_images.dtype == torch.float32
    assert other.full_scale == 1.0
    assert 0 <= float(other.train_images.min()) <= float(other.train_images.max()) <= 1
    expected = float(native.train_images.double().mean()) / native.full_scale
    assert float(other.train_images.double().mean()) == pytest.approx(expected, rel=0.05)
    assert other.fingerprint not in (native.fingerprint, build_data("digits", image_size=size + 1).fingerprint)
    assert native.train_images.dtype == torch.uint8


def test_the_own_size_is_no_resize() -> None:
    native, same = build_data("digits"), build_data("digits", image_size=8)
    assert same.fingerprint == native.fingerprint
    assert torch.equal(same.train_images, native.train_images)


def test_synthetic_images_are_drawn_at_the_size_asked_for_and_always_the_same() -> None:
    first, again = build_data("synthetic", image_size=12), build_data("synthetic", image_size=12)
    assert first.train_images.shape == (2048, 3, 12, 12)
    assert first.train_images.dtype == torch.uint8
    assert first.fingerprint == again.fingerprint
    pixels = first.train_images.double() / first.full_scale
    assert float(pixels.mean()) == pytest.approx(first.mean[0], abs=2e-3)
    assert float(pixels.std()) == pytest.approx(first.std[0], abs=2e-3)
    assert set(first.test_labels.tolist()) == set(range(10))


def test_the_fingerprint_sees_content_shape_and_type() -> None:
    zeros = torch.zeros(4, dtype=torch.uint8)
    prints = {
        content_fingerprint("a", zeros),
        content_fingerprint("b", zeros),
        content_fingerprint("a", zeros.reshape(2, 2)),
        content_fingerprint("a", torch.zeros(1, dtype=torch.float32)),
        content_fingerprint("a", torch.tensor([0, 0, 0, 1], dtype=torch.uint8)),
    }
    assert len(prints) == 5
