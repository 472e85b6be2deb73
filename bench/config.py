"""What a user may choose: one typed dataclass per config group, ranges checked on construction.

Hydra composes these from ``suites/``; ``CellConfig`` is the root. A value out of range raises ``ConfigError`` with one
sentence. Whether names and combinations exist is checked where the parts are known (``methods/``, ``models/``).
"""

from __future__ import annotations

import copy
import dataclasses
import math
from dataclasses import dataclass, field
from typing import Any

from bench.errors import ConfigError

FLOAT_BITS = 32
MOST, MOST_THREADS, MOST_PROCESSES = 2**20, 4096, 1000  # beyond them are slips of the finger that no machine gets done
PASSES = ("timing", "memory", "profile", "accuracy")
# What says where files lie or how a run is shown, not what is measured: left out of keys and of records.
PLACE_KEYS = (
    ("output_dir",), ("data", "root"), ("data", "download"), ("fresh",), ("progress",), ("protocol", "checkpoint_s"),
    ("protocol", "cell_limit_s"), ("protocol", "silence_limit_s"),
)  # fmt: skip


def require(condition: bool, key: str, value: object, rule: str) -> None:
    """Refuse a value: raises ConfigError ``key=value: rule``."""
    if not condition:
        raise ConfigError(f"{key}={value} is not possible: it must be {rule}.")


def check_bits(key: str, bits: int) -> None:
    """Bits are 1 to 8, or 32 for floating point."""
    require(bits == FLOAT_BITS or 1 <= bits <= 8, key, bits, "1 to 8, or 32 for floating point")


def check_positive(prefix: str, config: object, *names: str) -> None:
    """Each named field is above zero."""
    for name in names:
        value = getattr(config, name)
        require(0 < value < math.inf, f"{prefix}.{name}", value, "above 0 and finite")


@dataclass(kw_only=True)
class ModelConfig:
    """Group ``model``: the network, in floating point before the method converts it."""

    name: str = "resnet20"  # see `metagrad-bench list models`
    shortcut: str = "A"  # CIFAR ResNets only: A (identity, padded channels) or B (1x1 convolution)
    factory: str | None = None  # model=custom only: package.module:function that returns an nn.Module

    def __post_init__(self) -> None:
        """Check ranges."""
        require(self.shortcut in ("A", "B"), "model.shortcut", self.shortcut, "A or B")


@dataclass(kw_only=True)
class DataConfig:
    """Group ``data``: the data set and where it lies."""

    name: str = "digits"  # see `metagrad-bench list datasets`
    root: str | None = None  # folder of the data; none: the usual places, then the user's cache
    download: bool = True  # fetch what is missing
    image_size: int | None = None  # pixels; none: the data set's own size
    train_limit: int | None = None  # use only the first so many training images
    test_limit: int | None = None  # and so many test images
    workers: int | None = None  # imagenet: threads that decode; none: one per core

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("image_size", "train_limit", "test_limit", "workers"):
            value = getattr(self, name)
            most = {"workers": MOST_THREADS, "image_size": MOST}.get(name, 10**9)
            require(value is None or 0 < value <= most, f"data.{name}", value, f"1 to {most:,}")


@dataclass(kw_only=True)
class MethodConfig:
    """Group ``method``: which gradients are low-bit and by what (docs/method.md section 5)."""

    name: str = "fp32"  # see `metagrad-bench list methods`
    error_quantizer: str = "none"  # of the error signals: none, uniform, dorefa, uint8, daint8, sbm, wageubn, afp, fp4
    error_rounding: str = "nearest"  # nearest or stochastic
    error_granularity: str = "tensor"  # one scale per tensor; sample or channel only with dispatch=simulate
    grad_quantizer: str = "none"  # of the weight gradient: none, uniform, dorefa, uint8, daint8, wageubn, hypernet
    grad_rounding: str = "nearest"  # nearest or stochastic
    norm: str = "batch"  # batch, range (SBM), fixed_point (WAGEUBN)
    cycle_min_bits: int | None = (
        None  # cpt: lower bound of weights' and activations' bits; their own bits are the upper
    )
    cycles: int | None = None  # cpt: how often the bits rise in a training

    def __post_init__(self) -> None:
        """Check ranges."""
        low, cycles = self.cycle_min_bits, self.cycles
        require(low is None or 2 <= low <= 8, "method.cycle_min_bits", low, "2 to 8")
        require(cycles is None or cycles > 0, "method.cycles", cycles, "above 0")
        rounding = ("nearest", "stochastic")
        require(self.error_rounding in rounding, "method.error_rounding", self.error_rounding, "nearest or stochastic")
        require(self.grad_rounding in rounding, "method.grad_rounding", self.grad_rounding, "nearest or stochastic")
        scales = ("tensor", "sample", "channel")
        granularity = self.error_granularity
        require(granularity in scales, "method.error_granularity", granularity, "tensor, sample or channel")


@dataclass(kw_only=True)
class QuantizerConfig:
    """Group ``quantizer``: the forward quantizer of weights and activations."""

    name: str = "dorefa"  # dorefa, bwn, bwn_f (one bit; one scale per output filter), minmax, fixed_point, wageubn


@dataclass(kw_only=True)
class HypernetConfig:
    """Group ``hypernet``: f_psi, shared by all quantized layers (docs/method.md section 3)."""

    name: str = "none"  # none, fc_grad, multi_fc, lstm_fc, dual_lstm_fc
    form: str = "residual"  # residual (starts at the plain quantizer) or literal (the papers' formula)
    hidden: int = 100  # H, the hidden size
    depth: int = 2  # linear layers of fc_grad and multi_fc; MetaQuant's paper has 2, its code 3
    activation: str = "none"  # between them: none, relu, tanh
    state: str = "zero"  # lstm_fc and dual_lstm_fc: (h, c) zero at each iteration, or carry: kept for every weight
    meta_lr: float = 1e-3  # Adam's learning rate for psi
    observe_every: int | None = None  # steps between two rows of hypernet.csv; none: only the last step of each epoch

    def __post_init__(self) -> None:
        """Check ranges."""
        every = self.observe_every
        require(every is None or every > 0, "hypernet.observe_every", every, "above 0")
        check_positive("hypernet", self, "meta_lr")
        # Beyond these a network takes minutes to build, or its sizes leave int64; what fits below is the memory's say.
        require(0 < self.hidden <= 10**6, "hypernet.hidden", self.hidden, "1 to 1,000,000")
        require(2 <= self.depth <= 100, "hypernet.depth", self.depth, "2 to 100")
        activations = ("none", "relu", "tanh")
        require(self.activation in activations, "hypernet.activation", self.activation, "none, relu or tanh")
        require(self.state in ("zero", "carry"), "hypernet.state", self.state, "zero or carry")
        require(self.form in ("residual", "literal"), "hypernet.form", self.form, "residual or literal")


@dataclass(kw_only=True)
class StrategyConfig:
    """Group ``strategy``: how the meta-gradient is taken (docs/method.md section 4)."""

    name: str = "none"  # none, retain, slim, recompute, tabulate
    chunk: int | None = None  # recompute: weights evaluated at a time; none: chosen by the hidden size
    bound: float = 1e-6  # tabulate: largest interpolation error, as a share of the layer's largest gradient
    # tabulate: steps between two comparisons with the exact strategy in the accuracy pass, beside the last step of each
    # epoch; none: only there
    sample_every: int | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        require(self.chunk is None or self.chunk > 0, "strategy.chunk", self.chunk, "above 0")
        check_positive("strategy", self, "bound")
        every = self.sample_every
        require(every is None or every > 0, "strategy.sample_every", every, "above 0")


@dataclass(kw_only=True)
class OptimizerConfig:
    """Group ``optimizer``: of the fine-tuning."""

    name: str = "sgd"  # sgd (with momentum 0 or more), adam
    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 1e-4
    pi_prime: str = "analytic"  # adam's derivative in the meta-gradient: analytic, or one as MetaQuant's code takes it
    schedule: str = "constant"  # constant, step (divided by 10 at the milestones), cosine
    milestones: list[float] = field(default_factory=lambda: [0.5, 0.75])  # shares of the training

    def __post_init__(self) -> None:
        """Check ranges."""
        check_positive("optimizer", self, "lr")
        require(0 <= self.momentum < 1, "optimizer.momentum", self.momentum, "0 or more and below 1")
        require(0 <= self.weight_decay < math.inf, "optimizer.weight_decay", self.weight_decay, "0 or more, and finite")
        require(self.pi_prime in ("analytic", "one"), "optimizer.pi_prime", self.pi_prime, "analytic or one")
        schedules = ("constant", "step", "cosine")
        require(self.schedule in schedules, "optimizer.schedule", self.schedule, "constant, step or cosine")
        rising = list(self.milestones) == sorted(self.milestones) and all(0 < m < 1 for m in self.milestones)
        require(rising, "optimizer.milestones", self.milestones, "rising shares between 0 and 1")


@dataclass(kw_only=True)
class ProtocolConfig:
    """Group ``protocol``: how long to train and how much to measure."""

    batch_size: int = 128
    augment: bool = False  # crop and flip as the data set's policy says
    pretrain_epochs: int = 30  # FP32, cached and shared by the cells; 0: start from random weights
    pretrain_lr: float = 0.1
    pretrain_weight_decay: float = 1e-4
    pretrain_schedule: str = "cosine"  # constant, step or cosine
    epochs: int = 10  # fine-tuning
    passes: list[str] = field(default_factory=lambda: list(PASSES))
    warmup_steps: int = 3  # not counted, in each process
    timing_processes: int = 3  # fresh processes, each with its own blocks
    timing_blocks: int = 6  # at least so many blocks of the cell's steps, alternating with as many of FP32 steps
    steps_per_block: int = 4
    timing_interval_pct: float = 1.0  # more blocks until both medians' 95 % intervals reach no further to either side
    timing_budget_s: float = 60.0  # or until a process has sampled for so long
    energy_window_s: float = 2.0  # of each window for the energy of a phase, where the device counts energy; 0: none
    memory_steps: int = 3
    profile_steps: int = 6  # with spans, and as many without in turn, of the cell and of FP32
    threads: int | None = None  # of torch's CPU operators; none: torch's default
    checkpoint_s: float = 60.0  # between two checkpoints of a training, at epoch ends sooner; 0: after each step
    cell_limit_s: float | None = None  # all passes of a cell together; what is left then is not measured: timed_out
    silence_limit_s: float = 3600.0  # a pass that shows no progress for so long is ended: timed_out
    pass_limit_s: float = 86400.0  # a pass that takes longer is ended and the cell recorded as timed_out

    def __post_init__(self) -> None:
        """Check ranges."""
        counts = (
            "batch_size",
            "timing_processes",
            "timing_blocks",
            "steps_per_block",
            "memory_steps",
            "epochs",
            "profile_steps",
        )
        above_zero = ("profile_steps", "pretrain_lr", "pass_limit_s", "silence_limit_s", "timing_interval_pct")
        check_positive("protocol", self, *counts, *above_zero)
        rates = ("pretrain_weight_decay", "timing_budget_s", "energy_window_s", "checkpoint_s")
        for name in ("warmup_steps", "pretrain_epochs", *rates):
            require(
                0 <= getattr(self, name) < math.inf, f"protocol.{name}", getattr(self, name), "0 or more, and finite"
            )
        cell_s = self.cell_limit_s
        require(cell_s is None or 0 < cell_s < math.inf, "protocol.cell_limit_s", cell_s, "above 0 and finite")
        schedules = ("constant", "step", "cosine")
        require(self.pretrain_schedule in schedules, "protocol.pretrain_schedule", self.pretrain_schedule, "constant, step or cosine")  # fmt: skip  # noqa: E501
        for name in (*counts, "warmup_steps", "pretrain_epochs"):
            most = MOST_PROCESSES if name == "timing_processes" else MOST
            require(getattr(self, name) <= most, f"protocol.{name}", getattr(self, name), f"at most {most:,}")
        known = bool(self.passes) and set(self.passes) <= set(PASSES) and len(set(self.passes)) == len(self.passes)
        require(known, "protocol.passes", list(self.passes), f"some of {', '.join(PASSES)}, each once")
        threads = self.threads
        require(threads is None or 0 < threads <= MOST_THREADS, "protocol.threads", threads, "1 to 4096")
        require(self.pass_limit_s <= 10**7, "protocol.pass_limit_s", self.pass_limit_s, "at most 10,000,000")
        energy = self.energy_window_s
        require(energy == 0 or energy >= 0.1, "protocol.energy_window_s", energy, "0, or 0.1 and more")
        # The hypernetwork first acts in the second step, so a peak of one step would not hold it.
        require(self.memory_steps >= 3, "protocol.memory_steps", self.memory_steps, "3 or more")


@dataclass(kw_only=True)
class CellConfig:
    """One cell: everything that a run of one row needs."""

    suite_name: str = "single"  # names the output folder
    variant_name: str = "custom"  # the row's label
    preset_name: str = "none"  # where the model and its numbers come from
    device: str = "auto"  # auto, cpu, cuda, cuda:1; on the command line also all: one of each kind in turn
    seed: int = 0
    weight_bits: int = FLOAT_BITS
    activation_bits: int = FLOAT_BITS
    error_bits: int = FLOAT_BITS  # of the error signals
    grad_bits: int = FLOAT_BITS  # of the weight gradient
    edge_layers: str = "same"  # first convolution and last linear layer: full, int8, same
    dispatch: str = "integer"  # integer, auto (the fastest exact path of each product), or simulate (floating point)
    compact: bool = False  # keep less for backward: batch-norm's input in bfloat16, codes up to 4 bits two to a byte
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    method: MethodConfig = field(default_factory=MethodConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    hypernet: HypernetConfig = field(default_factory=HypernetConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    protocol: ProtocolConfig = field(default_factory=ProtocolConfig)
    output_dir: str = "out"
    fresh: bool = False  # measure again even what is already there
    progress: bool = True  # show a progress bar where the terminal allows

    def __post_init__(self) -> None:
        """Check ranges."""
        for name in ("weight_bits", "activation_bits", "error_bits", "grad_bits"):
            check_bits(name, getattr(self, name))
        require(0 <= self.seed < 2**32, "seed", self.seed, "from 0 to 2^32 - 1")
        require(self.edge_layers in ("full", "int8", "same"), "edge_layers", self.edge_layers, "full, int8 or same")
        dispatches = ("integer", "auto", "simulate")
        require(self.dispatch in dispatches, "dispatch", self.dispatch, "integer, auto or simulate")
        for name in ("suite_name", "variant_name"):
            value = getattr(self, name)
            plain = bool(value) and all(c.isalnum() or c in "_-." for c in value) and not value.startswith(".")
            require(plain, name, value, "letters, digits, dots, dashes and underscores")


def as_plain(cell: CellConfig) -> dict[str, Any]:
    """The cell as nested plain values, without what only says where files lie."""
    plain = copy.deepcopy(dataclasses.asdict(cell))
    for *parents, last in PLACE_KEYS:
        node = plain
        for parent in parents:
            node = node[parent]
        node.pop(last)
    return plain
