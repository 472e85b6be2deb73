"""The proof's goals, and what was found against them."""

from __future__ import annotations

from dataclasses import dataclass

from scipy.stats import binom

from tools.gate_proof.judge import CONFIDENCE, Count, RealFindings, count_regressed, leak_named_right, named_right
from tools.gate_proof.real import LEAKS_PCT, PHASES, SIZES_PCT
from tools.gate_proof.simulate import APART, CELLS, IN_TURN, Scenario, Simulated, Tally

FALSE_ALARMS = 0.01  # of comparisons of equal code, at most
POWER = 0.95
LEAST_PAIRS, LEAST_SIMULATED = 60, 10_000
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


def conclude(real: RealFindings, simulated: Simulated) -> list[Goal]:
    """Hold what was found against the goals."""
    goals = []
    for design, words in DESIGN_WORDS.items():
        count = count_of(simulated, Scenario(design=design), "regressed")
        goals.append(
            Goal(
                text=f"at most 1 % false `regressed` per comparison of {CELLS} equal cells, simulated, {words}",
                result=show_count(count),
                met=count.trials >= LEAST_SIMULATED and count.high <= FALSE_ALARMS,
            )
        )
    for way, findings in real.pairs.items():
        count = count_regressed(findings)
        beyond_chance = float(binom.sf(count.happened - 1, count.trials, FALSE_ALARMS)) < 1 - CONFIDENCE
        goals.append(
            Goal(
                text=f"no false `regressed` beyond chance in the real equal pairs, {WAYS[way]}",
                result=show_count(count),
                met=count.trials >= LEAST_PAIRS and not beyond_chance,
            )
        )
    of_step, of_phase = (
        {phase: count_of(simulated, slowed("in_turn", share_of, phase, 10.0), "regressed") for phase in PHASES}
        for share_of in ("step", "phase")
    )
    goals.append(
        Goal(
            text="at least 95 % of slowdowns by 10 % of the step found, in every phase, simulated in turn",
            result=f"{_show_power(of_step)}. Beside the goal, by 10 % of the phase itself, which is less: "
            f"{_show_power(of_phase)}",
            met=all(count.trials > 0 and count.share >= POWER for count in of_step.values()),
        )
    )
    ten = [finding for sizes in real.slowed.values() for finding in sizes.get("10", [])]
    found = count_regressed(ten)
    goals.append(
        Goal(
            text="at least 95 % of real slowdowns by 10 % of the step found, in turn",
            result=show_count(found),
            met=found.trials > 0 and found.share >= POWER,
        )
    )
    for size in LEAKS_PCT:
        found = count_regressed(real.leaking.get(f"{size:g}", []))
        goals.append(
            Goal(
                text=f"every real leak of {size:g} % of the peak found",
                result=show_count(found),
                met=found.happened == found.trials > 0,
            )
        )
    goals.append(_naming(real, simulated))
    return goals


def _naming(real: RealFindings, simulated: Simulated) -> Goal:
    """Of all detections, real and simulated in turn, how many name the planted phase or memory and nothing else."""
    right = total = 0
    for phase in PHASES:
        for size in SIZES_PCT:
            tally = tally_of(simulated, slowed("in_turn", "step", phase, size))
            right, total = right + tally.named, total + tally.regressed
    drawn = Count.of(right, total)
    named = [
        named_right(finding, phase)
        for phase, sizes in real.slowed.items()
        for findings in sizes.values()
        for finding in findings
        if finding.regressed
    ]
    named += [
        leak_named_right(finding) for findings in real.leaking.values() for finding in findings if finding.regressed
    ]
    seen = Count.of(sum(named), len(named))
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


def slowed(design: str, share_of: str, phase: str, size_pct: float) -> Scenario:
    """Suites with one slowed cell."""
    return Scenario(design=design, size_pct=size_pct, share_of=share_of, phase=phase)


def tally_of(simulated: Simulated, scenario: Scenario) -> Tally:
    """Of a scenario; empty where none was drawn."""
    return simulated.tallies.get(scenario.key, Tally())


def count_of(simulated: Simulated, scenario: Scenario, name: str) -> Count:
    """How many of a scenario's suites are tallied under a name."""
    tally = tally_of(simulated, scenario)
    return Count.of(getattr(tally, name), tally.suites)


def _show_power(counts: dict[str, Count]) -> str:
    """All phases together, and the weakest of them."""
    total = Count.of(sum(count.happened for count in counts.values()), sum(count.trials for count in counts.values()))
    weakest = min(counts, key=lambda phase: counts[phase].share)
    return f"{show_count(total)}; the weakest phase, {weakest}, {100 * counts[weakest].share:.1f} %"
