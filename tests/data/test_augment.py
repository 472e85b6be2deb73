from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from bench.data.augment import Crops, crop_and_flip, draw_crops
from bench.data.base import AugmentPolicy


def crop_plainly(
    image: torch.Tensor, row: int, column: int, flip: bool, padding: int, fill: torch.Tensor
) -> torch.Tensor:
    """One (H, W, C) image: pad, crop, then mirror the crop."""
    height, width, channels = image.shape
    padded = fill.expand(height + 2 * padding, width + 2 * padding, channels).clone()
    padded[padding : padding + height, padding : padding + width] = image
    crop = padded[row : row + height, column : column + width]
    return crop.flip(1) if flip else crop


@given(st.integers(0, 3), st.booleans(), st.integers(1, 3), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
def test_a_batch_is_cropped_as_each_image_alone(
    padding: int, flip: bool, channels: int, height: int, width: int, seed: int
) -> None:
    images = torch.randn(5, height, width, channels, generator=torch.Generator().manual_seed(seed))
    fill = torch.arange(channels, dtype=torch.float32) - 7
    crops = draw_crops(AugmentPolicy(padding, flip), 5, seed=seed, epoch=0, device="cpu")
    out = crop_and_flip(images, crops, padding=padding, fill=fill)
    assert out.is_contiguous()
    for index in range(5):
        draw = (int(crops.rows[index]), int(crops.columns[index]), bool(crops.flips[index]))
        assert torch.equal(out[index], crop_plainly(images[index], *draw, padding, fill))


def test_the_centre_crop_changes_nothing() -> None:
    images = torch.randn(4, 8, 8, 3)
    centre = Crops(torch.full((4,), 2), torch.full((4,), 2), torch.zeros(4, dtype=torch.bool))
    assert torch.equal(crop_and_flip(images, centre, padding=2, fill=torch.zeros(3)), images)


def test_draws_follow_from_seed_and_epoch_and_cover_every_corner() -> None:
    def draw(seed: int, epoch: int) -> Crops:
        return draw_crops(AugmentPolicy(2, True), 1000, seed=seed, epoch=epoch, device="cpu")

    first, again = draw(1, 2), draw(1, 2)
    assert torch.equal(first.rows, again.rows)
    assert torch.equal(first.flips, again.flips)
    assert not torch.equal(first.rows, draw(1, 3).rows)
    assert not torch.equal(first.rows, draw(2, 2).rows)
    assert set(first.rows.tolist()) == set(first.columns.tolist()) == set(range(5))
    assert not torch.equal(first.rows, first.columns)
    assert 400 < int(first.flips.sum()) < 600


def test_a_policy_without_mirrors_draws_the_same_corners_and_no_mirror() -> None:
    plain = draw_crops(AugmentPolicy(2, False), 100, seed=0, epoch=0, device="cpu")
    mirrored = draw_crops(AugmentPolicy(2, True), 100, seed=0, epoch=0, device="cpu")
    assert torch.equal(plain.rows, mirrored.rows)
    assert not plain.flips.any()
