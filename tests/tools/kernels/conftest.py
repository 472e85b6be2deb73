"""A user's network in a folder."""

from __future__ import annotations

from pathlib import Path

import pytest

OWN_NET = """
from torch import nn
def make(num_classes):
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
def too_wide():
    return nn.Sequential(nn.Flatten(), nn.Linear(7, 10))
def frozen(num_classes):
    return make(num_classes).requires_grad_(False)
"""


@pytest.fixture
def own_net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of a user's, with a tools/ of its own, as the working folder."""
    (tmp_path / "kernelnet.py").write_text(OWN_NET, encoding="utf-8")
    (tmp_path / "tools").mkdir()
    (tmp_path / "tools" / "__init__.py").write_text("raise RuntimeError('the wrong tools')", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    return tmp_path
