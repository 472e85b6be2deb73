"""How real processes vary, measured on the proof's equal runs, and processes drawn like them, and worse.

In logarithms a process is: the machine's speed (the same for cell and FP32 steps), what shifts each phase against FP32
in this run and in this process, and within the process noise that is autocorrelated and heavy-tailed. Drift and a
second clock mode come on top, and hit whichever steps run at that time. Processes that something else disturbed are
drawn beside the usual ones (``tools.gate_proof.disturbed``).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import msgspec
import numpy as np

from bench.timing import SWITCH_STEPS
from tools.gate_proof.disturbed import Disturbance, Process, calm, draw_disturbed, tell_apart
from tools.gate_proof.runs import Recorded, Run, Values

FP32 = "fp32_step_ms"
STEP = "step_ms"
_CLOCK_SHARE = 0.2  # of processes in which the clock falls for a while
_CLOCK_FACTOR = 1.10
_CALIBRATION_PROCESSES = 4000
SHIFT_DF = 5.0  # of Student's t that shifts of runs and processes are drawn from: assumed
TAILS_DF = (4.2, 30.0)  # of Student's t that steps are drawn from, at least and at most


class Noise(msgspec.Struct, frozen=True, kw_only=True):
    """What was measured; logarithms throughout, one entry of a list per phase."""

    phases: list[str]  # phases_ms names
    level_ms: list[float]  # of each phase
    fp32_ms: float
    rounds: int  # blocks of each side in a process
    steps_per_block: int
    machine_sd: float  # of a process's FP32 step
    run_cov: list[list[float]]  # of the phases against FP32, between runs
    process_cov: list[list[float]]  # between processes of a run
    step_cov: list[list[float]]  # between the steps of a process
    fp32_sd: float
    autocorrelation: float  # of neighbouring steps
    tail_df: float  # of steps; fitted on all processes, within TAILS_DF
    drift_sd: float  # between the start and the end of a process
    memory_bytes: dict[str, float]
    memory_sd: dict[str, float]  # share of it, between runs
    disturbed_share: float = 0.0  # of processes; all above is of the others
    disturbed: list[Disturbance] = []


def measure_noise(recorded: Recorded) -> Noise:
    """Estimate the noise from the equal runs.

    Args:
        recorded: at least two equal runs of at least two processes.
    """
    runs = recorded.of("plain")
    names = [name for name in runs[0].metrics if name.endswith("_ms") and name not in (STEP, FP32)]
    processes = _processes(runs, names)
    usual, disturbed = tell_apart(processes)
    groups: dict[int, list[Process]] = {}
    for process in usual:
        groups.setdefault(process.run, []).append(process)
    ratios = [np.array([process.ratios for process in group]) for group in groups.values() if len(group) > 1]
    process_cov = np.mean([np.cov(rows.T, ddof=1) for rows in ratios], axis=0)
    means = np.array([rows.mean(axis=0) for rows in ratios])
    run_cov = np.cov(means.T, ddof=1) - process_cov / np.mean([len(rows) for rows in ratios])
    machine = [process.machine for process in usual]
    fp32 = [process.fp32 for process in usual]
    memory = {
        name: [run.metrics[name][0][0] for run in runs if name in run.metrics]
        for name in ("peak_allocated_bytes", "peak_process_bytes")
    }
    noise = Noise(
        phases=names,
        level_ms=[float(np.exp(np.median(machine)) * np.exp(value)) for value in np.median(means, axis=0)],
        fp32_ms=float(np.exp(np.median(machine))),
        rounds=_rounds(recorded),
        steps_per_block=int(recorded.template.config["protocol"]["steps_per_block"]),
        machine_sd=float(np.std(machine, ddof=1)),
        run_cov=_positive(run_cov).tolist(),
        process_cov=_positive(process_cov).tolist(),
        step_cov=_positive(np.cov(calm(np.concatenate([process.steps for process in usual])).T, ddof=1)).tolist(),
        fp32_sd=float(np.std(calm(np.concatenate(fp32)))),
        autocorrelation=float(np.clip(np.mean([_lag_one(calm(values)) for values in fp32]), 0.0, 0.9)),
        tail_df=_tail_df(excess_kurtosis(recorded)),
        drift_sd=float(np.std(calm(np.array([process.slope for process in usual])))),
        memory_bytes={name: float(np.median(values)) for name, values in memory.items()},
        memory_sd={name: float(np.std(values) / np.median(values)) for name, values in memory.items()},
        disturbed_share=len(disturbed) / len(processes),
        disturbed=disturbed,
    )
    # A process's medians vary because its steps do; only what is beyond that is a shift of the process.
    return msgspec.structs.replace(noise, process_cov=_positive(process_cov - _median_cov(noise)).tolist())


def _processes(runs: Sequence[Run], names: Sequence[str]) -> list[Process]:
    """All processes of these runs, taken apart."""
    processes = []
    for number, run in enumerate(runs):
        for place, samples in enumerate(run.metrics[FP32]):
            reference = np.log(samples)
            phases = np.log(np.maximum([run.metrics[name][place] for name in names], 1e-6))  # (K, n)
            middle, machine = np.median(phases, axis=1), float(np.median(reference))
            processes.append(
                Process(
                    run=number, machine=machine, ratios=middle - machine, steps=(phases - middle[:, None]).T,
                    fp32=reference - machine,
                    slope=_slope(np.log(run.metrics[STEP][place])) / 2 + _slope(reference) / 2,
                )
            )  # fmt: skip
    return processes


def _median_cov(noise: Noise) -> np.ndarray:
    """(K, K) covariance of a process's log medians against FP32 that its steps alone bring about."""
    nothing = np.zeros_like(noise.process_cov).tolist()
    still = msgspec.structs.replace(noise, run_cov=nothing, process_cov=nothing, disturbed=[])
    design = Design(interleaved=False, processes=_CALIBRATION_PROCESSES)
    (values,) = draw_side(still, design, 1, [{}], np.random.default_rng(0), clock_share=0.0)
    logs = np.log([np.median(values[name], axis=1) for name in noise.phases]) - np.log(np.median(values[FP32], axis=1))
    return np.cov(logs, ddof=1)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Design:
    """How the two sides of a simulated comparison were measured."""

    interleaved: bool  # every process a run of its own, in turn; else one run of several processes each
    processes: int


def draw_side(
    noise: Noise,
    design: Design,
    cells: int,
    slow: Sequence[dict[str, float]],
    rng: Any,
    *,
    clock_share: float = _CLOCK_SHARE,
) -> list[Values]:
    """Samples of one side of a suite.

    Args:
        noise: how processes vary.
        design: how they were measured.
        cells: of the suite.
        slow: for each cell, by what factor phases take longer.
        rng: numpy's generator.
        clock_share: of processes in which the clock falls for a while.

    Returns:
        For each cell the samples of its metrics.
    """
    count, kinds, processes = noise.rounds * noise.steps_per_block, len(noise.phases), design.processes
    runs = processes if design.interleaved else 1
    shift = _heavy(rng, noise.run_cov, (cells, runs))  # (C, R, K)
    shift = shift + _heavy(rng, noise.process_cov, (cells, processes))
    off, off_phases, unrest = draw_disturbed(noise.disturbed, noise.disturbed_share, kinds, (cells, processes), rng)
    shift = shift + off_phases
    machine = noise.machine_sd * rng.standard_normal((cells, processes, 1)) + off[..., None]
    times = _times(noise)  # (2, n): of cell and of FP32 steps, as shares of the process
    speed = machine[:, :, None] + _machine(noise, times, cells, processes, rng, clock_share)  # (C, P, 2, n)
    own = _autocorrelated(_heavy(rng, noise.step_cov, (cells, processes, count), noise.tail_df), noise, axis=2)
    reference = _autocorrelated(
        noise.fp32_sd * _student(rng, (cells, processes, count, 1), noise.tail_df), noise, axis=2
    )[..., 0]
    own, reference = own * unrest[..., None, None], reference * unrest[..., None]
    factors = np.log([[phases.get(name, 1.0) for name in noise.phases] for phases in slow])
    logs = np.log(noise.level_ms) + factors[:, None, None] + shift[:, :, None] + speed[:, :, 0, :, None] + own
    phases_ms = np.exp(logs)  # (C, P, n, K)
    fp32_ms = np.exp(np.log(noise.fp32_ms) + speed[:, :, 1] + reference)
    assert phases_ms.shape == (cells, processes, count, kinds), "one number per cell, process, step and phase"
    values = []
    for cell in range(cells):
        series: Values = {STEP: phases_ms[cell].sum(axis=-1).tolist(), FP32: fp32_ms[cell].tolist()}
        series |= {name: phases_ms[cell, :, :, place].tolist() for place, name in enumerate(noise.phases)}
        for name, size in noise.memory_bytes.items():
            repeats = size * (1 + noise.memory_sd[name] * rng.standard_normal(runs))
            series[name] = [[float(round(value))] for value in repeats]
        values.append(series)
    return values


def _machine(noise: Noise, times: np.ndarray, cells: int, processes: int, rng: Any, clock_share: float) -> np.ndarray:
    """(C, P, 2, n) what drift and a clock that falls for a while do to steps at these times."""
    slope = noise.drift_sd * rng.standard_normal((cells, processes, 1, 1))
    start, length = rng.random((2, cells, processes, 1, 1))
    is_slow = (rng.random((cells, processes, 1, 1)) < clock_share) & (times >= start) & (times < start + length / 2)
    return slope * (times - 0.5) + np.log(_CLOCK_FACTOR) * is_slow


def _times(noise: Noise) -> np.ndarray:
    """(2, n) when each counted step of cell and FP32 runs: blocks in turn, there and back, as in a timing pass."""
    times: tuple[list[float], list[float]] = ([], [])
    now = 0
    for turn in range(noise.rounds):
        for side in (0, 1) if turn % 2 == 0 else (1, 0):
            now += SWITCH_STEPS
            times[side].extend(range(now, now + noise.steps_per_block))
            now += noise.steps_per_block
    return np.array(times) / now


def _autocorrelated(values: np.ndarray, noise: Noise, axis: int) -> np.ndarray:
    """First-order autoregression along an axis, of the same spread."""
    rho, moved = noise.autocorrelation, np.moveaxis(values, axis, 0).copy()
    for place in range(1, len(moved)):
        moved[place] = rho * moved[place - 1] + np.sqrt(1 - rho**2) * moved[place]
    return np.moveaxis(moved, 0, axis)


def _heavy(rng: Any, cov: Sequence[Sequence[float]], shape: tuple[int, ...], df: float = SHIFT_DF) -> np.ndarray:
    """(*shape, K) Student's t in all phases at once, with this covariance."""
    values, vectors = np.linalg.eigh(np.array(cov))
    factor = vectors * np.sqrt(np.maximum(values, 0.0))
    normal = rng.standard_normal((*shape, len(factor))) @ factor.T
    return normal * _tail_factor(rng, (*shape, 1), df)


def _student(rng: Any, shape: tuple[int, ...], df: float) -> np.ndarray:
    return rng.standard_normal(shape) * _tail_factor(rng, shape, df)


def _tail_factor(rng: Any, shape: tuple[int, ...], df: float) -> np.ndarray:
    """Makes a normal number one of Student's t of variance 1."""
    factor: np.ndarray = np.sqrt((df - 2) / rng.chisquare(df, size=shape))
    return factor


def _rounds(recorded: Recorded) -> int:
    lengths = [len(repeat) for run in recorded.of("plain") for repeat in run.metrics[STEP]]
    return max(1, round(float(np.median(lengths)) / recorded.template.config["protocol"]["steps_per_block"]))


def excess_kurtosis(recorded: Recorded) -> float:
    """Of whole steps' logarithms around their process's median, in all equal runs, disturbed processes too."""
    series = [np.log(steps) for run in recorded.of("plain") for steps in run.metrics[STEP]]
    residuals = np.concatenate([steps - np.median(steps) for steps in series])
    centred = residuals - residuals.mean()
    return float(np.mean(centred**4) / np.mean(centred**2) ** 2) - 3


def _tail_df(excess: float) -> float:
    """Student's degrees of freedom with this excess kurtosis, 6 / (df − 4), within TAILS_DF."""
    return float(np.clip(4 + 6 / excess if excess > 0 else TAILS_DF[1], *TAILS_DF))


def _lag_one(values: np.ndarray) -> float:
    centred = values - values.mean()
    total = float((centred**2).sum())
    return float((centred[1:] * centred[:-1]).sum() / total) if total else 0.0


def _slope(values: np.ndarray) -> float:
    """Change over the whole process by a straight line."""
    return float(np.polyfit(np.linspace(-0.5, 0.5, len(values)), values, 1)[0])


def _positive(cov: np.ndarray) -> np.ndarray:
    """The nearest covariance: a difference of two estimates may have negative directions."""
    values, vectors = np.linalg.eigh(cov)
    clipped: np.ndarray = (vectors * np.maximum(values, 0.0)) @ vectors.T
    return clipped
