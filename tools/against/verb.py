"""``gate --against REV``: measure both sides in turn, compare, and measure again what would fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from bench.gating import Comparison, Policy, compare

REPEATS = 4  # runs of each side: what `make gate-proof` is about
CONFIRM = 1


def compare_with_revision(
    revision: str,
    overrides: Sequence[str],
    policy: Policy,
    *,
    repeats: int,
    confirm: int,
    config_dir: Path | None,
    output: Path | None,
) -> tuple[Comparison, tuple[str, ...]]:
    """Measure the other revision and the working tree in turn and compare them.

    Args:
        revision: branch, tag or commit of the repository around the current folder: the baseline.
        overrides: which cells, as ``metagrad-bench run`` takes them.
        policy: of runs measured in turn.
        repeats: runs of each side.
        confirm: how often cells that would fail, or that cannot be told, are measured again on both sides.
        config_dir: folder with suites and variants of the user's.
        output: folder for the records; none: a new one under ``out/against``.

    Returns:
        The comparison, and notes on both sides.

    Raises:
        UserError: something that cannot be measured, in one sentence.
    """
    from tools.against.rounds import tell_on_stderr  # torch, only where something is run
    from tools.against.session import open_session

    policy = shared_alpha(policy, confirm)
    with open_session(
        revision, overrides, repeats=repeats, config_dir=config_dir, output=output, tell=tell_on_stderr
    ) as session:
        session.measure(repeats)
        base, head, notes = session.entries()
        comparison = compare(head, base, policy)
        for attempt in range(confirm):
            cells = suspects(comparison)
            if not cells:
                break
            tell_on_stderr(f"measuring again ({attempt + 1} of {confirm}): {', '.join(cells)}")
            session.measure_again(cells, repeats)
            base, head, notes = session.entries()
            comparison = compare(head, base, policy)
            notes = (*notes, f"Measured again and judged on all repeats: {', '.join(cells)}.")
    return comparison, notes


def suspects(comparison: Comparison) -> list[str]:
    """Names of the cells with a row that would fail, or that is slower and cannot be told."""
    return sorted({row.cell for row in comparison.suspects()})


def shared_alpha(policy: Policy, confirm: int) -> Policy:
    """Every look at the samples has a part of the false alarms that are allowed in all (Bonferroni)."""
    return dataclasses.replace(policy, alpha=policy.alpha / (1 + confirm))
