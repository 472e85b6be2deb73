"""The campaign: what is done to running suites, and what has to hold afterwards.

Every finished cell is present once, every cell that was gone on with equals its undisturbed twin, nothing half-written
reads as whole, no process is left, and nothing was repaired by hand.
"""

from __future__ import annotations

import contextlib
import random
import resource
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from bench.records.schema import RunRecord
from tools.faults.damage import damage_something
from tools.faults.kept import Standing
from tools.faults.runs import VARIANTS, Suite, differences, records_in, slowness

KILLED_BEFORE = 0.5  # of the CPU seconds that an undisturbed suite takes
DAMAGE_EVERY = 4  # kills
GONE_WITHIN_S = 10.0  # CPU seconds of children after their parent's end; to go takes a second
SILENCE_S = 60.0  # without progress until a cell is ended, on an idle machine
ENDINGS = {"Segfault": "crashed", "Killed": "killed", "Hang": "timed_out", "EatMemory": "out_of_memory",
           "Diverge": "diverged", "SmallNet": "ok"}  # fmt: skip
_SMALL_DISK = "size=96k"
_SMALL_FILE_BYTES = 2000


class Campaign:
    """Runs scenarios in a folder and counts; what is counted is kept after each, so that it can be gone on with."""

    def __init__(self, folder: Path, *, kills: int, seed: int, done: Iterable[Standing] = ()) -> None:
        """Start with nothing done, or where an earlier run stopped.

        Args:
            folder: to work in; of a new campaign, empty.
            kills: how many suites are killed.
            seed: of all moments and choices.
            done: how scenarios stand.
        """
        self.folder = folder
        self.kills = kills
        self.seed = seed
        self.standings = {standing.name: standing for standing in done}
        self.now = Standing(name="")
        self.keep: Callable[[], None] = lambda: None

    def run(self, only: list[str], keep: Callable[[], None] = lambda: None) -> None:
        """Run scenarios by name, in the order of ``SCENARIOS``.

        Args:
            only: these.
            keep: called where the campaign could be gone on with.
        """
        self.keep = keep
        for name, scenario in SCENARIOS.items():
            if name not in only or (name in self.standings and self.standings[name].ended):
                continue
            self.now = self.standings.setdefault(name, Standing(name=name))
            if not self.now.resumable:
                self.standings[name] = self.now = Standing(name=name)
                shutil.rmtree(self.folder / name, ignore_errors=True)
            started, before_s = time.monotonic(), self.now.elapsed_s
            try:
                scenario(self, self.folder / name)
                self.now.ended = True
            except Exception as error:  # noted, and raised again
                self.now.wrong.append(f"{name} broke off with {type(error).__name__}: {error}")
                raise
            finally:
                self.now.elapsed_s = round(before_s + time.monotonic() - started, 1)
                keep()
            say(f"{name}: done after {self.now.elapsed_s:.0f} s, {len(self.wrong)} things wrong so far")

    @property
    def counts(self) -> Counter[str]:
        """Of the scenario under way."""
        return self.now.counts

    @property
    def wrong(self) -> list[str]:
        """Of all scenarios."""
        return [sentence for standing in self.standings.values() for sentence in standing.wrong]

    def total(self) -> Counter[str]:
        """Counts of all scenarios."""
        return sum((standing.counts for standing in self.standings.values()), Counter())

    def expect(self, holds: bool, sentence: str) -> None:
        """Note what does not hold."""
        if not holds:
            self.now.wrong.append(sentence)
            say(f"WRONG: {sentence}")

    def check_folder(self, output: Path, after: str) -> dict[tuple[object, ...], RunRecord]:
        """Every record reads, and is there once."""
        records, wrong = records_in(output)
        self.now.wrong += [f"after {after}: {sentence}" for sentence in wrong]
        return records

    def finish(self, output: Path, seed: int, after: str) -> None:
        """Run a suite to its end, whatever was done to it, and compare its cells with their twins."""
        suite = Suite(output, seed=seed)
        code = suite.wait()
        self.expect(code == 0, f"after {after}, the suite ended with {code}: {suite.output[-1500:]}")
        records = {key: value for key, value in self.check_folder(output, after).items() if key[-1] == seed}
        self.expect(len(records) == len(VARIANTS), f"after {after}, {len(records)} of {len(VARIANTS)} cells are there")
        twins = self.twins(seed)
        for identity, record in records.items():
            found = differences(record, twins[identity])
            self.expect(not found, f"after {after}: {'; '.join(found)}")
            self.counts["cells equal to their undisturbed twins"] += not found
            notices = " ".join(record.notices)
            self.counts["cells measured in several runs"] += "Measured in several runs" in notices
            self.counts["trainings that went on from a checkpoint"] += "went on after step" in notices
            self.counts["damaged checkpoints left for the one before"] += "left for the one before" in notices
            self.counts["damaged answers measured again"] += "so the pass ran again" in notices
            self.counts["damaged FP32 weights trained again"] += "have been trained again" in notices

    def twins(self, seed: int) -> dict[tuple[object, ...], RunRecord]:
        """The same cells, undisturbed; measured once."""
        output = self.folder / "twins"
        records = {key: value for key, value in records_in(output)[0].items() if key[-1] == seed}
        if len(records) < len(VARIANTS):
            suite = Suite(output, seed=seed)
            code = suite.wait()
            self.expect(code == 0, f"the undisturbed suite of seed {seed} ended with {code}: {suite.output[-1500:]}")
            records = {key: value for key, value in records_in(output)[0].items() if key[-1] == seed}
        return records


def kill_at_random_moments(campaign: Campaign, output: Path) -> None:
    """SIGKILL to the parent, again and again; now and then a file is damaged before the next start."""
    now = campaign.now
    if not now.resumable:
        shutil.rmtree(campaign.folder / "twins", ignore_errors=True)
        undisturbed = Suite(campaign.folder / "twins", seed=0)
        campaign.expect(undisturbed.wait() == 0, f"the undisturbed suite failed: {undisturbed.output[-1500:]}")
        now.resumable = {"seed": 0, "damaged_records": 0, "starts": 0, "suite_cpu_s": round(undisturbed.cpu_s, 1)}
    state = now.resumable
    while campaign.counts["suites killed"] < campaign.kills:
        campaign.keep()
        state["starts"] += 1
        chance = random.Random(f"{campaign.seed} {state['starts']}")
        before = campaign.check_folder(output, "a kill")
        suite = Suite(output, seed=int(state["seed"]))
        if suite.wait(chance.uniform(0, KILLED_BEFORE) * state["suite_cpu_s"]) is not None:
            campaign.expect(suite.process.returncode == 0, f"a suite ended by itself with {suite.process.returncode}")
            campaign.finish(output, int(state["seed"]), "kills")
            state["seed"] += 1
            continue
        outlived_s = suite.kill()
        campaign.expect(outlived_s < GONE_WITHIN_S, f"children outlived their parent by {outlived_s:.0f} CPU s")
        campaign.counts["suites killed"] += 1
        if campaign.counts["suites killed"] % 10 == 0:
            say(f"{campaign.counts['suites killed']} of {campaign.kills} suites killed")
        after = campaign.check_folder(output, "a kill")
        lost = [identity for identity in before if identity not in after]
        campaign.expect(not lost, f"a kill lost {lost}")
        if campaign.counts["suites killed"] % DAMAGE_EVERY == 0:
            damaged = damage_something(output, chance)
            if damaged is None:
                continue
            kind, path = damaged
            campaign.counts[f"files damaged: {kind}"] += 1
            if kind == "record":  # measured again at once: the next look must find all of them whole
                state["damaged_records"] += 1
                of_seed = int(path.parent.name.split("-seed")[1].split("-")[0])
                campaign.finish(output, of_seed, "damage to a record")
    campaign.finish(output, int(state["seed"]), "kills")
    aside = len(list(output.glob("faults/superseded/*/record.json")))
    campaign.expect(
        aside == state["damaged_records"], f"{aside} records were set aside, {state['damaged_records']} were damaged"
    )


def interrupt(campaign: Campaign, output: Path) -> None:
    """Ctrl-C once ends at a step's end with 130, twice at once; the same command goes on."""
    for times in (1, 2):
        before = checkpoints_in(output)
        suite = Suite(output, seed=0)
        training = suite.wait_for(lambda before=before: bool(checkpoints_in(output) - before))  # type: ignore[misc]
        campaign.expect(training, "no training was under way")
        for _ in range(times):
            suite.interrupt()
            time.sleep(0.2)
        code = suite.wait()
        campaign.expect(code == 130, f"Ctrl-C ended with {code}: {suite.output[-1000:]}")
        campaign.expect("Traceback" not in suite.output, f"Ctrl-C printed {suite.output[-1000:]}")
        gone_s = suite.wait_until_gone()
        campaign.expect(gone_s < GONE_WITHIN_S, f"children outlived an interrupted suite by {gone_s:.0f} CPU s")
        campaign.counts["suites interrupted"] += 1
    campaign.finish(output, 0, "Ctrl-C")


def two_in_one_folder(campaign: Campaign, output: Path) -> None:
    """A second suite in the same folder waits for cells under way; one of them is killed, the other finishes."""
    suites = [Suite(output, seed=0) for _ in range(2)]
    first_record = suites[0].wait_for(lambda: any(output.glob("faults/*/record.json")))
    campaign.expect(first_record, "two suites in one folder made no record")
    suites[0].kill()
    code = suites[1].wait()
    campaign.expect(code == 0, f"of two suites the one left ended with {code}: {suites[1].output[-1000:]}")
    campaign.finish(output, 0, "two suites in one folder")
    twice = [str(path) for path in output.glob("faults/superseded/*")]
    campaign.expect(not twice, f"two suites measured the same cell: {twice}")
    campaign.counts["suites beside another in one folder"] += 1


def end_badly(campaign: Campaign, output: Path) -> None:
    """Cells that crash, hang, exhaust memory or diverge become records with that status; the others go on."""
    silence_s = SILENCE_S * slowness()
    settings = (f"protocol.silence_limit_s={silence_s:.0f}", "protocol.passes=[accuracy]", "protocol.pretrain_epochs=0")
    suite = Suite(output, variants=("fp32",), nets=tuple(ENDINGS), settings=settings)
    code = suite.wait()
    campaign.expect(code == 1, f"a suite with cells that end badly ended with {code}: {suite.output[-1500:]}")
    records = campaign.check_folder(output, "bad endings")
    by_net = {str(factory).split(":")[1]: record for (_, factory, _), record in records.items()}
    for net, status in ENDINGS.items():
        record = by_net.get(net)
        found = record.status if record is not None else "missing"
        campaign.expect(found == status, f"{net} is {found}: {record.reason if record is not None else suite.output}")
        steps = record.accuracy.steps if record is not None and record.accuracy is not None else 0
        campaign.expect(steps > 0, f"{net} left no samples")
        campaign.expect(status == "ok" or f"{status} " in suite.output, f"the summary does not say that {net} {status}")
        campaign.counts[f"cells recorded as {status}"] += found == status


def fill_the_disk(campaign: Campaign, disk: Path) -> None:
    """A disk that is full, or a limit on the size of files where none can be mounted; then there is room again."""
    disk.mkdir()
    with small_disk(disk) as grow:
        limit = None if grow is not None else limit_file_size
        suite = Suite(disk / "out", seed=0, prepare=limit)
        code = suite.wait()
        campaign.expect(code == 1, f"a full disk ended the suite with {code}: {suite.output[-1500:]}")
        campaign.expect("Traceback" not in suite.output, f"a full disk printed {suite.output[-2500:]}")
        campaign.check_folder(disk / "out", "a full disk")
        campaign.counts["disks filled" if grow is not None else "disks filled (file-size limit)"] += 1
        if grow is not None:
            grow("remount,ro")
            suite = Suite(disk / "out", seed=0)
            code = suite.wait()
            campaign.expect(code in (1, 2), f"a read-only disk ended the suite with {code}: {suite.output[-1500:]}")
            campaign.expect("Traceback" not in suite.output, f"a read-only disk printed {suite.output[-2500:]}")
            campaign.counts["disks made read-only"] += 1
            grow("remount,rw,size=64m")
        campaign.finish(disk / "out", 0, "a full disk")


def take_the_folder_away(campaign: Campaign, output: Path) -> None:
    """The output folder vanishes under a suite; what comes after is written, the next run does the rest."""
    suite = Suite(output, seed=0)
    campaign.expect(suite.wait_for(lambda: any(output.glob("faults/*/record.json"))), "no record was written")
    shutil.rmtree(output, ignore_errors=True)
    suite.wait()
    campaign.expect("Traceback" not in suite.output, f"a vanished folder printed {suite.output[-2500:]}")
    campaign.check_folder(output, "a vanished folder")
    campaign.counts["output folders taken away"] += 1
    campaign.finish(output, 0, "a vanished folder")


def checkpoints_in(output: Path) -> set[Path]:
    """Checkpoints of trainings that have not come to their end."""
    return set(output.glob("faults/.*.resume/checkpoints/*.ckpt"))


@contextlib.contextmanager
def small_disk(place: Path) -> Iterator[Callable[[str], None] | None]:
    """Mount a few pages of memory as a disk; answers what changes its options, None where mounting is not allowed."""

    def mount(options: str) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
        with contextlib.suppress(OSError):
            return subprocess.run(command, capture_output=True, check=False).returncode == 0
        return False

    def change(options: str) -> None:
        if not mount(options):
            raise RuntimeError(f"the small disk cannot be mounted with {options}")

    if not mount(_SMALL_DISK):
        yield None
        return
    try:
        yield change
    finally:
        subprocess.run(["umount", str(place)], capture_output=True, check=False)


def limit_file_size() -> None:
    """Let files of this process and its children grow to a few lines."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (_SMALL_FILE_BYTES, resource.RLIM_INFINITY))


def say(text: str) -> None:
    """Print at once, with the time."""
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


SCENARIOS: dict[str, Callable[[Campaign, Path], None]] = {
    "endings": end_badly,
    "kills": kill_at_random_moments,
    "interrupts": interrupt,
    "shared": two_in_one_folder,
    "disk": fill_the_disk,
    "vanished": take_the_folder_away,
}
