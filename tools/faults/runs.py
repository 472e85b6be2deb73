"""Suites of the campaign as real processes: started, awaited, killed; and what their folders hold afterwards."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench.records.schema import RunRecord
from bench.records.store import find_records

VARIANTS = ("fp32", "uint8_int8", "metagrad_int4_recompute", "metagrad_int8_tabulate")
NETS = "tools.faults.nets"
LONGEST_S = 600.0  # of one suite
_SMALL = (
    "model=custom", "suite_name=faults", "device=cpu", "protocol=tiny", "hypernet.hidden=4", "data.train_limit=512",
    "data.test_limit=64", "protocol.batch_size=16", "protocol.pretrain_epochs=2", "protocol.epochs=8",
    "protocol.passes=[timing,accuracy]", "protocol.checkpoint_s=0.2", "protocol.threads=1",
)  # fmt: skip
_POLL_S = 0.05


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
        factories = ",".join(f"{NETS}:{name}" for name in nets)
        command = [
            sys.executable, "-P", "-m", "tools.cli", "run", "--multirun", *_SMALL, f"variant={','.join(variants)}",
            f"model.factory={factories}", f"seed={seed}", f"output_dir={output}", *settings,
        ]  # fmt: skip
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
            preexec_fn=prepare,
        )  # fmt: skip
        self.output = ""

    def wait(self, timeout_s: float = LONGEST_S) -> int | None:
        """The exit code; None if it still runs after so long."""
        try:
            self.output, _ = self.process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return None
        return self.process.returncode

    def wait_for(self, condition: Callable[[], bool]) -> bool:
        """Whether something came true while it ran."""
        deadline = time.monotonic() + LONGEST_S
        while self.process.poll() is None and time.monotonic() < deadline:
            if condition():
                return True
            time.sleep(_POLL_S)
        return condition()

    def kill(self) -> float:
        """End the parent alone, as the kernel would; answers the seconds until all its children were gone too."""
        self.process.kill()
        self.process.wait()
        gone_s = self.wait_until_gone()
        if self.process.stdout is not None:
            with self.process.stdout:
                self.output = self.process.stdout.read()
        return gone_s

    def wait_until_gone(self) -> float:
        """The seconds, counted from now, until no process of the session is left."""
        started = time.monotonic()
        while self.left() and time.monotonic() - started < LONGEST_S:
            time.sleep(_POLL_S)
        return time.monotonic() - started

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to all processes of the group."""
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.killpg(self.process.pid, signal.SIGINT)

    def left(self) -> list[int]:
        """Processes of the session that are alive."""
        alive = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                fields = (entry / "stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":
                alive.append(int(entry.name))
        return alive


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
