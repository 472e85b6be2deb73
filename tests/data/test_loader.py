from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.data import build_data
from bench.data.loader import EvalBatches, TrainBatches, normalise
from bench.errors import ConfigError

DIGITS = build_data("digits")
SMALL = build_data("digits", train_limit=100, test_limit=30)


def train(augment: bool = False, seed: int = 0, batch_size: int = 16) -> TrainBatches:
    return TrainBatches(SMALL, batch_size=batch_size, seed=seed, device="cpu", augment=augment)


def test_batches_are_float32_channels_last_with_int64_labels() -> None:
    data = build_data("synthetic", train_limit=64, image_size=10)
    for augment in (False, True):
        images, labels = TrainBatches(data, batch_size=16, seed=0, device="cpu", augment=augment).batch(0, 0)
        assert images.shape == (16, 3, 10, 10)
        assert images.dtype == torch.float32
        assert images.stride() == (300, 1, 30, 3)
        assert labels.dtype == torch.int64
    images, _ = next(iter(EvalBatches(data, batch_size=16, device="cpu")))
    assert images.stride() == (300, 1, 30, 3)


def test_normalised_training_images_have_mean_zero_and_deviation_one() -> None:
    pixels = normalise(DIGITS.train_images, DIGITS, "cpu")
    assert float(pixels.mean()) == pytest.approx(0, abs=1e-3)
    assert float(pixels.std()) == pytest.approx(1, abs=1e-3)
    assert float(pixels[0, 0, 2, 0]) == pytest.approx((int(DIGITS.train_images[0, 0, 0, 2]) / 16 - 0.3055) / 0.3761)
    assert DIGITS.train_images.dtype == torch.uint8


def test_normalising_leaves_float_images_as_they_were() -> None:
    data = build_data("digits", image_size=12, train_limit=4)
    before = data.train_images.clone()
    normalise(data.train_images, data, "cpu")
    assert torch.equal(data.train_images, before)


def test_an_epoch_shows_each_image_at_most_once_with_its_label_and_drops_the_rest() -> None:
    batches = list(train().epoch(0))
    assert len(batches) == train().steps_per_epoch == 6
    originals = {image.numpy().tobytes(): int(label) for image, label in zip(
        normalise(SMALL.train_images, SMALL, "cpu"), SMALL.train_labels, strict=True)}  # fmt: skip
    seen = [(image.permute(1, 2, 0).contiguous().numpy().tobytes(), int(label))
            for images, labels in batches for image, label in zip(images, labels, strict=True)]  # fmt: skip
    assert len({image for image, _ in seen}) == 96
    assert all(originals[image] == label for image, label in seen)


@given(st.integers(0, 2**32 - 1), st.integers(0, 1000), st.integers(0, 5), st.booleans())
def test_any_position_can_be_resumed_bitwise(seed: int, epoch: int, step: int, augment: bool) -> None:
    straight = list(train(augment, seed).epoch(epoch))
    resumed = train(augment, seed)
    resumed.batch(epoch + 1, 0)
    for (images, labels), (again, again_labels) in zip(straight[step:], resumed.epoch(epoch, step), strict=True):
        assert torch.equal(images, again)
        assert torch.equal(labels, again_labels)


def test_epochs_and_seeds_order_differently() -> None:
    def labels(seed: int, epoch: int) -> list[int]:
        return torch.cat([labels for _, labels in train(seed=seed).epoch(epoch)]).tolist()

    assert labels(0, 0) == labels(0, 0)
    assert labels(0, 0) != labels(0, 1)
    assert labels(0, 0) != labels(1, 0)


def test_augmentation_changes_images_and_neither_order_nor_labels() -> None:
    (plain, labels), (varied, varied_labels) = train().batch(3, 1), train(augment=True).batch(3, 1)
    assert torch.equal(labels, varied_labels)
    assert not torch.equal(plain, varied)
    black = (0 - SMALL.mean[0]) / SMALL.std[0]
    assert float(varied.min()) == pytest.approx(black)


def test_evaluation_goes_once_through_all_test_images_in_order() -> None:
    batches = EvalBatches(SMALL, batch_size=16, device="cpu")
    parts = list(batches)
    assert [len(labels) for _, labels in parts] == [16, 14]
    assert len(batches) == 2
    assert torch.equal(torch.cat([labels for _, labels in parts]), SMALL.test_labels)
    expected = normalise(SMALL.test_images, SMALL, "cpu").permute(0, 3, 1, 2)
    assert torch.equal(torch.cat([images for images, _ in parts]), expected)


def test_a_batch_larger_than_the_data_is_refused_with_the_most_that_is_possible() -> None:
    with pytest.raises(ConfigError, match=r"protocol\.batch_size=101 is more than the 100 training images"):
        train(batch_size=101)
    assert train(batch_size=100).steps_per_epoch == 1
