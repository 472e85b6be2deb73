"""A method: which parts it joins and which settings make sense for it; no arithmetic here.

The two choices of docs/method.md section 5 stay apart: what quantizes the error signals, and what quantizes ∇W.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.config import FLOAT_BITS, CellConfig
from bench.errors import ConfigError
from bench.hypernets import FULLY_CONNECTED, HYPERNETS
from bench.optim.fixed_point import check_momentum
from bench.quantizers import ONE_STATE, WEIGHT_QUANTIZERS, check_weight_bits
from bench.quantizers.daint8 import check_granularity
from bench.records.schema import MethodFacts
from bench.units import Absent
from bench.update import STRATEGIES


@dataclass(frozen=True, slots=True, kw_only=True)
class Method:
    """A named combination of parts."""

    name: str
    summary: str  # one line, for `metagrad-bench list methods`
    source: str
    low_bit: bool  # weights and activations are quantized
    error_quantizers: tuple[str, ...]  # that may run on the error signals
    grad_quantizers: tuple[str, ...]  # that may run on the weight gradient
    quantizer: str = ""  # the gradient quantizer that gives the method its name, and must run somewhere
    hypernets: tuple[str, ...] = tuple(HYPERNETS)  # that may run where grad_quantizers has "hypernet"
    replaces_ste: bool = False  # the hypernetwork reads ∇Ŵ and its output stays FP32 (MetaQuant)
    autocast_bf16: bool = False
    forward_quantizers: tuple[str, ...] = WEIGHT_QUANTIZERS
    error_bits: tuple[int, ...] = tuple(range(2, 9))  # where the error signals are quantized
    error_roundings: tuple[str, ...] = ("nearest", "stochastic")
    norm: str = "batch"  # what batch-norm becomes: batch, range, fixed_point
    cyclic: bool = False  # the bits of weights and activations rise in cycles
    fixed_point_update: bool = False  # the optimizer's quantities are fixed-point (WAGEUBN)


def check_method(method: Method, cell: CellConfig) -> None:
    """Refuse combinations that cannot run or whose label would lie.

    Raises:
        ConfigError: one sentence that names the valid choices.
    """
    if method.low_bit:
        _check_forward(method, cell)
    else:
        for key in ("weight_bits", "activation_bits"):
            _require(getattr(cell, key) == FLOAT_BITS, cell, f"runs in floating point: leave {key} at 32")
    _member(cell, "method.error_quantizer", cell.method.error_quantizer, method.error_quantizers)
    _member(cell, "method.grad_quantizer", cell.method.grad_quantizer, method.grad_quantizers)
    _bits_match(cell, "error_bits", cell.error_bits, cell.method.error_quantizer)
    if cell.method.error_quantizer != "none":
        _require(
            cell.error_bits in method.error_bits,
            cell,
            f"takes error_bits of {', '.join(map(str, method.error_bits))}, not {cell.error_bits}",
        )
        _member(cell, "method.error_rounding", cell.method.error_rounding, method.error_roundings)
    if method.replaces_ste:
        _require(
            cell.grad_bits == FLOAT_BITS, cell, "does not quantize the hypernetwork's output: leave grad_bits at 32"
        )
    else:
        _bits_match(cell, "grad_bits", cell.grad_bits, cell.method.grad_quantizer)
    if cell.method.error_quantizer == "daint8":
        check_granularity(cell.method.error_granularity)
    _require(
        cell.grad_bits != FLOAT_BITS or cell.method.grad_rounding == "nearest",
        cell,
        "rounds no weight gradient: leave method.grad_rounding=nearest, or set grad_bits to 2 to 8",
    )
    _check_granularity(cell)
    _check_training_parts(method, cell)
    gradients = (cell.method.error_quantizer, cell.method.grad_quantizer)
    _require(
        not method.quantizer or method.quantizer in gradients,
        cell,
        f"quantizes nothing with {method.quantizer}: set method.error_quantizer or method.grad_quantizer to it, "
        "or take method=ste",
    )
    if cell.method.grad_quantizer == "hypernet":
        _member(cell, "hypernet", cell.hypernet.name, method.hypernets)
        _require(
            cell.hypernet.name in FULLY_CONNECTED or (cell.hypernet.depth, cell.hypernet.activation) == (2, "none"),
            cell,
            f"sets hypernet.depth or hypernet.activation, which hypernet={cell.hypernet.name} does not have: choose "
            f"one of {', '.join(FULLY_CONNECTED)}, or leave them out",
        )
        _member(cell, "strategy", cell.strategy.name, tuple(STRATEGIES))
        _check_state(cell)
    else:
        _require(cell.hypernet.name == "none", cell, "has no hypernetwork: leave hypernet=none")
        _require(cell.strategy.name == "none", cell, "has no hypernetwork, hence no strategy: leave strategy=none")
    _require(
        cell.optimizer.pi_prime == "analytic" or cell.optimizer.name == "adam",
        cell,
        f"takes optimizer.pi_prime=one with optimizer=adam only: the derivative of {cell.optimizer.name} is a number",
    )


def describe(cell: CellConfig) -> MethodFacts:
    """The facts of a cell's method for its record."""
    meta = cell.method.grad_quantizer == "hypernet"
    low_bit = cell.weight_bits != FLOAT_BITS
    return MethodFacts(
        name=cell.method.name,
        forward_quantizer=cell.quantizer.name if low_bit else "none",
        weight_bits=cell.weight_bits,
        activation_bits=cell.activation_bits,
        error_quantizer=cell.method.error_quantizer,
        error_bits=cell.error_bits,
        error_rounding=cell.method.error_rounding if cell.method.error_quantizer != "none" else "none",
        grad_quantizer=cell.method.grad_quantizer,
        grad_bits=cell.grad_bits,
        grad_rounding=cell.method.grad_rounding if cell.grad_bits != FLOAT_BITS else "none",
        error_granularity=cell.method.error_granularity,
        hypernet=cell.hypernet.name,
        hypernet_form=cell.hypernet.form if meta else "none",
        hidden=cell.hypernet.hidden if meta else Absent(reason="no hypernetwork"),
        hypernet_depth=cell.hypernet.depth
        if cell.hypernet.name in FULLY_CONNECTED
        else Absent(reason="no fully connected hypernetwork"),
        hypernet_activation=cell.hypernet.activation,
        hypernet_state=cell.hypernet.state if meta and cell.hypernet.name not in FULLY_CONNECTED else "none",
        pi_prime=cell.optimizer.pi_prime if meta else "none",
        strategy=cell.strategy.name,
        optimizer=_optimizer_name(cell),
        edge_layers=cell.edge_layers if low_bit else "full",
        dispatch=cell.dispatch if low_bit else "none",
        compact=cell.compact and low_bit,
        norm=cell.method.norm,
        cycle_min_bits=_or_absent(cell.method.cycle_min_bits),
        cycles=_or_absent(cell.method.cycles),
    )


def _or_absent(value: int | None) -> int | Absent:
    return Absent(reason="its precision is constant") if value is None else value


def _optimizer_name(cell: CellConfig) -> str:
    if cell.optimizer.name == "sgd" and cell.optimizer.momentum:
        return "momentum"
    return cell.optimizer.name


def _check_training_parts(method: Method, cell: CellConfig) -> None:
    """Batch-norm, cyclic precision and the update are the method's."""
    _member(cell, "method.norm", cell.method.norm, (method.norm,))
    low = cell.method.cycle_min_bits
    if not method.cyclic:
        _require(
            low is None and cell.method.cycles is None,
            cell,
            "has one precision throughout: leave method.cycle_min_bits and method.cycles out, or take method=cpt",
        )
    else:
        _require(
            low is not None and cell.method.cycles is not None,
            cell,
            "needs method.cycle_min_bits (2 to 8) and method.cycles",
        )
        upper = min(cell.weight_bits, cell.activation_bits)
        _require(
            low is not None and low < upper <= 8,
            cell,
            f"cycles from method.cycle_min_bits={low} up to weight_bits and activation_bits, which must be more and at "
            "most 8",
        )
    if method.fixed_point_update:
        _require(cell.optimizer.name == "sgd", cell, "has a fixed-point SGD: take optimizer=sgd or optimizer=momentum")
        check_momentum(cell.optimizer.momentum)


def _check_forward(method: Method, cell: CellConfig) -> None:
    """Weights and activations are low-bit; activations may stay FP32 where the products are floating-point ones."""
    weights, activations = cell.weight_bits, cell.activation_bits
    _member(cell, "quantizer.name", cell.quantizer.name, method.forward_quantizers)
    _require(weights != FLOAT_BITS, cell, "needs weight_bits of 1 to 8")
    if weights != FLOAT_BITS:
        check_weight_bits(cell.quantizer.name, weights)
    _require(
        2 <= activations <= 8 or (activations == FLOAT_BITS and cell.dispatch == "simulate"),
        cell,
        f"needs activation_bits of 2 to 8, or 32 with dispatch=simulate, not {activations}",
    )
    _require(
        cell.quantizer.name != "bwn_f" or cell.method.error_quantizer not in ONE_STATE,
        cell,
        "cannot fold BWN-F's scales into an error signal with one clip per layer: take quantizer=bwn, or "
        "method.error_quantizer=uniform, dorefa or daint8",
    )


def _check_state(cell: CellConfig) -> None:
    """A state per weight needs an LSTM, and a strategy that evaluates each weight by itself."""
    if cell.hypernet.state == "zero":
        return
    _require(
        cell.hypernet.name not in FULLY_CONNECTED,
        cell,
        f"has no state in hypernet={cell.hypernet.name}: leave hypernet.state=zero, or take lstm_fc or dual_lstm_fc",
    )
    _require(
        cell.strategy.name != "tabulate",
        cell,
        "cannot tabulate a function that depends on a state per weight: leave hypernet.state=zero, or take "
        "strategy=retain, slim or recompute",
    )


def _check_granularity(cell: CellConfig) -> None:
    """One error scale per tensor, or what the quantizer knows where floating-point products allow it."""
    scales = {"uniform": ("tensor", "sample", "channel"), "dorefa": ("tensor", "sample")}
    valid = scales.get(cell.method.error_quantizer, ("tensor",))
    _member(cell, "method.error_granularity", cell.method.error_granularity, valid)
    _require(
        cell.method.error_granularity == "tensor" or cell.dispatch == "simulate",
        cell,
        "takes one error scale per tensor, since no integer product sums over others: leave "
        "method.error_granularity=tensor, or set dispatch=simulate",
    )


def _bits_match(cell: CellConfig, key: str, bits: int, quantizer: str) -> None:
    if quantizer == "none":
        _require(bits == FLOAT_BITS, cell, f"does not quantize there: leave {key} at 32")
    else:
        where = "error signals" if key == "error_bits" else "the weight gradient"
        other = "method.error_quantizer" if key == "error_bits" else "method.grad_quantizer"
        _require(2 <= bits <= 8, cell, f"quantizes {where} with {quantizer}: set {key} to 2 to 8, or {other}=none")


def _member(cell: CellConfig, key: str, value: str, valid: tuple[str, ...]) -> None:
    _require(value in valid, cell, f"takes {key} of {', '.join(valid)}, not {value}")


def _require(condition: bool, cell: CellConfig, rule: str) -> None:
    if not condition:
        raise ConfigError(f"method={cell.method.name} {rule} (variant {cell.variant_name}).")
