"""The proof's page and figure, made from its JSON files alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scipy.stats import binom

from bench.records.store import write_atomic
from tools.gate_proof.judge import (
    CONFIDENCE,
    Count,
    Finding,
    count_regressed,
    equal_pairs,
    leak_named_right,
    leaks,
    named_right,
    slowed_groups,
)
from tools.gate_proof.real import LEAKS_PCT, PHASES, SIZES_PCT
from tools.gate_proof.runs import Recorded
from tools.gate_proof.simulate import APART, CELLS, IN_TURN, Scenario, Simulated, Tally

FALSE_ALARMS = 0.01  # of comparisons of equal code, at most
POWER = 0.95
LEAST_PAIRS, LEAST_SIMULATED = 60, 10_000
FIGURE = "detection.png"
WAYS = {
    "neighbours": "recorded runs next to each other",
    "apart": "recorded runs half the proof apart",
    "in_turn": "processes in turn",
}
DESIGN_WORDS = {
    "in_turn": f"in turn, {IN_TURN.processes} processes a side, suspects measured again once",
    "apart": f"recorded apart, {APART.processes} processes a side",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """One thing that has to hold."""

    text: str
    result: str
    met: bool


def conclude(recorded: Recorded, simulated: Simulated) -> list[Goal]:
    """Hold what was found against the goals."""
    goals = []
    for design, words in DESIGN_WORDS.items():
        count = _count(simulated, Scenario(design=design), "regressed")
        goals.append(
            Goal(
                text=f"at most 1 % false `regressed` per comparison of {CELLS} equal cells, simulated, {words}",
                result=show_count(count),
                met=count.trials >= LEAST_SIMULATED and count.high <= FALSE_ALARMS,
            )
        )
    for way, findings in equal_pairs(recorded).items():
        count = count_regressed(findings)
        beyond_chance = float(binom.sf(count.happened - 1, count.trials, FALSE_ALARMS)) < 1 - CONFIDENCE
        goals.append(
            Goal(
                text=f"no false `regressed` beyond chance in the real equal pairs, {WAYS[way]}",
                result=show_count(count),
                met=count.trials >= LEAST_PAIRS and not beyond_chance,
            )
        )
    tallies = [simulated.tallies.get(_slowed("in_turn", phase, 10.0).key, Tally()) for phase in PHASES]
    detected, suites = sum(tally.regressed for tally in tallies), sum(tally.suites for tally in tallies)
    weakest = min(tally.regressed / max(tally.suites, 1) for tally in tallies)
    goals.append(
        Goal(
            text="at least 95 % of slowdowns by 10 % of the step found, simulated in turn",
            result=f"{show_count(Count.of(detected, suites))}; the weakest phase {100 * weakest:.1f} %",
            met=suites > 0 and weakest >= POWER,
        )
    )
    ten = [finding for sizes in slowed_groups(recorded).values() for finding in sizes.get("10", [])]
    found = count_regressed(ten)
    goals.append(
        Goal(
            text="at least 95 % of real slowdowns by 10 % of the step found, in turn",
            result=show_count(found),
            met=found.trials > 0 and found.share >= POWER,
        )
    )
    leaking = leaks(recorded)
    for size in LEAKS_PCT:
        found = count_regressed(leaking.get(f"{size:g}", []))
        goals.append(
            Goal(
                text=f"every real leak of {size:g} % of the peak found",
                result=show_count(found),
                met=found.happened == found.trials > 0,
            )
        )
    goals.append(_naming(recorded, simulated))
    return goals


def _naming(recorded: Recorded, simulated: Simulated) -> Goal:
    """Of all detections, real and simulated in turn, how many name the planted phase or memory and nothing else."""
    right = total = 0
    for phase in PHASES:
        for size in SIZES_PCT:
            tally = simulated.tallies.get(_slowed("in_turn", phase, size).key, Tally())
            right, total = right + tally.named, total + tally.regressed
    drawn = Count.of(right, total)
    real = [
        named_right(finding, phase)
        for phase, sizes in slowed_groups(recorded).items()
        for findings in sizes.values()
        for finding in findings
        if finding.regressed
    ]
    real += [
        leak_named_right(finding) for findings in leaks(recorded).values() for finding in findings if finding.regressed
    ]
    seen = Count.of(sum(real), len(real))
    return Goal(
        text="the right metric and phase, and no other, named in at least 95 % of detections",
        result=f"simulated {show_count(drawn)}; real {show_count(seen)}",
        met=min(drawn.trials, seen.trials) > 0 and min(drawn.share, seen.share) >= POWER,
    )


def show_count(count: Count) -> str:
    """``3 of 60, 5.00 % (95 % bounds 1.04 to 13.92 %)``."""
    if not count.trials:
        return "none were run"
    bounds = f"{100 * CONFIDENCE:g} % bounds {100 * count.low:.2f} to {100 * count.high:.2f} %"
    return f"{count.happened} of {count.trials}, {100 * count.share:.2f} % ({bounds})"


def write_page(page: Path, folder: Path, recorded: Recorded, simulated: Simulated, goals: Sequence[Goal]) -> None:
    """Write the figure beside the JSON files, and the page that shows it.

    Raises:
        RecordError: a file cannot be written.
    """
    draw_detection(folder / FIGURE, recorded, simulated)
    place = Path(os.path.relpath(folder, page.parent)).as_posix()
    text = "\n\n".join(
        [
            "# What the regression gate is worth",
            "<!-- Written by `make gate-proof` from the JSON files beside it; do not edit. -->",
            _introduction(recorded, place),
            "## Goals\n\n" + _table(("goal", "found", ""), [_goal_row(goal) for goal in goals]),
            "## Equal code\n\n" + _equal(recorded, simulated),
            "## Slower code\n\n" + _slower(recorded, simulated, place),
            "## Leaks\n\n" + _leaks(recorded),
            "## What was drawn\n\n" + _noise(simulated),
        ]
    )  # fmt: skip
    write_atomic(page, f"{text}\n".encode(), replace=True)


def _goal_row(goal: Goal) -> tuple[str, str, str]:
    return goal.text, goal.result, "met" if goal.met else "**missed**"


def draw_detection(path: Path, recorded: Recorded, simulated: Simulated) -> None:
    """Share of slowdowns found by their size: simulated as lines, real groups as points with exact bounds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    kinds = (("step", "of the step, in one phase"), ("phase", "of the phase itself"))
    for axis, (share_of, words) in zip(axes, kinds, strict=True):
        for number, phase in enumerate(PHASES):
            keys = [Scenario(design="in_turn", size_pct=size, share_of=share_of, phase=phase).key for size in SIZES_PCT]
            counts = [_of(simulated.tallies.get(key, Tally()), "regressed") for key in keys]
            shares = [100 * count.share for count in counts]
            axis.plot(SIZES_PCT, shares, color=f"C{number}", label=f"{phase}, simulated")
            axis.fill_between(
                SIZES_PCT, [100 * count.low for count in counts], [100 * count.high for count in counts],
                color=f"C{number}", alpha=0.15, linewidth=0,
            )  # fmt: skip
        axis.axhline(100 * POWER, color="0.6", linewidth=0.8, linestyle=":")
        axis.set_xlabel(f"slower by, % {words}")
        axis.set_xticks(SIZES_PCT)
        axis.set_ylim(-3, 103)
    sizes = slowed_groups(recorded)
    pooled = [
        count_regressed([f for phase in sizes.values() for f in phase.get(f"{size:g}", [])]) for size in SIZES_PCT
    ]
    known = [(size, count) for size, count in zip(SIZES_PCT, pooled, strict=True) if count.trials]
    if known:
        below = [100 * (count.share - count.low) for _, count in known]
        above = [100 * (count.high - count.share) for _, count in known]
        axes[0].errorbar(
            [size for size, _ in known], [100 * count.share for _, count in known], yerr=[below, above],
            fmt="ko", capsize=3, label="all phases, real",
        )  # fmt: skip
    axes[0].set_ylabel("found, %")
    axes[0].legend(frameon=False, loc="lower right")
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _introduction(recorded: Recorded, place: str) -> str:
    machine: dict[str, Any] = recorded.machine
    cpu, torch = machine.get("cpu", {}), machine.get("torch", {})
    last = max(run.started_s for run in recorded.runs)
    busy = sum("busy" in notice for notice in recorded.notices)
    plain = len(recorded.of("plain"))
    return (
        f"Real runs of one cell (`{' '.join(recorded.overrides)}`) on {cpu.get('model', 'a CPU')}, "
        f"{cpu.get('usable_cores', '?')} cores, torch {torch.get('version', '?')} with {torch.get('threads', '?')} "
        f"threads, within {last / 60:.0f} minutes from {recorded.started}, other work running or not as it came: "
        f"{busy} of {plain} equal runs carry the notice that the machine was busy. Every sample is in "
        f"[runs.json]({place}/runs.json), every simulated count in [simulated.json]({place}/simulated.json); "
        "`make gate-proof` measures and draws them anew where they are missing, and writes this page. The gate is the "
        "product's own, with its default thresholds. Bounds are Clopper's and Pearson's exact ones of 95 %."
        + (f" {recorded.remark}" if recorded.remark else "")
    )


def _equal(recorded: Recorded, simulated: Simulated) -> str:
    rows = []
    for way, findings in equal_pairs(recorded).items():
        unsure = sum(bool(finding.inconclusive) and not finding.regressed for finding in findings)
        rows.append((f"real, {WAYS[way]}", show_count(count_regressed(findings)), str(unsure)))
    for design, words in DESIGN_WORDS.items():
        tally = simulated.tallies.get(Scenario(design=design).key, Tally())
        rows.append((f"simulated suites, {words}", show_count(_of(tally, "regressed")), str(tally.inconclusive)))
    return (
        "Nothing changed between the two sides, so everything `regressed` is a false alarm. A real comparison is one "
        f"cell, a simulated one a suite of {CELLS}; each counts once, however many of its metrics regressed.\n\n"
        + _table(("pairs", "falsely regressed", "inconclusive instead"), rows)
    )


def _slower(recorded: Recorded, simulated: Simulated, place: str) -> str:
    real = slowed_groups(recorded)
    rows = []
    for phase in PHASES:
        for size in SIZES_PCT:
            cells = [phase, f"{size:g} %"]
            for design, share_of in (("in_turn", "step"), ("in_turn", "phase"), ("apart", "step")):
                key = Scenario(design=design, size_pct=size, share_of=share_of, phase=phase).key
                cells.append(_short(_of(simulated.tallies.get(key, Tally()), "regressed")))
            cells.append(_short(_of_named(simulated.tallies.get(_slowed("in_turn", phase, size).key, Tally()))))
            findings: list[Finding] = real.get(phase, {}).get(f"{size:g}", [])
            cells.append(f"{sum(bool(f.regressed) for f in findings)} of {len(findings)}")
            rows.append(tuple(cells))
    columns = (
        "phase", "slower by", "found in turn, % of the step", "found in turn, % of the phase",
        "found apart, % of the step", "of those in turn (step) named right", "real, % of the step, in turn",
    )  # fmt: skip
    return (
        "One phase of one cell takes longer: in the simulation by a share of the step or of the phase, in real "
        "processes by busy waiting inside the phase, a share of the step. Found means that something in that cell "
        "regressed; named right, that its phase did and no other phase and no memory.\n\n"
        f"![Share of slowdowns found]({place}/{FIGURE})\n\n" + _table(columns, rows)
    )


def _leaks(recorded: Recorded) -> str:
    rows = []
    for size, findings in leaks(recorded).items():
        right = sum(leak_named_right(finding) for finding in findings)
        rows.append((f"{size} %", show_count(count_regressed(findings)), f"{right} of {len(findings)}"))
    return (
        "Real memory passes whose steps keep a tensor that nobody needs, a share of the peak allocated, against equal "
        "runs. The peak allocated does not vary at all, so its threshold alone decides.\n\n"
        + _table(("leak", "found", "named as memory alone"), rows)
    )


def _noise(simulated: Simulated) -> str:
    noise = simulated.noise
    rows = [
        (name.removesuffix("_ms"), f"{level:.3g} ms", *(f"{100 * cov[k][k] ** 0.5:.1f} %" for cov in covariances))
        for k, (name, level) in enumerate(zip(noise.phases, noise.level_ms, strict=True))
        for covariances in [(noise.run_cov, noise.process_cov, noise.step_cov)]
    ]
    return (
        "Measured on the real equal runs, with the covariance between phases, and drawn with Student's t instead of "
        "normal tails; a phase's own spread, divided by the FP32 step beside it:\n\n"
        + _table(("phase", "median", "between runs", "between processes", "between steps"), rows)
        + f"\n\nThe FP32 step varies by {100 * noise.fp32_sd:.1f} % from step to step and by "
        f"{100 * noise.machine_sd:.1f} % from process to process; neighbouring steps correlate by "
        f"{noise.autocorrelation:.2f}; steps have the tails of Student's t with {noise.tail_df:.1f} degrees of "
        f"freedom; within a process the machine drifts by {100 * noise.drift_sd:.1f} % (standard deviation). Assumed "
        "on top: in every fifth process the clock falls by 10 % for up to half of the time. All this is of the usual "
        f"processes: {len(noise.disturbed)} real ones, {100 * noise.disturbed_share:.1f} %, stood more than six robust "
        "standard deviations off, disturbed by something else on the machine, and are drawn as they were and as often."
    )


def _slowed(design: str, phase: str, size_pct: float) -> Scenario:
    return Scenario(design=design, size_pct=size_pct, share_of="step", phase=phase)


def _count(simulated: Simulated, scenario: Scenario, name: str) -> Count:
    return _of(simulated.tallies.get(scenario.key, Tally()), name)


def _of(tally: Tally, name: str) -> Count:
    return Count.of(getattr(tally, name), tally.suites)


def _of_named(tally: Tally) -> Count:
    return Count.of(tally.named, tally.regressed)


def _short(count: Count) -> str:
    return f"{100 * count.share:.1f} % of {count.trials}" if count.trials else "none"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
