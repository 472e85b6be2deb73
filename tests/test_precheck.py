from __future__ import annotations

import resource

import pytest

from bench.app import parse_arguments, plan_cells
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
