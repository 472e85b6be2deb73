from __future__ import annotations

import io
import os
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from bench.data import build_data, check_data, eval_batches, train_batches
from bench.data.imagenet import ImageFolder, decode_square, load_imagenet
from bench.data.stream import FolderTrainBatches
from bench.errors import ConfigError, DataError

SIZE = 28  # of the window: the square is 32
CLASSES = {"n01440764": (200, 40, 40), "n01443537": (40, 200, 40), "n01484850": (40, 40, 200)}
Write = Callable[..., Path]


def jpeg(colour: tuple[int, int, int], width: int, height: int, mode: str = "RGB") -> bytes:
    """A photograph of one colour, darker towards its left edge."""
    shade = np.linspace(0.5, 1.0, width)[None, :, None]
    pixels = (np.array(colour) * np.broadcast_to(shade, (height, width, 1))).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).convert(mode).save(stream, "JPEG", quality=95)
    return stream.getvalue()


@pytest.fixture
def write_folder(tmp_path: Path) -> Write:
    """Write a folder in ImageNet's layout: six training and two test images of each class, of varying shapes."""

    def write(train: int = 6, val: int = 2) -> Path:
        root = tmp_path / "imagenet"
        for part, count in (("train", train), ("val", val)):
            for name, colour in CLASSES.items():
                folder = root / part / name
                folder.mkdir(parents=True)
                for index in range(count):
                    path = folder / f"{name}_{index}.JPEG"
                    path.write_bytes(jpeg(colour, 40 + 7 * index, 60 - 4 * index))
        return root

    return write


def refusal(root: Path) -> str:
    with pytest.raises(DataError) as caught:
        build_data("imagenet", root=str(root), image_size=SIZE)
    message = str(caught.value)
    assert "\n" not in message
    return message


def streams(data: ImageFolder, **options: object) -> FolderTrainBatches:
    arguments = {"batch_size": 4, "seed": 3, "device": "cpu", "augment": True, "workers": 2} | options
    return train_batches(data, **arguments)  # type: ignore[arg-type,return-value]


def test_a_folder_is_listed_and_nothing_is_decoded_until_it_is_wanted(write_folder: Write) -> None:
    root = write_folder()
    (root / "train" / "n01440764" / "n01440764_0.JPEG").write_bytes(b"no image at all")
    (root / "train" / "readme.txt").write_text("beside the classes")
    check_data("imagenet", root=str(root), download=False)
    data = build_data("imagenet", root=str(root), image_size=SIZE)
    assert isinstance(data, ImageFolder)
    assert (data.num_train, data.num_test, data.num_classes) == (18, 6, 3)
    assert data.image_shape == (3, SIZE, SIZE)
    assert data.test.labels.tolist() == [0, 1, 2, 0, 1, 2], "the classes in turn"
    assert not data.synthetic
    assert "3 classes" in data.source


def test_the_folder_is_found_below_the_root_and_in_its_default_size(write_folder: Write) -> None:
    root = write_folder()
    data = load_imagenet(root.parent, None)
    assert (data.image_size, data.square) == (224, 256)
    assert data.fingerprint == load_imagenet(root, None).fingerprint
    assert data.fingerprint != load_imagenet(root, SIZE).fingerprint


def test_the_fingerprint_sees_names_and_sizes(write_folder: Write) -> None:
    root = write_folder()
    before = load_imagenet(root, SIZE).fingerprint
    path = root / "val" / "n01440764" / "n01440764_1.JPEG"
    path.write_bytes(path.read_bytes() + b"x")
    changed = load_imagenet(root, SIZE).fingerprint
    path.rename(path.with_name("other.JPEG"))
    assert len({before, changed, load_imagenet(root, SIZE).fingerprint}) == 3


def test_a_name_that_is_no_utf_8_is_a_file_like_others(write_folder: Write) -> None:
    root = write_folder()
    path = root / "val" / "n01440764" / "n01440764_1.JPEG"
    renamed = path.with_name(os.fsdecode(b"caf\xe9.JPEG"))
    try:
        path.rename(renamed)
    except OSError:
        pytest.skip("this file system takes no such names")
    data = load_imagenet(root, SIZE)
    assert renamed in data.test.paths
    assert decode_square(renamed, data.square).shape == (32, 32, 3)


def test_an_image_is_resized_by_its_shorter_side_and_cut_in_the_middle(tmp_path: Path) -> None:
    wide = tmp_path / "wide.JPEG"
    wide.write_bytes(jpeg((200, 100, 50), 120, 40))
    square = decode_square(wide, 32)
    assert square.shape == (32, 32, 3)
    assert square.dtype == torch.uint8
    # shades run from 0.5 to 1 over 120 pixels; the central 40 hold two thirds to five sixths
    reds = square[16, :, 0].double() / 200
    assert float(reds[0]) == pytest.approx(0.5 + 0.5 / 3, abs=0.03)
    assert float(reds[-1]) == pytest.approx(0.5 + 1.0 / 3, abs=0.03)
    grey = tmp_path / "grey.JPEG"
    grey.write_bytes(jpeg((120, 120, 120), 50, 50, mode="L"))
    assert decode_square(grey, 8).shape == (8, 8, 3)
    cmyk = tmp_path / "cmyk.JPEG"
    cmyk.write_bytes(jpeg((120, 120, 120), 50, 50, mode="CMYK"))
    assert decode_square(cmyk, 8).shape == (8, 8, 3)


def test_evaluation_sees_the_central_window_normalised_in_order(write_folder: Write) -> None:
    data = build_data("imagenet", root=str(write_folder()), image_size=SIZE)
    assert isinstance(data, ImageFolder)
    batches = list(eval_batches(data, batch_size=4, device="cpu", workers=2))
    assert [tuple(images.shape) for images, _ in batches] == [(4, 3, SIZE, SIZE), (2, 3, SIZE, SIZE)]
    assert torch.cat([labels for _, labels in batches]).tolist() == data.test.labels.tolist()
    images = torch.cat([images for images, _ in batches])
    assert images.is_contiguous(memory_format=torch.channels_last)
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    for image, path in zip(images, data.test.paths, strict=True):
        window = decode_square(path, 32)[2:30, 2:30].double() / 255
        torch.testing.assert_close(image.permute(1, 2, 0).double(), (window - mean) / std, rtol=1e-4, atol=1e-5)


def test_an_epoch_holds_every_image_at_most_once_and_another_order_than_the_next(write_folder: Write) -> None:
    data = build_data("imagenet", root=str(write_folder()), image_size=SIZE)
    assert isinstance(data, ImageFolder)
    stream = streams(data, augment=False)
    assert stream.steps_per_epoch == 4
    for images, labels in stream.epoch(0):
        brightest = images.mean(dim=(2, 3)) * torch.tensor(data.std) + torch.tensor(data.mean)
        assert brightest.argmax(dim=1).tolist() == labels.tolist(), "labels belong to their images"
    first = torch.cat([labels for _, labels in stream.epoch(0)])
    assert first.tolist() == torch.cat([labels for _, labels in stream.epoch(0)]).tolist()
    assert first.tolist() != torch.cat([labels for _, labels in stream.epoch(1)]).tolist()


@pytest.mark.parametrize("augment", [False, True])
def test_a_stream_goes_on_where_it_stopped_whatever_the_number_of_threads(write_folder: Write, augment: bool) -> None:
    data = build_data("imagenet", root=str(write_folder()), image_size=SIZE)
    assert isinstance(data, ImageFolder)
    whole = list(streams(data, augment=augment).epoch(1))
    rest = list(streams(data, augment=augment, workers=1).epoch(1, first_step=2))
    assert len(rest) == len(whole) - 2
    for (images, labels), (other_images, other_labels) in zip(whole[2:], rest, strict=True):
        assert torch.equal(images, other_images)
        assert torch.equal(labels, other_labels)
    images, labels = streams(data, augment=augment).batch(1, 3)
    assert torch.equal(images, whole[3][0])
    assert torch.equal(labels, whole[3][1])


def test_augmentation_takes_windows_of_the_square_and_their_mirror_images(write_folder: Write) -> None:
    data = build_data("imagenet", root=str(write_folder()), image_size=SIZE)
    assert isinstance(data, ImageFolder)
    mean, std = torch.tensor(data.mean), torch.tensor(data.std)
    stream = streams(data)
    squares = {path: (decode_square(path, 32).float() / 255 - mean) / std for path in data.train.paths}
    found = set()
    for image, _ in ((image, label) for images, labels in stream.epoch(0) for image, label in zip(images, labels, strict=True)):  # fmt: skip  # noqa: E501
        pixels = image.permute(1, 2, 0)
        match = next(
            (flip, row, column)
            for square in squares.values()
            for flip in (False, True)
            for row in range(5)
            for column in range(5)
            if torch.allclose(
                pixels.flip(1) if flip else pixels, square[row : row + SIZE, column : column + SIZE], atol=1e-5
            )
        )
        found.add(match)
    assert len(found) > 8, "corners and mirror images vary"
    assert {flip for flip, _, _ in found} == {False, True}


def test_threads_end_with_the_stream(write_folder: Write) -> None:
    data = build_data("imagenet", root=str(write_folder()), image_size=SIZE)
    assert isinstance(data, ImageFolder)
    stream = streams(data).epoch(0)
    next(stream)
    assert any(thread.name.startswith("decode") for thread in threading.enumerate())
    stream.close()  # type: ignore[attr-defined]
    assert not any(thread.name.startswith("decode") for thread in threading.enumerate())


def test_a_damaged_image_is_named(write_folder: Write) -> None:
    root = write_folder()
    good = root / "train" / "n01440764" / "n01440764_0.JPEG"
    whole = good.read_bytes()
    data = build_data("imagenet", root=str(root), image_size=SIZE)
    assert isinstance(data, ImageFolder)
    for content, said in ((whole[: len(whole) // 2], "(?i)truncated"), (b"no image at all", "no image that can be read"), (b"", "no image")):  # fmt: skip  # noqa: E501
        good.write_bytes(content)
        with pytest.raises(DataError, match=said) as caught:
            list(streams(data, batch_size=18).epoch(0))
        assert str(good) in str(caught.value)
        assert "replace it, or remove it" in str(caught.value)
        assert "\n" not in str(caught.value)
    good.unlink()
    with pytest.raises(DataError, match="no such file"):
        list(streams(data, batch_size=18).epoch(0))


def test_what_is_missing_is_one_sentence(tmp_path: Path, write_folder: Write) -> None:
    assert "ImageNet is not there" in refusal(tmp_path / "nowhere")
    root = write_folder()
    (root / "val" / "n01484850").rename(root / "val" / "n09999999")
    assert "val has no class n01484850, which" in refusal(root)
    (root / "val" / "n09999999").rename(root / "val" / "n01484850")
    (root / "val" / "n02000000").mkdir()
    assert "train has no class n02000000" in refusal(root)
    (root / "val" / "n02000000").rmdir()
    for path in (root / "val" / "n01440764").iterdir():
        path.unlink()
    assert "n01440764 holds no image" in refusal(root)
    with pytest.raises(DataError, match="n01440764 holds no image"):
        check_data("imagenet", root=str(root))
    (root / "val").rename(root / "test")
    assert "has no folder val" in refusal(root)
    with pytest.raises(DataError, match="has no folder val"):
        check_data("imagenet", root=str(root))


def test_limits_keep_a_bit_of_every_class(write_folder: Write) -> None:
    root = str(write_folder())
    part = build_data("imagenet", root=root, image_size=SIZE, train_limit=6, test_limit=3)
    assert isinstance(part, ImageFolder)
    assert part.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert part.num_test == 3
    assert part.fingerprint != build_data("imagenet", root=root, image_size=SIZE).fingerprint
    with pytest.raises(ConfigError, match=r"protocol.batch_size=7 is more than the 6 training images of imagenet"):
        streams(part, batch_size=7)
