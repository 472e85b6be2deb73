from __future__ import annotations

import re
from collections.abc import Callable

import pytest

from bench.app import parse_arguments, plan_cells
from bench.config import CellConfig
from bench.data import build_data
from bench.data.base import DataSet


@pytest.fixture(scope="session")
def digits() -> DataSet:
    return build_data("digits", train_limit=192, test_limit=64)


@pytest.fixture(scope="session")
def make_cell() -> Callable[..., CellConfig]:
    """A cell from a command line, small enough for a test."""

    def make(*argv: str) -> CellConfig:
        small = ["hypernet.hidden=3", "protocol.batch_size=64", "protocol.epochs=1"]
        given = {argument.split("=")[0] for argument in argv}
        if any(re.fullmatch(r"variant=\w+_h\d+(_\w+)?", argument) for argument in argv):  # which fix their hidden size
            given.add("hypernet.hidden")
        (cell,) = plan_cells(parse_arguments([*argv, *(s for s in small if s.split("=")[0] not in given)])).cells
        return cell

    return make
