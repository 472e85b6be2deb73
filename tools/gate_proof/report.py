"""The proof's page and figure, made from its JSON files alone."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bench.gating.comparison import MANY_TESTS
from bench.records.write import write_atomic
from bench.units import plural
from tools.gate_proof.goals import DESIGN_WORDS, POWER, WAYS, Goal, count_of, show_count, slowed, tally_of
from tools.gate_proof.judge import (
    MEMORY_METRICS,
    Count,
    Finding,
    RealFindings,
    count_regressed,
    leak_named_right,
    pairings,
)
from tools.gate_proof.noise import SHIFT_DF, TAILS_DF, excess_kurtosis
from tools.gate_proof.real import PHASES, SIZES_PCT
from tools.gate_proof.runs import Recorded
from tools.gate_proof.simulate import CELLS, IN_TURN, Scenario, Simulated

FIGURE = "detection.png"


def write_page(
    page: Path, folder: Path, recorded: Recorded, real: RealFindings, simulated: Simulated, goals: Sequence[Goal]
) -> None:
    """Write the figure beside the JSON files, and the page that shows it.

    Args:
        page: the Markdown file.
        folder: of the JSON files and the figure.
        recorded: the real runs.
        real: what the gate says of them.
        simulated: what was drawn, and what the gate said.
        goals: as they were concluded.

    Raises:
        RecordError: a file cannot be written.
    """
    draw_detection(folder / FIGURE, real, simulated)
    place = Path(os.path.relpath(folder, page.parent)).as_posix()
    text = "\n\n".join(
        [
            "# What the regression gate is worth",
            "<!-- Written by `make gate-proof` from the JSON files beside it; do not edit. -->",
            _introduction(recorded, place),
            "## Goals\n\n" + _table(("goal", "found", ""), [_goal_row(goal) for goal in goals]),
            "## Equal code\n\n" + _equal(recorded, real, simulated),
            "## Slower code\n\n" + _slower(real, simulated, place),
            "## Leaks\n\n" + _leaks(real),
            "## What was drawn\n\n" + _noise(recorded, simulated),
        ]
    )  # fmt: skip
    write_atomic(page, f"{text}\n".encode(), replace=True)


def _goal_row(goal: Goal) -> tuple[str, str, str]:
    return goal.text, goal.result, "met" if goal.met else "**missed**"


def draw_detection(path: Path, real: RealFindings, simulated: Simulated) -> None:
    """Share of slowdowns found by their size: simulated as lines, real groups as points with exact bounds."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True, layout="constrained")
    kinds = (("step", "of the step, in one phase"), ("phase", "of the phase itself"))
    for axis, (share_of, words) in zip(axes, kinds, strict=True):
        for number, phase in enumerate(PHASES):
            counts = [count_of(simulated, slowed("in_turn", share_of, phase, size), "regressed") for size in SIZES_PCT]
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
    pooled = [
        count_regressed([f for phase in real.slowed.values() for f in phase.get(f"{size:g}", [])]) for size in SIZES_PCT
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
        "product's own, with its default thresholds and, except where it is said, its statistics. "
        "Bounds are Clopper's and Pearson's exact ones of 95 %." + (f" {recorded.remark}" if recorded.remark else "")
    )


def _equal(recorded: Recorded, real: RealFindings, simulated: Simulated) -> str:
    rows = []
    for way, findings in real.pairs.items():
        unsure = sum(bool(finding.inconclusive) and not finding.regressed for finding in findings)
        rows.append(
            (f"real, {WAYS[way]}", show_count(count_regressed(findings)), show_count(Count.of(unsure, len(findings))))
        )
    for every_row, how in ((False, "only rows with a say in a finding resampled"), (True, "every row resampled")):
        for design, words in DESIGN_WORDS.items():
            scenario = Scenario(design=design, every_row=every_row)
            false, unsure_drawn = (count_of(simulated, scenario, name) for name in ("regressed", "inconclusive"))
            rows.append((f"simulated suites, {words}; {how}", show_count(false), show_count(unsure_drawn)))
    return (
        "Nothing changed between the two sides, so everything `regressed` is a false alarm; `inconclusive` is none, "
        f"but exit code 3. A real comparison is one cell, a simulated one a suite of {CELLS}; each counts once, "
        "however many of its metrics regressed.\n\n"
        + _table(("pairs", "falsely regressed", "inconclusive instead"), rows)
        + f"\n\nUp to {MANY_TESTS:,} tests in a comparison the gate draws its bootstrap for every row: so the real "
        "pairs were judged, and the simulated suites in the last rows, which say how often equal code is "
        "`inconclusive`. For the many simulated suites, and for the slowed ones below, it was drawn only where it has "
        "a say in a finding, to save time. That changes nothing that one look calls `regressed`; but a row within its "
        "threshold that the bootstrap alone would call too noisy stays `ok` there, and in turn is not measured again."
        "\n\n" + _untested(recorded)
    )


def _untested(recorded: Recorded) -> str:
    """What the equal pairs do not cover."""
    near, far = pairings(recorded)
    with_memory = sum(all(MEMORY_METRICS[0] in run.metrics for run in pair) for pair in near)
    apart_s = max((abs(later.started_s - earlier.started_s) for earlier, later in (*near, *far)), default=0.0)
    processes = max((len(run.metrics["step_ms"]) for pair in near for run in pair), default=0)
    return (
        f"What this does not test. The real comparisons are {len(near)} disjoint pairs, judged three ways: next to "
        "each other and in turn they are the same pairs, apart the same runs paired anew, so the three counts are not "
        f"independent and must not be added. {with_memory} of the {len(near)} neighbours hold memory, the other two "
        f"ways only times. In turn, {processes} processes a side are dealt out of two runs, where `--against` has "
        f"{IN_TURN.processes} fresh runs a side. No pair lies further apart than "
        f"{plural(round(apart_s / 60), 'minute')}, and all are of one machine and one cell: what a machine does from "
        "day to day is in none of them, and the gate's "
        "allowance for it (`session_shift_pct`) is an assumption. No drawn suite holds accuracy, the share of integer "
        "products or a hypernetwork's memory."
    )


def _slower(real: RealFindings, simulated: Simulated, place: str) -> str:
    rows = []
    for phase in PHASES:
        for size in SIZES_PCT:
            cells = [phase, f"{size:g} %"]
            for design, share_of in (("in_turn", "step"), ("in_turn", "phase"), ("apart", "step")):
                cells.append(_short(count_of(simulated, slowed(design, share_of, phase, size), "regressed")))
            tally = tally_of(simulated, slowed("in_turn", "step", phase, size))
            cells.append(_short(Count.of(tally.named, tally.regressed)))
            findings: list[Finding] = real.slowed.get(phase, {}).get(f"{size:g}", [])
            cells.append(f"{sum(bool(f.regressed) for f in findings)} of {len(findings)}")
            rows.append(tuple(cells))
    columns = (
        "phase", "slower by", "found in turn, % of the step", "found in turn, % of the phase",
        "found apart, % of the step", "of those in turn (step) named right", "real, % of the step, in turn",
    )  # fmt: skip
    return (
        "One phase of one cell takes longer: in the simulation by a share of the step or of the phase, in real "
        "processes by busy waiting inside the phase, a share of the step. Found means that something in that cell "
        "regressed; named right, that its phase did and no other phase and no memory. The goals are set in % of the "
        "step; the same number in % of the phase is a smaller slowdown and is found less often.\n\n"
        f"![Share of slowdowns found]({place}/{FIGURE})\n\n" + _table(columns, rows)
    )


def _leaks(real: RealFindings) -> str:
    rows = []
    for size, findings in real.leaking.items():
        right = sum(leak_named_right(finding) for finding in findings)
        rows.append((f"{size} %", show_count(count_regressed(findings)), f"{right} of {len(findings)}"))
    return (
        "Real memory passes whose steps keep a tensor that nobody needs, a share of the peak allocated, against equal "
        "runs. The peak allocated does not vary at all, so its threshold alone decides.\n\n"
        + _table(("leak", "found", "named as memory alone"), rows)
    )


def _noise(recorded: Recorded, simulated: Simulated) -> str:
    noise = simulated.noise
    rows = [
        (name.removesuffix("_ms"), f"{level:.3g} ms", *(f"{100 * cov[k][k] ** 0.5:.1f} %" for cov in covariances))
        for k, (name, level) in enumerate(zip(noise.phases, noise.level_ms, strict=True))
        for covariances in [(noise.run_cov, noise.process_cov, noise.step_cov)]
    ]
    return (
        "Measured on the usual processes of the real equal runs, with the covariance between phases; a phase's own "
        "spread, divided by the FP32 step beside it:\n\n"
        + _table(("phase", "median", "between runs", "between processes", "between steps"), rows)
        + f"\n\nThe FP32 step varies by {100 * noise.fp32_sd:.1f} % from step to step and by "
        f"{100 * noise.machine_sd:.1f} % from process to process; neighbouring steps correlate by "
        f"{noise.autocorrelation:.2f}; within a process the machine drifts by {100 * noise.drift_sd:.1f} % (standard "
        f"deviation). Not usual are {len(noise.disturbed)} real processes, {100 * noise.disturbed_share:.1f} %: they "
        "stood more than six robust standard deviations off, disturbed by something else on the machine, are in none "
        "of these figures, and are drawn as they were and as often.\n\n"
        f"Tails. {_tails(noise.tail_df, excess_kurtosis(recorded))} Shifts of the phases between runs and between "
        f"processes are drawn from Student's t with {SHIFT_DF:g} degrees of freedom, which is assumed; how "
        "fast the machine is in a process and how it drifts there is drawn normal. Assumed on top: in every fifth "
        "process the clock falls by 10 % for up to half of the time."
    )


def _tails(df: float, excess: float) -> str:
    """How far single steps stray, as measured and as drawn."""
    low, high = TAILS_DF
    bound = ", the least that is drawn" if df == low else ", the most that is drawn" if df == high else ""
    return (
        f"Steps are drawn from Student's t with {df:.1f} degrees of freedom{bound} (excess kurtosis "
        f"{6 / (df - 4):.0f}); the excess kurtosis measured over all processes, disturbed ones too, is {excess:.0f}."
    )


def _short(count: Count) -> str:
    return f"{100 * count.share:.1f} % of {count.trials}" if count.trials else "none"


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
