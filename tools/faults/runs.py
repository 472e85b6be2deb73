"""Suites of the campaign as real processes: started, awaited, killed; and what their folders hold afterwards.

No moment and no limit is a time on the clock, which says little on a machine that others use: all are CPU seconds of
the suite's processes, also how long they outlive it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import functools
import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.records.find import find_records
from bench.records.schema import RunRecord

VARIANTS = ("fp32", "uint8_int8", "metagrad_int4_recompute", "metagrad_int8_tabulate")
NETS = "tools.faults.nets"
LONGEST_CPU_S = 900.0  # of one suite; undisturbed it takes less than a tenth
LONGEST_STILL_S = 1800.0  # without a tick of CPU time: it will not go on
_SMALL = (
    "model=custom", "suite_name=faults", "device=cpu", "protocol=tiny", "hypernet.hidden=4", "data.train_limit=512",
    "data.test_limit=64", "protocol.batch_size=16", "protocol.pretrain_epochs=2", "protocol.epochs=8",
    "protocol.passes=[timing,accuracy]", "protocol.checkpoint_s=0.2", "protocol.threads=1",
)  # fmt: skip
_POLL_S = 0.1
_PROBE_CPU_S = 0.3
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_prctl = ctypes.CDLL(None).prctl  # looked up before any fork
_TICKS = os.sysconf("SC_CLK_TCK")


class Suite:
    """One `metagrad-bench run` in a session of its own."""

    def __init__(
        self,
        output: Path,
        *,
        seed: int = 0,
        variants: Sequence[str] = VARIANTS,
        nets: Sequence[str] = ("SmallNet",),
        settings: Sequence[str] = (),
        prepare: Callable[[], None] | None = None,
    ) -> None:
        """Start it.

        Args:
            output: where records go.
            seed: of all cells.
            variants: one cell each, times the nets.
            nets: classes of ``tools.faults.nets``.
            settings: more of the command line.
            prepare: called in the new process, to set limits.
        """
        command = _command(output, seed, variants, nets, settings)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            preexec_fn=functools.partial(_begin, prepare),
        )  # fmt: skip
        self.cpu_s = 0.0  # of all its processes, as far as it was looked at
        self._said: list[str] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    @property
    def output(self) -> str:
        """What it has printed."""
        return "".join(self._said)

    def wait(self, cpu_s: float = math.inf) -> int | None:
        """The exit code; None if it still runs after so many CPU seconds."""
        self.wait_for(lambda: self.cpu_s >= cpu_s)
        if self.process.poll() is None:
            return None
        self._reader.join(LONGEST_STILL_S)  # its children may print their last
        return self.process.returncode

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Whether something came true while it ran; one that stands still or takes far too long is killed."""
        changed = time.monotonic()
        while self.process.poll() is None:
            cpu_s = self._measure_cpu_s()
            if cpu_s > self.cpu_s:
                self.cpu_s, changed = cpu_s, time.monotonic()
            if condition():
                return True
            if cpu_s > LONGEST_CPU_S or time.monotonic() - changed > LONGEST_STILL_S:
                self.kill()
            time.sleep(_POLL_S)
        return condition()

    def kill(self) -> float:
        """End the parent alone, as the kernel would; answers what its children did until they were gone too."""
        self.process.kill()
        self.process.wait()
        outlived_s = self.wait_until_gone()
        self._reader.join(LONGEST_STILL_S)
        return outlived_s

    def wait_until_gone(self) -> float:
        """CPU seconds that processes of the session take, from now until none is left; infinite where one stays."""
        first = {pid: ticks for pid, _, ticks, _ in self._processes()}
        last, changed = dict(first), time.monotonic()
        while self.left():
            now = {pid: ticks for pid, _, ticks, _ in self._processes()}
            if any(ticks > last.get(pid, 0) for pid, ticks in now.items()):
                changed = time.monotonic()
            last |= now
            if time.monotonic() - changed > LONGEST_STILL_S or _taken_s(first, last) > LONGEST_CPU_S:
                return math.inf
            time.sleep(_POLL_S)
        return _taken_s(first, last)

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to all processes of the group."""
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.killpg(self.process.pid, signal.SIGINT)

    def left(self) -> list[int]:
        """Processes of the session that are alive."""
        return [pid for pid, state, *_ in self._processes() if state != "Z"]

    def _measure_cpu_s(self) -> float:
        """CPU seconds of the session's processes and of those children that they have waited for."""
        return sum(own + children for _, _, own, children in self._processes()) / _TICKS

    def _processes(self) -> Iterator[tuple[int, str, int, int]]:
        """Number, state, own CPU ticks and those of ended children of each process of the session."""
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid:
                user, system, children_user, children_system = map(int, fields[11:15])
                yield int(entry.name), fields[0], user + system, children_user + children_system

    def _read(self) -> None:
        assert self.process.stdout is not None, "the suite was started with a pipe"
        with self.process.stdout:
            self._said.extend(self.process.stdout)


def _command(
    output: Path, seed: int, variants: Sequence[str], nets: Sequence[str], settings: Sequence[str]
) -> list[str]:
    factories = ",".join(f"{NETS}:{name}" for name in nets)
    return [
        sys.executable, "-P", "-m", "tools.cli", "run", "--multirun", *_SMALL, f"variant={','.join(variants)}",
        f"model.factory={factories}", f"seed={seed}", f"output_dir={output}", *settings,
    ]  # fmt: skip


def _begin(prepare: Callable[[], None] | None) -> None:
    """In the new process: end with the campaign, however that ends, and set limits."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if prepare is not None:
        prepare()


def _taken_s(before: Mapping[int, int], after: Mapping[int, int]) -> float:
    """CPU seconds between two looks at processes' ticks."""
    return sum(ticks - before.get(pid, 0) for pid, ticks in after.items()) / _TICKS


def slowness() -> float:
    """How many times longer work takes here now than on an idle core; 1 or more."""
    started, cpu_started = time.perf_counter(), time.process_time()
    while time.process_time() - cpu_started < _PROBE_CPU_S:
        pass
    return max(1.0, (time.perf_counter() - started) / _PROBE_CPU_S)


def records_in(output: Path) -> tuple[dict[tuple[Any, ...], RunRecord], list[str]]:
    """Records by variant, network and seed; and what is wrong with the folder: files that do not read, duplicates."""
    if not output.exists():
        return {}, []
    found, problems = find_records([output])
    wrong = [problem.reason for problem in problems]
    records: dict[tuple[Any, ...], RunRecord] = {}
    for item in found:
        identity = (item.record.variant, item.record.cell["model"]["factory"], item.record.seed)
        if identity in records:
            wrong.append(f"{identity} is there twice: {item.path}")
        records[identity] = item.record
    return records, wrong


def differences(record: RunRecord, twin: RunRecord) -> list[str]:
    """In what a cell's training differs from its undisturbed twin's, times apart: nothing, if all is well."""
    name = f"{record.variant} seed {record.seed}"
    if record.status != "ok" or record.accuracy is None or twin.accuracy is None:
        return [f"{name} is {record.status} ({record.reason}), its twin {twin.status}"]
    one, other = (
        dataclasses.replace(accuracy, curve=tuple(dataclasses.replace(point, seconds=0.0) for point in accuracy.curve))
        for accuracy in (record.accuracy, twin.accuracy)
    )
    fields = [field.name for field in dataclasses.fields(one)]
    return [f"{name}: {field} differs" for field in fields if getattr(one, field) != getattr(other, field)]
