from __future__ import annotations

import resource
import sys
from pathlib import Path

import pytest

from bench.app import parse_arguments, plan_cells
from bench.config import CellConfig
from bench.errors import ConfigError
from bench.precheck import check_cells


def test_a_run_takes_more_open_files_where_it_may_and_says_where_there_are_too_few(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = plan_cells(parse_arguments(["variant=fp32", "data=synthetic", "device=cpu"])).cells
    raised: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda kind, limits: raised.append(limits))
    for soft, hard, limits in ((16, 4096, [(256, 4096)]), (16, 40, [(40, 40)]), (1024, 4096, []), (-1, -1, [])):
        monkeypatch.setattr(resource, "getrlimit", lambda kind, now=(soft, hard): now)
        check_cells(cells)
        assert raised == limits
        raised.clear()
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (8, 16))
    with pytest.raises(ConfigError, match="may open 16 files here, and a run needs 32: `ulimit -n 256`"):
        check_cells(cells)


def test_a_network_of_ones_own_is_tried_on_the_datas_shape_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    (tmp_path / "users_colours.py").write_text(
        "from torch import nn\n"
        "def guess(): return nn.Sequential(nn.Conv2d(3, 4, 8), nn.Flatten(), nn.Linear(4, 10))\n"
        "def few(in_channels): return nn.Sequential(nn.Conv2d(in_channels, 4, 8), nn.Flatten())\n"
        "def fits(in_channels): return nn.Sequential(nn.Conv2d(in_channels, 10, 8), nn.Flatten())\n"
    )

    def cell(name: str) -> CellConfig:
        factory = f"model.factory=users_colours:{name}"
        argv = ["model=custom", factory, "variant=fp32", "data=digits", "device=cpu", "protocol=demo"]
        return plan_cells(parse_arguments(argv)).cells[0]

    for name, words in (
        ("guess", r"does not take digits's images, float32 of shape \(2, 1, 8, 8\): RuntimeError: "),
        ("few", r"of shape \(2, 4\); it must return"),
    ):
        with pytest.raises(ConfigError, match=words) as caught:
            check_cells([cell(name)])
        assert "\n" not in str(caught.value)
    check_cells([cell("fits")])
    check_cells([cell("guess")], here=False)  # another machine may have what it needs
