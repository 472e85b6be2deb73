"""What is kept of a campaign: how each scenario stands, as JSON, and the counts as a page quotes them."""

from __future__ import annotations

import dataclasses
import datetime as dt
import json
import re
import secrets
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.provenance import code_digest, machine, put_between, write_json

BEGIN, END = "<!-- counts of the campaign: written by make faults -->\n", "<!-- end of the counts -->\n"


@dataclass(slots=True, kw_only=True)
class Standing:
    """One scenario: whether it came to its end, what it counted and what did not hold."""

    name: str
    ended: bool = False
    elapsed_s: float = 0.0
    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    resumable: dict[str, float] = field(default_factory=dict)  # from where a scenario of many parts goes on


class Kept:
    """The file that a campaign writes as it goes on."""

    def __init__(self, path: Path, *, kills: int, seed: int, only: Sequence[str]) -> None:
        """Read what an unfinished campaign of this code, machine and choice has left, if any.

        Args:
            path: of the JSON.
            kills: how many suites are killed.
            seed: of all moments and choices.
            only: scenarios.
        """
        self.path = path
        self.facts: dict[str, Any] = {
            "code": code_digest(), "machine": machine(), "kills": kills, "seed": seed, "only": list(only),
        }  # fmt: skip
        self.started_at, self.sittings = _now(), 1
        self.work = f"work-{secrets.token_hex(4)}"  # the folder's name: an earlier campaign's last suite may still run
        self.standings: list[Standing] = []
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return
        if earlier["ended"] or earlier | self.facts != earlier:
            return
        self.started_at, self.sittings = earlier["started_at"], earlier["sittings"] + 1
        self.work = earlier["work"]
        self.standings = [
            Standing(**{**standing, "counts": Counter(standing["counts"])}) for standing in earlier["scenarios"]
        ]

    def write(self, standings: Sequence[Standing]) -> None:
        """Keep how scenarios stand."""
        ended = {standing.name for standing in standings if standing.ended} >= set(self.facts["only"])
        total: Counter[str] = sum((standing.counts for standing in standings), Counter())
        scenarios = [
            {**dataclasses.asdict(standing), "counts": dict(sorted(standing.counts.items()))} for standing in standings
        ]
        facts = self.facts | {
            "started_at": self.started_at, "written_at": _now(), "sittings": self.sittings, "work": self.work,
            "ended": ended,
            "elapsed_s": round(sum(standing.elapsed_s for standing in standings), 1),
            "wrong": [sentence for standing in standings for sentence in standing.wrong],
            "counts": dict(sorted(total.items())), "scenarios": scenarios,
        }  # fmt: skip
        write_json(self.path, facts)


def as_text(kept: dict[str, Any]) -> str:
    """A campaign's counts, a line each, and whether everything held."""
    times = "" if kept["sittings"] == 1 else f", in {kept['sittings']} sittings"
    lines = [
        f"The campaign took {kept['elapsed_s']:.0f} s{times}, on {kept['machine']['cores']} cores, Python "
        f"{kept['machine']['python']}:"
    ]
    lines += [f"  {count:>4} {_one(name) if count == 1 else name}" for name, count in kept["counts"].items() if count]
    lines += [f"  WRONG: {sentence}" for sentence in kept["wrong"]]
    lines.append("Everything held." if not kept["wrong"] else f"{len(kept['wrong'])} things did not hold.")
    return "\n".join(lines)


def quote(page: str, kept: dict[str, Any]) -> str:
    """A page with a campaign's counts in the place for them.

    Args:
        page: with the lines ``BEGIN`` and ``END``.
        kept: a finished campaign, as its JSON holds it.
    """
    return put_between(page, BEGIN, END, f"```\n{kept['started_at'][:10]}: {as_text(kept)}\n```\n")


def _one(counted: str) -> str:
    """What is counted, in the singular; weights and the like stay."""
    return re.sub(r"\b(answer|cell|checkpoint|disk|file|folder|suite|training)s\b", r"\1", counted, count=1)


def _now() -> str:
    return dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
