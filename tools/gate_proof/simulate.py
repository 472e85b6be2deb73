"""Suites drawn like the real runs, by the ten thousand, and judged by the gate: equal ones and slowed ones.

Work is cut into chunks with a seed each; what is done is on disk, so that a call that was stopped goes on.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import msgspec
import numpy as np

from bench.errors import RecordError
from bench.hardware.environment import usable_cores
from bench.printable import show_path
from bench.records.entry import Entry, cell_label, config_digest
from bench.records.read import read_bytes
from bench.records.write import write_atomic
from tools.against.merge import merge
from tools.against.verb import REPEATS
from tools.gate_proof.judge import INTERLEAVED, RECORDED, judge, named_right
from tools.gate_proof.noise import Design, Noise, draw_side
from tools.gate_proof.runs import Values, with_values

CELLS = 8  # of a suite, as many as the demo has
IN_TURN = Design(interleaved=True, processes=REPEATS)  # the default of `gate --against`
APART = Design(interleaved=False, processes=3)  # the demo's protocol, recorded at another time
DESIGNS = {"in_turn": (IN_TURN, INTERLEAVED), "apart": (APART, RECORDED)}
CHUNK = 50  # suites


class Tally(msgspec.Struct, kw_only=True):
    """What became of the suites of one scenario."""

    suites: int = 0
    regressed: int = 0  # suites in which something regressed: falsely in equal ones
    elsewhere: int = 0  # slowed: suites in which an unslowed cell regressed
    named: int = 0  # slowed: suites in which the slowed cell regressed in its phase and no other
    inconclusive: int = 0  # suites without a regression in which something was inconclusive

    def add(self, other: Tally) -> None:
        """Count two parts of a scenario together."""
        for name in self.__struct_fields__:
            setattr(self, name, getattr(self, name) + getattr(other, name))


class Simulated(msgspec.Struct, kw_only=True):
    """All scenarios, as far as they have come."""

    noise: Noise  # what they were drawn from
    thresholds: str  # digest of the gate's thresholds and statistics: with others everything is drawn anew
    tallies: dict[str, Tally]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scenario:
    """Suites of one kind."""

    design: str  # key of DESIGNS
    every_row: bool = False  # resampled, as the product does; else those alone that have a say in a finding: faster
    size_pct: float = 0.0  # by how much one cell is slowed; 0: all are equal
    share_of: str = ""  # step or phase: what `size_pct` is a share of
    phase: str = ""

    @property
    def key(self) -> str:
        """As the JSON names it."""
        design = f"{self.design}/every_row" if self.every_row else self.design
        if not self.size_pct:
            return f"equal/{design}"
        return f"slowed/{design}/{self.share_of}/{self.phase}/{self.size_pct:g}"

    def factors(self, noise: Noise) -> dict[str, float]:
        """By how much each phase of the slowed cell takes longer."""
        if not self.size_pct:
            return {}
        name = f"{self.phase}_ms"
        level = noise.level_ms[noise.phases.index(name)]
        whole = sum(noise.level_ms) if self.share_of == "step" else level
        return {name: 1 + self.size_pct / 100 * whole / level}


def run_scenarios(
    path: Path, template: Entry, noise: Noise, wanted: dict[Scenario, int], *, tell: Callable[[str], None]
) -> Simulated:
    """Judge so many suites of each scenario, on all cores.

    Args:
        path: JSON of what is done; taken up again where the noise and the gate are the same.
        template: an entry whose cell the drawn ones take.
        noise: what to draw from.
        wanted: suites by scenario, rounded up to whole chunks.
        tell: takes progress.

    Raises:
        RecordError: the file cannot be read or written.
    """
    simulated = _resume(path, noise)
    left = list(_chunks(simulated, wanted))
    done, total = 0, len(left)
    # A fresh interpreter each: a fork of one with torch's threads may hang.
    with ProcessPoolExecutor(max_workers=usable_cores(), mp_context=get_context("spawn")) as pool:
        waiting = {pool.submit(run_chunk, template, noise, scenario, number): scenario for scenario, number in left}
        try:
            for future in as_completed(waiting):
                simulated.tallies.setdefault(waiting[future].key, Tally()).add(future.result())
                done += 1
                if done % 10 == 0 or done == total:
                    write_atomic(path, msgspec.json.format(msgspec.json.encode(simulated), indent=1), replace=True)
                    tell(f"[{done}/{total}] chunks of {CHUNK} simulated suites")
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return simulated


def run_chunk(template: Entry, noise: Noise, scenario: Scenario, number: int) -> Tally:
    """One chunk of a scenario; the same arguments give the same tally."""
    seed = int.from_bytes(hashlib.sha256(f"{scenario.key} {number}".encode()).digest()[:8], "little")
    rng = np.random.default_rng(seed)
    design, policy = DESIGNS[scenario.design]
    policy = dataclasses.replace(policy, resample_all=scenario.every_row)
    equal: list[dict[str, float]] = [{} for _ in range(CELLS)]
    slowed = [scenario.factors(noise), *equal[1:]]
    tally = Tally()
    for _ in range(CHUNK):
        before = suite(template, draw_side(noise, design, CELLS, equal, rng))
        after = suite(template, draw_side(noise, design, CELLS, slowed, rng))
        finding = judge(after, before, policy)
        if design.interleaved and finding.suspects:
            for side, factors in ((before, equal), (after, slowed)):
                measure_again(side, finding.suspects, suite(template, draw_side(noise, design, CELLS, factors, rng)))
            finding = judge(after, before, policy)
        tally.suites += 1
        if not scenario.size_pct:
            tally.regressed += bool(finding.regressed)
        else:
            own = finding.of_cell(after[0])
            tally.regressed += bool(own.regressed)
            tally.named += named_right(own, scenario.phase)
            tally.elsewhere += len(finding.regressed) > len(own.regressed)
        tally.inconclusive += bool(finding.inconclusive) and not finding.regressed
    return tally


def measure_again(side: list[Entry], cells: list[str], again: list[Entry]) -> None:
    """Join what was drawn anew to the cells of these names, as ``gate --against`` joins its runs."""
    for place, (entry, more) in enumerate(zip(side, again, strict=True)):
        if cell_label(entry) in cells:
            side[place] = merge([entry, more])


def suite(template: Entry, cells: list[Values]) -> list[Entry]:
    """Drawn samples as the entries of a suite's cells, each with a configuration of its own, as matching needs."""
    entries = []
    for place, values in enumerate(cells):
        variant = f"cell{place}"
        config = template.config | {"variant_name": variant}
        entries.append(
            dataclasses.replace(
                with_values(template, values), variant=variant, config=config, config_digest=config_digest(config)
            )
        )
    return entries


def _chunks(simulated: Simulated, wanted: dict[Scenario, int]) -> Iterator[tuple[Scenario, int]]:
    for scenario, suites in wanted.items():
        done = simulated.tallies.get(scenario.key, Tally()).suites
        yield from ((scenario, number) for number in range(done // CHUNK, -(-suites // CHUNK)))


def _resume(path: Path, noise: Noise) -> Simulated:
    digest = gate_digest()
    if path.exists():
        earlier = read_simulated(path)
        if earlier.noise == noise and earlier.thresholds == digest:
            return earlier
    return Simulated(noise=noise, thresholds=digest, tallies={})


def read_simulated(path: Path) -> Simulated:
    """Read what an earlier call drew.

    Raises:
        RecordError: the file cannot be read or is damaged.
    """
    try:
        return msgspec.json.decode(read_bytes(path), type=Simulated)
    except msgspec.MsgspecError as error:
        raise RecordError(f"{show_path(path)} is damaged ({error}): delete it, and it is drawn anew.") from error


def gate_digest() -> str:
    """Sixteen hex digits of the gate's own source and of what draws for it."""
    import bench.gating

    folders = (Path(bench.gating.__file__).parent, Path(__file__).parent)
    files = [file for folder in folders for file in sorted(folder.glob("*.py")) if file.name not in _NOT_JUDGING]
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]


_NOT_JUDGING = ("__main__.py", "goals.py", "report.py", "real.py", "planted.py")
