"""Named combinations of quantizers, hypernetwork and strategy: one file a method, one table of all."""

from __future__ import annotations

from bench.config import CellConfig
from bench.errors import ConfigError
from bench.methods.afp import AFP
from bench.methods.base import Method, check_method, describe
from bench.methods.cpt import CPT
from bench.methods.daint8 import DAINT8
from bench.methods.dorefa import DOREFA
from bench.methods.fp4 import FP4
from bench.methods.metagrad import METAGRAD
from bench.methods.metaquant import METAQUANT
from bench.methods.reference import BF16, FP32
from bench.methods.sbm import SBM
from bench.methods.ste import STE
from bench.methods.uint8 import UINT8
from bench.methods.uniform import UNIFORM
from bench.methods.wageubn import WAGEUBN

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        FP32, BF16, STE, UNIFORM, DOREFA, UINT8, DAINT8, SBM, WAGEUBN, AFP, CPT, FP4, METAQUANT, METAGRAD,
    )
}  # fmt: skip


def build_method(cell: CellConfig) -> Method:
    """The cell's method, its settings checked.

    Raises:
        ConfigError: an unknown method, or settings that do not fit it.
    """
    if cell.method.name not in METHODS:
        raise ConfigError(f"There is no method {cell.method.name!r}: choose one of {', '.join(METHODS)}.")
    method = METHODS[cell.method.name]
    check_method(method, cell)
    return method


__all__ = ["METHODS", "Method", "build_method", "check_method", "describe"]
