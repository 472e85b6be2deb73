"""What a training step computes and moves, by phase and layer: operators that torch sees, and the compiled pieces.

Floating-point operations come from torch's formulas (``work``), integer ones from the log of integer products, so that
padding earns nothing. A compiled piece moves at least each tensor that it is handed, once a layer and direction.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from bench import native
from bench.kernels.int_mm import GemmCall, record_gemms
from bench.layers.base import IntegerLayer
from bench.layers.dispatch import ran_as_integer
from bench.profilers.base import NO_PHASES, UNATTRIBUTED
from bench.profilers.layer_scopes import LayerScopes
from bench.profilers.span_timer import Place, Places
from bench.profilers.work import WorkCounter
from bench.records.schema import Ceilings, PhaseWork, ProductWork
from bench.units import Absent

KIND_CEILINGS = {"int8": "int8_gops", "fp32": "fp32_gflops", "bf16": "bf16_gflops"}
_SIZES = {"int8": (1, 4), "fp32": (4, 4), "bf16": (2, 2)}  # bytes of an operand's and of the result's value
NO_SPAN = Absent("no span was recorded")


@dataclass(slots=True)
class LayerSizes:
    """Values that one step moves through a layer, over all its calls, and the multiply-adds of one of its products."""

    inputs: int = 0
    outputs: int = 0
    weights: int = 0
    macs: int = 0
    needs_dgrad: bool = False


@dataclass(slots=True)
class StepWork:
    """What one step computed and moved."""

    operations: dict[tuple[str, str], Counter[str]] = field(default_factory=lambda: defaultdict(Counter))
    num_bytes: Counter[tuple[str, str]] = field(default_factory=Counter)  # both by phase and layer
    calls: list[GemmCall] = field(default_factory=list)
    layers: dict[str, LayerSizes] = field(default_factory=dict)  # in the order of execution
    autocast_bf16: bool = False


class _PlacedWork(WorkCounter):
    """Enters each operator where it ran; the observer of ``Places``."""

    def __init__(self, found: StepWork) -> None:
        super().__init__()
        self._found = found
        self._open: list[Place] = []
        self._seen: set[tuple[int, int]] = set()

    step = NO_PHASES.step

    def enter(self, place: Place) -> None:
        self._open.append(place)
        self._seen.clear()

    def leave(self) -> None:
        self._open.pop()
        self._seen.clear()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = super().__torch_dispatch__(func, types, args, kwargs)
        where = self._where()
        for operator in self.operators:
            if operator.kind not in ("int8", "none"):  # integer products are logged with the sizes that were asked for
                self._found.operations[where][operator.kind] += operator.operations
            self._found.num_bytes[where] += operator.num_bytes
        self.clear()
        return result

    def handed(self, tensor: Tensor) -> None:
        """A compiled piece takes a tensor."""
        size = tensor.numel() * tensor.element_size()
        if (tensor.data_ptr(), size) not in self._seen:
            self._seen.add((tensor.data_ptr(), size))
            self._found.num_bytes[self._where()] += size

    def _where(self) -> tuple[str, str]:
        place = self._open[-1] if self._open else Place(UNATTRIBUTED, "", "", "")
        return place.phase, place.layer


@contextmanager
def count_work(model: nn.Module, *, autocast_bf16: bool = False) -> Iterator[tuple[StepWork, Places]]:
    """Count what the step in the block computes and moves; the places are its ``phases``.

    Args:
        model: the network that trains.
        autocast_bf16: whether its floating-point layers run in bfloat16.
    """
    found = StepWork(autocast_bf16=autocast_bf16)
    counter = _PlacedWork(found)
    places = Places(counter)
    handles = [
        layer.register_forward_hook(_sizes_hook(found.layers, name))
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Conv2d | nn.Linear | IntegerLayer)
    ]
    try:
        with LayerScopes(model, places), record_gemms() as calls, native.watch_operands(counter.handed), counter:
            yield found, places
    finally:
        for handle in handles:
            handle.remove()
    found.calls = calls
    for call in calls:
        if ran_as_integer(call.path):
            found.operations["forward" if call.gemm == "fprop" else "backward", call.layer]["int8"] += 2 * call.macs


def _sizes_hook(layers: dict[str, LayerSizes], name: str) -> Any:
    def see(layer: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        sizes = layers.setdefault(name, LayerSizes())
        sizes.inputs += inputs[0].numel()
        sizes.outputs += output.numel()
        sizes.weights += layer.weight.numel()
        sizes.macs += output.numel() * (layer.weight.numel() // layer.weight.shape[0])
        sizes.needs_dgrad |= inputs[0].requires_grad

    return see


def products_of(work: StepWork, times: Counter[Place], ceilings: Ceilings) -> tuple[ProductWork, ...]:
    """A row for each layer and product of a step.

    Args:
        work: what the step computed.
        times: milliseconds of each place, of a step with spans.
        ceilings: of the device.
    """
    product_ms: Counter[tuple[str, str]] = Counter()
    all_ms: Counter[tuple[str, str]] = Counter()
    for place, span_ms in times.items():
        if place.gemm:
            all_ms[place.layer, place.gemm] += span_ms
            if place.piece == "gemm":
                product_ms[place.layer, place.gemm] += span_ms
    rows = []
    for name, sizes in work.layers.items():
        for gemm in ("fprop", "dgrad", "wgrad"):
            if gemm == "dgrad" and not sizes.needs_dgrad:
                continue
            paths = [call.path for call in work.calls if (call.layer, call.gemm) == (name, gemm)]
            integer = bool(paths) and all(map(ran_as_integer, paths))
            kind = "int8" if integer else "bf16" if work.autocast_bf16 and not paths else "fp32"
            path = " and ".join(dict.fromkeys(paths)) or {"bf16": "bfloat16", "fp32": "float32"}[kind]
            key = (name, gemm)
            rows.append(
                _product(
                    name, gemm, kind, path, sizes, product_ms.get(key, NO_SPAN), all_ms.get(key, NO_SPAN), ceilings
                )
            )
    return tuple(rows)


def _product(
    name: str,
    gemm: str,
    kind: str,
    path: str,
    sizes: LayerSizes,
    product_ms: float | Absent,
    all_ms: float | Absent,
    ceilings: Ceilings,
) -> ProductWork:
    operand, result = _SIZES[kind]
    written = {"fprop": sizes.outputs, "dgrad": sizes.inputs, "wgrad": sizes.weights}[gemm]
    read = sizes.inputs + sizes.outputs + sizes.weights - written
    num_bytes = operand * read + result * written
    operations = 2 * sizes.macs
    gops = _per_ms(operations, product_ms)
    return ProductWork(
        layer=name,
        gemm=gemm,
        kind=kind,
        path=path,
        operations=operations,
        num_bytes=num_bytes,
        product_ms=product_ms,
        all_ms=all_ms,
        gops=gops,
        ceiling_share_pct=_share_pct(gops, getattr(ceilings, KIND_CEILINGS[kind])),
        copy_share_pct=_share_pct(_per_ms(num_bytes, product_ms), ceilings.copy_gb_s),
    )


def phase_work(
    work: StepWork, phases_ms: dict[str, float], times: Counter[Place], ceilings: Ceilings
) -> tuple[PhaseWork, ...]:
    """A row for each phase as a whole, then one for each layer in it.

    Args:
        work: what the step computed.
        phases_ms: of steps without spans.
        times: milliseconds of each place, of a step with spans.
        ceilings: of the device.
    """
    by_layer: Counter[tuple[str, str]] = Counter()
    for place, span_ms in times.items():
        by_layer[place.phase, place.layer] += span_ms
    keys = list(dict.fromkeys([*work.num_bytes, *work.operations]))
    rows = []
    for phase, time_ms in phases_ms.items():
        if phase == UNATTRIBUTED:
            continue
        inside = [key for key in keys if key[0] == phase]
        rows.append(_work_row(work, phase, "", inside, time_ms, ceilings))
        for name in work.layers | dict.fromkeys(layer for _, layer in inside):
            key = (phase, name)
            if name and key in keys:
                rows.append(_work_row(work, phase, name, [key], by_layer.get(key, NO_SPAN), ceilings))
    return tuple(rows)


def _work_row(
    work: StepWork,
    phase: str,
    layer: str,
    keys: Sequence[tuple[str, str]],
    time_ms: float | Absent,
    ceilings: Ceilings,
) -> PhaseWork:
    operations = sum((work.operations[key] for key in keys), Counter()) if keys else Counter()
    num_bytes = sum(work.num_bytes[key] for key in keys)
    least_ms: float | Absent = 0.0
    for kind, count in operations.items():
        ceiling = getattr(ceilings, KIND_CEILINGS[kind])
        if isinstance(ceiling, Absent) or isinstance(least_ms, Absent):
            least_ms = ceiling if isinstance(ceiling, Absent) else least_ms
        else:
            least_ms += count / ceiling / 1e6
    return PhaseWork(
        phase=phase,
        layer=layer,
        operations={kind: operations[kind] for kind in KIND_CEILINGS if operations[kind]},
        num_bytes=num_bytes,
        time_ms=time_ms,
        gops=_per_ms(operations.total(), time_ms),
        ceiling_share_pct=_share_pct(least_ms, time_ms),
        copy_share_pct=_share_pct(_per_ms(num_bytes, time_ms), ceilings.copy_gb_s),
    )


def _per_ms(amount: int, time_ms: float | Absent) -> float | Absent:
    """10**9 a second."""
    if isinstance(time_ms, Absent):
        return time_ms
    return amount / time_ms / 1e6 if time_ms > 0 else Absent("it took no time that the clock can tell")


def _share_pct(part: float | Absent, whole: float | Absent) -> float | Absent:
    if isinstance(part, Absent):
        return part
    if isinstance(whole, Absent):
        return whole
    return 100 * part / whole if whole > 0 else Absent("it took no time that the clock can tell")
