"""From figures to a verdict, and to the sentences that say how it came about."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace

from bench.gating.metrics import BLIND_FACTOR, Policy, Threshold
from bench.gating.ratio_test import RatioTest
from bench.gating.verdicts import Row, Verdict
from bench.records.entry import Samples
from bench.units import format_bytes, format_ms, format_percent, format_ratio, plural


@dataclass(frozen=True, slots=True, kw_only=True)
class Tested:
    """A ratio's test among all of its comparison."""

    test: RatioTest
    corrected_worse: float
    corrected_better: float
    num_tests: int


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for all of them: below alpha, the chance of any false finding is below it too.

    That holds whatever the tests' dependence. Source: Holm, "A Simple Sequentially Rejective Multiple Test
    Procedure" (Scand. J. Statist. 1979).
    """
    corrected = [0.0] * len(p_values)
    largest = 0.0
    for place, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - place) * p_values[index]))
        corrected[index] = largest
    return corrected


def decide_ratio(
    row: Row,
    threshold: Threshold,
    tested: Tested,
    policy: Policy,
    *,
    floor: float | None,
    yardstick: tuple[float, float] | None,
) -> Row:
    """Judge a ratio of medians: beyond its threshold and significant, beyond and not, or within.

    Args:
        row: what is known of it already.
        threshold: of the metric.
        tested: its figures.
        policy: alpha, and how both sides were measured.
        floor: baseline's median of the metric that the threshold's floor is a share of; none: no floor.
        yardstick: medians of what divides both sides, candidate and baseline; none: nothing does.
    """
    test, limit = tested.test, threshold.limit_for(policy.interleaved)
    is_worse = test.nearer_pct > 0
    p_value = test.p_worse if is_worse else test.p_better
    corrected = tested.corrected_worse if is_worse else tested.corrected_better
    floor_pct = 100 * (floor or 0.0) * threshold.floor_pct / 100 / test.medians[1]
    verdict, reason = _judge_ratio(test, limit, floor_pct, threshold, corrected, tested.num_tests, policy)
    note = "" if test.same_samples else _yardstick_note(threshold, yardstick)
    row = replace(
        row, verdict=verdict, candidate=test.medians[0], baseline=test.medians[1], change_pct=test.change_pct,
        low_pct=test.low_pct, high_pct=test.high_pct, threshold_pct=limit, p_value=p_value, corrected_p=corrected,
        reason=f"{reason}{note}.", per_fp32_step=yardstick is not None,
    )  # fmt: skip
    return replace(row, explanation=_explain_ratio(row, threshold, tested, policy, yardstick, floor_pct))


def _judge_ratio(
    test: RatioTest,
    limit: float,
    floor_pct: float,
    threshold: Threshold,
    corrected: float,
    num_tests: int,
    policy: Policy,
) -> tuple[Verdict, str]:
    """Verdict and reason without its full stop."""
    if test.same_samples:
        return Verdict.OK, "the samples are the same"
    amount, alarms = abs(test.nearer_pct), threshold.alarms(policy.interleaved)
    change = f"{_signed(test.change_pct)} % (95 % interval {_signed(test.low_pct)} to {_signed(test.high_pct)})"
    if amount <= limit or amount <= floor_pct:
        blind = BLIND_FACTOR * max(limit, floor_pct)
        if test.high_pct > blind and threshold.alarm:  # what is never divided is wide on any shared machine
            hint = "measure more processes or on a quieter machine"
            return Verdict.INCONCLUSIVE, f"{change}: the interval does not rule out {_rounded(blind):g} %: {hint}"
        if amount > limit:
            return Verdict.OK, f"{change}, less than {threshold.floor_pct:g} % of {threshold.floor_of}"
        return Verdict.OK, f"{change}, within {limit:g} %"
    is_worse, is_sure = test.nearer_pct > 0, corrected <= policy.alpha
    chance = f"chance {corrected:.2g} after correction for {plural(num_tests, 'test')}"
    if not is_worse:
        if is_sure:
            return Verdict.IMPROVED, f"better: {change}, more than {limit:g} % ({chance})"
        return Verdict.OK, f"{change}, better, if noise did not do it ({chance})"
    if not alarms:
        hint = "the machine may be slower or what both sides share; measure both in turn (gate --against)"
        return Verdict.INCONCLUSIVE, f"{change}, more than {limit:g} %: {hint}"
    if is_sure:
        return Verdict.REGRESSED, f"worse: {change}, more than {limit:g} % ({chance})"
    return Verdict.INCONCLUSIVE, f"{change}, more than {limit:g} %, but noise may do that ({chance})"


def decide_exact(
    row: Row, threshold: Threshold, after: Samples, before: Samples, floor: float | None, policy: Policy
) -> Row:
    """Judge a figure that hardly varies by its threshold alone; of several repeats none may contradict.

    Args:
        row: what is known of it already.
        threshold: of the metric.
        after: the candidate's values.
        before: the baseline's.
        floor: baseline's median of the metric that the threshold's floor is a share of; none: no floor.
        policy: how both sides were measured.
    """
    new, old = median(after), median(before)
    limit = threshold.limit_for(policy.interleaved)
    change = new - old if threshold.in_points else _percent(new - old, old)
    bound = _amount(limit, threshold)
    amount = "from 0" if change is None else f"by {_amount(_rounded(abs(change)), threshold)}"
    is_worse = (new > old) == threshold.lower_is_better
    floor_value = (floor or 0.0) * threshold.floor_pct / 100
    if math.isclose(new, old, rel_tol=1e-12) or (change is not None and abs(change) <= limit):
        verdict, reason = Verdict.OK, f"within {bound}" if new != old else "the same"
    elif floor_value and abs(new - old) <= floor_value:
        verdict, reason = Verdict.OK, f"changed {amount}, less than {threshold.floor_pct:g} % of {threshold.floor_of}"
    elif _overlap(after, before):
        verdict, reason = Verdict.INCONCLUSIVE, f"changed {amount}, more than {bound}, but repeats overlap"
    else:
        verdict = Verdict.REGRESSED if is_worse else Verdict.IMPROVED
        reason = f"{'worse' if is_worse else 'better'} {amount}, more than {bound}"
    explanation = (
        f"Baseline {show_value(row.metric, old)} ({_count(before)}), candidate {show_value(row.metric, new)} "
        f"({_count(after)}).",
        f"This figure hardly varies, so its threshold of {bound} decides alone.",
        f"So it is {verdict.words}: {reason}.",
    )
    return replace(
        row, verdict=verdict, candidate=new, baseline=old, change_pct=change, threshold_pct=limit, reason=f"{reason}.",
        explanation=explanation,
    )  # fmt: skip


def median(samples: Samples) -> float:
    """Of all values of all repeats."""
    return float(statistics.median(_flat(samples)))


def show_value(metric: str, value: float | None) -> str:
    """Print a value in the unit that the metric's name carries."""
    if value is None:
        return "n/a"
    if metric.endswith("_bytes"):
        return format_bytes(value)
    if metric.endswith("_ms"):
        return format_ms(value)
    return format_percent(value, 2) if metric.endswith("_pct") else format_ratio(value)


def _explain_ratio(
    row: Row,
    threshold: Threshold,
    tested: Tested,
    policy: Policy,
    yardstick: tuple[float, float] | None,
    floor_pct: float,
) -> tuple[str, ...]:
    """How the verdict came about, a sentence a step."""
    test, limit = tested.test, threshold.limit_for(policy.interleaved)
    how = "measured in turn" if policy.interleaved else "recorded apart"
    sentences = [
        f"Baseline: median {show_value(row.metric, row.baseline)} of {plural(test.num_samples[1], 'sample')} in "
        f"{_processes(test.num_processes[1])}; candidate: {show_value(row.metric, row.candidate)} of "
        f"{test.num_samples[0]:,} in {test.num_processes[0]}; {how}."
    ]
    if test.same_samples:
        return (*sentences, "Both sides hold the very same numbers, so it is ok.")
    if yardstick is not None:
        sentences.append(
            f"Both are divided by the FP32 step of their own processes ({format_ms(yardstick[1])}, now "
            f"{format_ms(yardstick[0])}), which takes the machine's speed out."
        )
    elif threshold.yardstick:
        sentences.append("It is compared in absolute time, since an FP32 step beside it is missing.")
    sentences.append(
        f"The ratio of medians changed by {_signed(test.change_pct)} %, the mean over processes by "
        f"{_signed(test.process_change_pct)} %; what both agree on decides: {_signed(test.nearer_pct)} %."
    )
    if any(test.num_strays):
        strays = zip(test.num_strays, ("candidate", "baseline"), strict=True)
        named = [f"{_processes(count)} of the {side}" for count, side in strays if count]
        sentences.append(f"Set aside, far from all others of both sides: {' and '.join(named)}.")
    position = "beyond" if abs(test.nearer_pct) > limit else "within"
    sentences.append(f"The threshold is {limit:g} %; the change is {position} it.")
    if floor_pct:
        sentences.append(
            f"A change below {threshold.floor_pct:g} % of {threshold.floor_of} counts as noise: here "
            f"{_rounded(floor_pct):g} %."
        )
    sentences.append(
        f"Processes spread by {test.own_spread_pct:.2g} % where {test.expected_spread_pct:.2g} % is expected of this "
        f"metric, this comparison and this machine; reckoned with is {test.process_spread_pct:.2g} %."
    )
    if test.bootstrap_error_pct is not None:
        sentences.append(
            "The bootstrap over processes and blocks of neighbouring samples gives a standard error of "
            f"{test.bootstrap_error_pct:.2g} %."
        )
    if not policy.interleaved and threshold.session_shift_pct:
        sentences.append(f"Two runs on different days are shifted by {threshold.session_shift_pct:g} % each.")
    sentences.append(
        f"With a standard error of {test.error_pct:.2g} % and Student's t of {show_df(test.df)} the 95 % "
        f"interval of the change is {_signed(test.low_pct)} to {_signed(test.high_pct)} %."
    )
    sentences.append(
        f"Noise alone goes so far with probability {row.p_value:.2g}, anywhere among "
        f"{plural(tested.num_tests, 'test')} with {row.corrected_p:.2g} (Holm); {policy.alpha:g} is the most that "
        "counts as sure."
    )
    return (*sentences, f"So it is {row.verdict.words}: {row.reason}")


def show_df(df: float) -> str:
    """Print degrees of freedom."""
    return plural(df, "degree of freedom", "degrees of freedom")


def _processes(count: int) -> str:
    return plural(count, "process", "processes")


def _amount(value: float, threshold: Threshold) -> str:
    """A change or a limit in the metric's unit."""
    return plural(value, "point") if threshold.in_points else f"{value:g} %"


def _rounded(value: float) -> float:
    """To three significant digits; printed with ``g`` it has an exponent from a million on only."""
    return float(f"{value:.3g}")


def _signed(value: float) -> str:
    return f"{_rounded(value):+g}"


def _yardstick_note(threshold: Threshold, yardstick: tuple[float, float] | None) -> str:
    if not threshold.yardstick:
        return ""
    if yardstick is None:
        return ", in absolute time, since an FP32 step is missing beside it"
    return f", of times divided by the FP32 step beside them ({format_ms(yardstick[1])}, now {format_ms(yardstick[0])})"


def _overlap(after: Samples, before: Samples) -> bool:
    new, old = _flat(after), _flat(before)
    return max(min(new), min(old)) <= min(max(new), max(old)) if len(new) + len(old) > 2 else False


def _count(samples: Samples) -> str:
    count = len(_flat(samples))
    return "1 value" if count == 1 else f"median of {count} values"


def _flat(samples: Samples) -> list[float]:
    return [value for repeat in samples for value in repeat]


def _percent(difference: float, base: float) -> float | None:
    """Change in percent; None where the base is 0 or the quotient leaves the numbers."""
    change = 100 * (difference / abs(base)) if base else math.inf
    return change if math.isfinite(change) else None
