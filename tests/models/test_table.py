"""Names, options and refusals of build_model, without building anything large."""

from __future__ import annotations

import subprocess
import sys

import pytest

from bench.errors import ConfigError
from bench.models import MODELS, build_model, check_model


def refusal(name: str, **options: object) -> str:
    arguments: dict = {"num_classes": 10, "in_channels": 3, "image_size": 32, **options}
    with pytest.raises(ConfigError) as caught:
        build_model(name, **arguments)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_an_unknown_name_lists_near_misses_and_the_known_ones() -> None:
    message = refusal("resnet21")
    assert "did you mean resnet" in message
    assert "resnet20" in message.partition("?")[0]
    assert all(name in message for name in [*MODELS, "custom"])


def test_a_name_like_nothing_known_gets_no_guess() -> None:
    assert "did you mean" not in refusal("zzz")


def test_shortcut_b_is_refused_where_it_would_do_nothing() -> None:
    assert "model.shortcut=B" in refusal("vgg16", shortcut="B")
    assert "resnet20" in refusal("mobilenet_v2", shortcut="B")
    assert "A or B" in refusal("resnet20", shortcut="C")


def test_a_factory_beside_a_known_model_is_refused() -> None:
    assert "model=custom only" in refusal("resnet20", factory="a:b")


def test_images_that_are_too_small_are_refused_with_the_least_size() -> None:
    assert "data.image_size=32" in refusal("resnet18", image_size=28)
    assert "8x8" in refusal("resnet20", image_size=7)


def test_check_model_accepts_what_can_be_built() -> None:
    for name in MODELS:
        check_model(name)
    check_model("resnet20", image_size=8, shortcut="B")


def test_every_entry_has_one_line_and_a_source() -> None:
    for entry in MODELS.values():
        assert entry.summary
        assert "arXiv" in entry.source
        assert "\n" not in entry.summary + entry.source


def test_reading_the_table_does_not_import_torch() -> None:
    code = "import sys, bench.models, bench.data; assert bench.models.MODELS and 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
