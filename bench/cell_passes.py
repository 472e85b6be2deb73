"""Runs the passes of one cell, each in a fresh process, and keeps account of what became of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

from bench.config import CellConfig
from bench.journal import Journal
from bench.locks import device_lock
from bench.process import PassOutcome, run_pass
from bench.profilers.nvml_sampler import NvmlSampler
from bench.progress import SuiteProgress
from bench.records.schema import STATUSES, Status
from bench.timing_summary import with_device_state

_VERBS = ("took ", "ran ", "was ", "did not ", "has no ")  # with which an outcome's reason may begin


@dataclass(slots=True, kw_only=True)
class CellPasses:
    """The passes of one cell: answers kept by an earlier run, the device's lock, limits, and what went wrong."""

    cell: CellConfig
    device: str
    progress: SuiteProgress
    journal: Journal
    spent_s: float = 0.0  # in passes of this run
    statuses: list[tuple[Status, str]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)  # parts without a result, and why
    tracebacks: list[str] = field(default_factory=list)

    def run(
        self,
        part: str,
        function: Callable[..., Any],
        *,
        keep: str | None = None,
        watcher: NvmlSampler | None = None,
        **arguments: Any,
    ) -> Any:
        """One pass under the device's lock, watched from here; None without any answer, the reason under `part`.

        Its answer is kept under the name `keep` until the record is written, and taken from there in a later run.
        """
        outcome = self.journal.read(keep, function) if keep is not None else None
        if outcome is None:
            outcome = self._run_now(function, watcher, {"cell": self.cell, "device": self.device} | arguments)
            if keep is not None:
                self.journal.write(keep, outcome)
        self.progress.finish_pass()
        if outcome.status != "ok":
            self._note(part, outcome)
        return outcome.value

    def verdict(self) -> tuple[Status, str]:
        """The worst of what the passes came to, and why; "ok" where all went well."""
        if not self.statuses:
            return "ok", ""
        return max(self.statuses, key=lambda entry: STATUSES.index(entry[0]))

    def _run_now(
        self, function: Callable[..., Any], watcher: NvmlSampler | None, arguments: dict[str, Any]
    ) -> PassOutcome:
        protocol = self.cell.protocol
        limit_s, limit_name = protocol.pass_limit_s, "protocol.pass_limit_s"
        if protocol.cell_limit_s is not None and protocol.cell_limit_s - self.spent_s < limit_s:
            limit_s, limit_name = protocol.cell_limit_s - self.spent_s, "what was left of protocol.cell_limit_s"
        if limit_s <= 0:
            reason = f"did not begin: protocol.cell_limit_s={protocol.cell_limit_s:g} seconds were over"
            return PassOutcome(status="timed_out", reason=reason, value=None, traceback="", duration_s=0.0)

        def show(update: dict[str, Any]) -> None:
            self.progress.update(**update)

        waiting = f"waiting: another pass holds {self.device}"
        with device_lock(self.device, on_wait=lambda: self.progress.update(waiting)), watcher or nullcontext():
            outcome = run_pass(
                function, arguments, limit_s=limit_s, limit_name=limit_name,
                silence_limit_s=protocol.silence_limit_s, on_progress=show,
                on_start=watcher.watch_process if watcher is not None else lambda pid: None,
            )  # fmt: skip
        self.spent_s += outcome.duration_s
        if watcher is not None and outcome.value is not None:
            outcome = dataclasses.replace(outcome, value=with_device_state(outcome.value, watcher.state()))
        return outcome

    def _note(self, part: str, outcome: PassOutcome) -> None:
        reason = f"the {part} pass {outcome.reason}" if outcome.reason.startswith(_VERBS) else outcome.reason
        self.statuses.append((outcome.status, reason))
        self.missing.setdefault(part, reason)
        if outcome.traceback:
            self.tracebacks.append(f"--- {part} pass\n{outcome.traceback}")
