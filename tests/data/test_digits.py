from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from bench.data import build_data, check_data, digits
from bench.errors import DataError

GOLDEN = "8fe72471413a16a1763336e5206a2bdd434b5d31cb58ce153efe12f1a72c7d0b"


def test_the_split_keeps_its_golden_content() -> None:
    assert build_data("digits").fingerprint == GOLDEN


def test_the_split_has_1437_and_360_images_with_36_of_each_digit_to_test() -> None:
    data = build_data("digits")
    assert data.train_images.shape == (1437, 1, 8, 8)
    assert data.test_images.shape == (360, 1, 8, 8)
    assert data.train_images.dtype == torch.uint8
    assert data.train_labels.dtype == torch.int64
    assert data.test_labels.bincount().tolist() == [36] * 10
    assert not data.synthetic


def test_both_parts_together_are_scikit_learns_digits_in_order() -> None:
    from sklearn.datasets import load_digits

    bunch = load_digits()
    data = build_data("digits")
    mask = digits.choose_test_images(bunch.target)
    for images, labels, chosen in (
        (data.train_images, data.train_labels, ~mask),
        (data.test_images, data.test_labels, mask),
    ):
        np.testing.assert_array_equal(images[:, 0].numpy(), bunch.images[chosen])
        np.testing.assert_array_equal(labels.numpy(), bunch.target[chosen])


def test_mean_and_std_are_those_of_the_training_part() -> None:
    data = build_data("digits")
    pixels = data.train_images.double() / data.full_scale
    assert float(pixels.mean()) == pytest.approx(data.mean[0], abs=5e-5)
    assert float(pixels.std()) == pytest.approx(data.std[0], abs=1e-4)
    assert float(pixels.max()) == 1.0


def test_loading_does_not_import_scikit_learn() -> None:
    code = "import sys; from bench.data import build_data; build_data('digits'); assert 'sklearn' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("content", "said"), [(b"\x1f\x8b\x08\x00", "reinstall"), (b"1,2\n", "reinstall"), (None, "is missing")]
)
def test_a_damaged_installation_is_one_sentence(
    content: bytes | None, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "sklearn" / "datasets" / "data"
    folder.mkdir(parents=True)
    (tmp_path / "sklearn" / "__init__.py").write_text("")
    if content is not None:
        (folder / "digits.csv.gz").write_bytes(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "sklearn", raising=False)
    with pytest.raises(DataError, match=said) as caught:
        check_data("digits")
    assert "\n" not in str(caught.value)
