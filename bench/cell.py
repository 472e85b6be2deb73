"""One cell: config → passes in fresh processes → record. A failure becomes a record too, so that the others go on."""

from __future__ import annotations

import dataclasses
import datetime as dt
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from bench import native, passes
from bench.cell_folder import CellFiles, fetch_spare, find_finished, only_here, save
from bench.config import FLOAT_BITS, CellConfig, as_plain
from bench.files import DamagedFileError, remove_leftovers
from bench.hardware.environment import fingerprint, read_environment
from bench.hardware.probe import resolve_device
from bench.journal import Journal
from bench.keys import cell_folder, cell_key, code_version, weights_path
from bench.layers.dispatch import Paths
from bench.locks import device_lock
from bench.methods import describe
from bench.outcome import AccuracyAnswer
from bench.process import PassOutcome, run_pass
from bench.profilers.base import PHASES
from bench.profilers.nvml_sampler import NvmlSampler
from bench.progress import SuiteProgress, current
from bench.pulse import CellPulse
from bench.quantizers import PUBLISHED_FOR_ERRORS
from bench.records.schema import (
    FINISHED,
    SCHEMA_VERSION,
    STATUSES,
    AccuracyResult,
    Ceilings,
    HypernetPoint,
    HypernetResult,
    HypernetSurface,
    MemoryResult,
    ProfileResult,
    RunRecord,
    Status,
    TimingRepeat,
    TimingResult,
)
from bench.timing_summary import (
    busy_notices,
    difference,
    memory_notices,
    timing_notices,
    timing_result,
    with_device_state,
)
from bench.training.assemble import as_fp32, for_pretraining, without_hypernet
from bench.training.checkpoint import unseal_weights
from bench.units import Absent

_VERBS = ("took ", "ran ", "was ", "did not ", "has no ")  # with which an outcome's reason may begin
SNAPSHOT_FILE = "memory_snapshot.pickle"
TRACE_FOLDER = "trace"
_MEASURED = ("timing", "memory", "profile", "accuracy", "hypernet")


def locate(cell: CellConfig) -> tuple[Path, str]:
    """Folder and key of a cell on this machine."""
    return _place(cell, _fingerprint(cell))


def locate_all(cells: Sequence[CellConfig]) -> list[Path]:
    """Folders of a command's cells; the machine is looked at once for all that run on it alike."""
    prints: dict[tuple[str, int | None], str] = {}
    folders = []
    for cell in cells:
        alike = (cell.device, cell.protocol.threads)
        if alike not in prints:
            prints[alike] = _fingerprint(cell)
        folders.append(_place(cell, prints[alike])[0])
    return folders


def is_settled(cell: CellConfig, folder: Path) -> bool:
    """Whether a cell's finished record is there, nothing waits to be cleaned up, and nobody asks for a fresh one."""
    waiting = (folder.with_name(f".{folder.name}.{kind}") for kind in ("resume", "files"))
    return not cell.fresh and find_finished(folder) is not None and not any(map(os.path.lexists, waiting))


def _place(cell: CellConfig, machine: str) -> tuple[Path, str]:
    key = cell_key(cell, fingerprint=machine)
    return cell_folder(cell, key), key


def _fingerprint(cell: CellConfig) -> str:
    return fingerprint(_environment(cell, resolve_device(cell.device)))


def run_cell(cell: CellConfig) -> RunRecord:
    """Run a cell's passes and write its record; answers the earlier record where there is a finished one.

    Raises:
        RecordError: the record could not be written.
        KeyboardInterrupt: Ctrl-C; finished passes and the training's checkpoint are kept for the next run.
    """
    device = resolve_device(cell.device)
    folder, key = locate(cell)
    progress = current(cell.progress)
    with only_here(folder, on_wait=lambda: progress.update(f"waiting: another run measures {folder.name}")):
        fetch_spare(folder)
        run = _CellRun(
            cell=cell, device=str(device), progress=progress, folder=folder,
            journal=Journal(folder.with_name(f".{folder.name}.resume"), owner=f"{key} {device}"),
        )  # fmt: skip
        earlier = find_finished(folder)
        if earlier is not None and not cell.fresh:
            run.clean_up(earlier)  # a run may have been killed before it did
            progress.skip_cell(folder.name)
            return earlier
        if cell.fresh:
            run.journal.remove()
        with CellPulse(folder, cell, device=str(device)) as progress.pulse:
            record = run.measure(key)
            save(folder, run.left(record))
        run.clean_up(record)
    progress.finish_cell(record.status if not record.reason else f"{record.status}: {record.reason}")
    return record


def count_passes(cell: CellConfig) -> int:
    """How many fresh processes a cell takes, for the progress bar."""
    chosen = cell.protocol.passes
    count = 1 + (cell.protocol.pretrain_epochs > 0)
    count += cell.protocol.timing_processes * ("timing" in chosen)
    count += (2 + (cell.method.grad_quantizer == "hypernet")) * ("memory" in chosen)
    count += (1 + (_ceilings_key(cell, str(resolve_device(cell.device))) not in _ceilings)) * ("profile" in chosen)
    return count + ("accuracy" in chosen)


# Of each device, by its number of threads: a process that runs a whole suite measures them once.
_ceilings: dict[tuple[str, int | None], Ceilings] = {}


def _ceilings_key(cell: CellConfig, device: str) -> tuple[str, int | None]:
    return device, cell.protocol.threads


@dataclass(slots=True, kw_only=True)
class _CellRun:
    """The passes of one cell and what they answered."""

    cell: CellConfig
    device: str
    progress: SuiteProgress
    folder: Path
    journal: Journal
    spent_s: float = 0.0  # in passes of this run
    weights: str | None = None
    paths: Paths = field(default_factory=dict)  # what dispatch=auto chose
    statuses: list[tuple[Status, str]] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)
    tracebacks: list[str] = field(default_factory=list)
    losses: tuple[float, ...] = ()
    hypernet_points: tuple[HypernetPoint, ...] = ()
    surface: HypernetSurface | None = None

    def measure(self, key: str) -> RunRecord:
        cell = self.cell
        started_at = dt.datetime.now(dt.UTC).isoformat(timespec="seconds")
        start = time.monotonic()
        environment = _environment(cell, torch.device(self.device))
        self.progress.start_cell(f"{cell.variant_name} {cell.model.name} {cell.data.name}", count_passes(cell))
        check: passes.CheckAnswer | None = self._run("check", passes.check_pass, keep="check")
        self.paths = check.paths if check is not None else {}
        accuracy = timing = memory = profile = hypernet = None
        if check is None:
            reason = self.missing["check"]
            self.missing = dict.fromkeys(("model", "data", "gemms", *_MEASURED), reason)
        elif self._pretrain():
            timing = self._timing()
            memory = self._memory()
            profile = self._profile()
            accuracy, observed = self._accuracy(check)
            hypernet = self._hypernet(check, observed)
        status, reason = self._verdict()
        return RunRecord(
            schema_version=SCHEMA_VERSION,
            key=key,
            suite=cell.suite_name,
            variant=cell.variant_name,
            model_name=cell.model.name,
            data_name=cell.data.name,
            seed=cell.seed,
            device=self.device,
            status=status,
            reason=reason,
            started_at=started_at,
            duration_s=round(time.monotonic() - start + self.journal.kept_s, 3),
            code_version=code_version(),
            fingerprint=fingerprint(environment),
            cell=as_plain(cell),
            environment=environment,
            method=describe(cell),
            model=check.model if check else None,
            data=check.data if check else None,
            accuracy=accuracy,
            timing=timing,
            memory=memory,
            hypernet=hypernet,
            gemms=check.gemms if check else None,
            missing=self.missing,
            notices=(
                *_notices(check, cell, self.device),
                *busy_notices(timing),
                *timing_notices(timing),
                *memory_notices(memory),
                *self.journal.sittings(),
                *self.notices,
                *self.journal.notices,
            ),
            profile=profile,
        )

    def files(self) -> Path:
        """Where passes leave files that belong beside the record; hidden until the record is written."""
        place = self._files_folder()
        place.mkdir(parents=True, exist_ok=True)
        return place

    def _files_folder(self) -> Path:
        return self.folder.with_name(f".{self.folder.name}.files")

    def left(self, record: RunRecord) -> CellFiles:
        """All that goes into the cell's folder."""
        return CellFiles(
            record=record,
            config_yaml=OmegaConf.to_yaml(OmegaConf.create(as_plain(self.cell))),
            losses=self.losses,
            hypernet_points=self.hypernet_points,
            surface=self.surface,
            tracebacks=tuple(self.tracebacks),
            made_by_passes=tuple(self._files_folder().glob("*")),
        )

    def clean_up(self, record: RunRecord) -> None:
        """The record is written: what waited for it goes; what an unfinished cell could go on from stays."""
        shutil.rmtree(self._files_folder(), ignore_errors=True)
        if record.status in FINISHED:
            self.journal.remove()

    def _run(
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

    def _start(self, part: str, function: Callable[..., Any], **arguments: Any) -> Any:
        """A pass over the model as it starts: with the FP32 weights and the paths chosen for it."""
        return self._run(part, function, weights=self.weights, paths=self.paths, **arguments)

    def _note(self, part: str, outcome: PassOutcome) -> None:
        reason = f"the {part} pass {outcome.reason}" if outcome.reason.startswith(_VERBS) else outcome.reason
        self.statuses.append((outcome.status, reason))
        self.missing.setdefault(part, reason)
        if outcome.traceback:
            self.tracebacks.append(f"--- {part} pass\n{outcome.traceback}")

    def _verdict(self) -> tuple[Status, str]:
        if not self.statuses:
            return "ok", ""
        return max(self.statuses, key=lambda entry: STATUSES.index(entry[0]))

    def _pretrain(self) -> bool:
        """Make sure that the shared FP32 weights are there; False if they could not be made."""
        if self.cell.protocol.pretrain_epochs == 0:
            return True
        device_type = self.device.split(":")[0]
        path = weights_path(for_pretraining(self.cell), device_type=device_type)
        waiting = f"waiting: another run trains {path.name}"
        with only_here(path, on_wait=lambda: self.progress.update(waiting)):
            remove_leftovers(path)
            stored = self._stored_weights(path)
            if stored is not None:
                self.progress.finish_pass()
            else:
                resume = path.with_name(f".{path.name}.resume")
                self._run("pretraining", passes.pretrain_pass, target=str(path), resume=str(resume))
        if not path.is_file():
            why = self.missing.pop("pretraining", "their file is gone again")  # with the output folder
            reason = f"there are no FP32 weights to start from: {why}"
            self.missing |= dict.fromkeys(_MEASURED, reason)
            return False
        self.weights = str(path)
        with suppress(DamagedFileError, OSError):  # the passes that start from them say so
            stored = stored or unseal_weights(path)
            self.notices.extend(f"FP32 weights: {notice}" for notice in stored["notices"])
        return True

    def _stored_weights(self, path: Path) -> dict[str, Any] | None:
        """The shared weights, None where there are none; a damaged file is set aside and trained again."""
        try:
            return unseal_weights(path)
        except FileNotFoundError:
            return None
        except (DamagedFileError, OSError) as error:
            why = getattr(error, "strerror", None) or error
            self.notices.append(f"The FP32 weights {path.name} were damaged ({why}) and have been trained again.")
            with suppress(OSError):
                path.replace(path.with_name(f"{path.name}.damaged"))
            return None

    def _timing(self) -> TimingResult | None:
        if not self._wanted("timing"):
            return None
        protocol = self.cell.protocol
        repeats: list[TimingRepeat] = []
        for repeat in range(protocol.timing_processes):
            watcher = NvmlSampler(torch.device(self.device))
            answer = self._start(
                "timing", passes.timing_pass, keep=f"timing {repeat + 1}", watcher=watcher, repeat=repeat,
                energy_window_s=protocol.energy_window_s if watcher.counts_energy() else 0.0,
            )  # fmt: skip
            if answer is not None:
                repeats.append(answer)
            if "timing" in self.missing:
                break  # what there is stands in the record: its reason says that it is not all
        if not repeats:
            return None
        self.missing.pop("timing", None)
        return timing_result(repeats, batch_size=protocol.batch_size, warmup_steps=protocol.warmup_steps)

    def _memory(self) -> MemoryResult | None:
        if not self._wanted("memory"):
            return None
        snapshot = str(self.files() / SNAPSHOT_FILE) if self.device.startswith("cuda") else None
        plain = without_hypernet(self.cell) if self.cell.method.grad_quantizer == "hypernet" else None
        own = self._start(
            "memory", passes.memory_pass, keep="memory", name="of the cell", snapshot=snapshot, beside=plain
        )
        fp32_cell = as_fp32(self.cell)
        fp32 = self._start("memory", passes.memory_pass, keep="memory of FP32", cell=fp32_cell, name="of FP32")
        without = None
        if plain is not None:
            name = "without hypernetwork"
            without = self._start(
                "memory", passes.memory_pass, keep=f"memory {name}", cell=plain, name=name, beside=self.cell
            )
        if own is None or fp32 is None:
            return None
        return memory_result(own, fp32, without)

    def _profile(self) -> ProfileResult | None:
        if not self._wanted("profile"):
            return None
        key = _ceilings_key(self.cell, self.device)
        if key not in _ceilings:
            measured = self._run("profile", passes.ceilings_pass)
            if measured is None:
                return None
            _ceilings[key] = measured
        folder = str(self.files() / TRACE_FOLDER)
        return self._start("profile", passes.profile_pass, keep="profile", ceilings=_ceilings[key], folder=folder)

    def _accuracy(self, check: passes.CheckAnswer) -> tuple[AccuracyResult | None, dict[str, float | Absent]]:
        if not self._wanted("accuracy"):
            return None, {}
        answer: AccuracyAnswer | None = self._start(
            "accuracy", passes.accuracy_pass, keep="accuracy",
            resume=(str(self.journal.checkpoints), self.journal.owner),
        )  # fmt: skip
        if answer is None:
            return None, {}
        self.notices.extend(answer.fit.notices)
        self.losses = answer.fit.losses
        self.hypernet_points = answer.fit.hypernet
        self.surface = answer.surface
        if isinstance(answer.accuracy_pct, Absent):
            self.missing.setdefault("accuracy", answer.accuracy_pct.reason)
            if check.data.synthetic:
                return None, answer.observed
        if not answer.fit.curve:
            return None, answer.observed
        last = answer.fit.curve[-1]
        result = AccuracyResult(
            test_accuracy_pct=answer.accuracy_pct,
            pretrained_accuracy_pct=answer.pretrained_pct,
            final_train_loss=last.train_loss,
            epochs=len(answer.fit.curve),
            steps=len(answer.fit.losses),
            curve=answer.fit.curve,
            losses_digest=answer.fit.losses_digest,
            weights_digest=answer.weights_digest,
            error_bits_used=answer.error_bits_used,
        )
        return result, answer.observed

    def _hypernet(self, check: passes.CheckAnswer, observed: dict[str, float | Absent]) -> HypernetResult | None:
        if self.cell.method.grad_quantizer != "hypernet":
            self.missing["hypernet"] = "the method has no hypernetwork"
            return None
        unseen = Absent(reason=self.missing.get("accuracy", "the accuracy pass did not run"))
        exact = self.cell.strategy.name != "tabulate"
        unsampled = Absent(reason="the strategy is exact") if exact else unseen
        return HypernetResult(
            num_parameters=check.hypernet_parameters,
            amplification=observed.get("amplification", unseen),
            cosine=observed.get("cosine", unseen),
            zero_share_pct=_percent(observed.get("zero_share", unseen)),
            meta_grad_norm=observed.get("meta_grad_norm", unseen),
            interpolation_error=observed.get("interpolation_error", unsampled),
            same_codes_pct=_percent(observed.get("same_codes", unsampled)),
            meta_angle_deg=observed.get("meta_angle_deg", unsampled),
        )

    def _wanted(self, part: str) -> bool:
        if part in self.cell.protocol.passes:
            return True
        self.missing[part] = f"protocol.passes leaves the {part} pass out"
        return False


def memory_result(
    own: passes.MemoryAnswer, fp32: passes.MemoryAnswer, without: passes.MemoryAnswer | None
) -> MemoryResult:
    """The record's memory part from the passes of the cell, of FP32 and, if it has one, without the hypernetwork."""
    extra: dict[str, int | Absent] = dict.fromkeys(
        ("allocated", "process", "code"), Absent(reason="the method has no hypernetwork")
    )
    if without is not None:
        cold = difference(own.peaks.peak_process_bytes, without.peaks.peak_process_bytes)
        warm = difference(own.warm_process_bytes, without.warm_process_bytes)
        allocated = difference(own.peaks.peak_allocated_bytes, without.peaks.peak_allocated_bytes)
        extra = {"allocated": allocated, "process": warm, "code": difference(cold, warm)}
    ran = {phase.phase for phase in own.profile.phases}
    missing = {
        "data": "batches are drawn before the steps, so that the data set is no part of their peaks",
        "meta": "the method has no hypernetwork",
    }
    return MemoryResult(
        peak_allocated_bytes=own.peaks.peak_allocated_bytes,
        peak_reserved_bytes=own.peaks.peak_reserved_bytes,
        peak_process_bytes=own.peaks.peak_process_bytes,
        peak_device_bytes=own.peaks.peak_device_bytes,
        fp32_peak_allocated_bytes=fp32.peaks.peak_allocated_bytes,
        fp32_peak_process_bytes=fp32.peaks.peak_process_bytes,
        hypernet_extra_allocated_bytes=extra["allocated"],
        hypernet_extra_process_bytes=extra["process"],
        hypernet_bound_bytes=own.hypernet_bound_bytes,
        hypernet_untouched_bytes=own.untouched_bytes if without is not None else extra["allocated"],
        hypernet_code_bytes=extra["code"],
        phases=own.profile.phases,
        phases_missing={name: missing.get(name, "nothing ran in it") for name in PHASES if name not in ran},
        layers=own.profile.layers,
        snapshot=own.snapshot,
    )


def _environment(cell: CellConfig, device: torch.device) -> dict[str, Any]:
    """The environment as the passes will see it: their number of threads, not this process's."""
    ours = torch.get_num_threads()
    torch.set_num_threads(cell.protocol.threads or ours)
    try:
        return read_environment(device, elementwise=native.pieces(device))
    finally:
        torch.set_num_threads(ours)


def _percent(share: float | Absent) -> float | Absent:
    return share if isinstance(share, Absent) else 100 * share


def _notices(check: passes.CheckAnswer | None, cell: CellConfig, device: str) -> tuple[str, ...]:
    if check is None:
        return ()
    notices = []
    grad_quantizer, plain = cell.method.grad_quantizer, native.compiled()
    if check.gemms.label in ("integer", "emulated") and device == "cpu" and isinstance(plain, Absent):
        notices.append(
            f"The element-wise work around the products ran in plain torch, which is slower: {plain.reason}."
        )
    if cell.compact and cell.weight_bits != FLOAT_BITS:
        notices.append("compact: batch-norm's input was kept in bfloat16 for backward, which changes its gradient.")
    if check.gemms.label == "emulated":
        notices.append("INT4 values run in int8 containers (emulated): their speed is that of int8 products.")
    if check.gemms.label == "simulated":
        notices.append("Quantized values were multiplied in floating point (simulated).")
    if grad_quantizer in PUBLISHED_FOR_ERRORS:
        notices.append(f"The weight gradient is quantized by {grad_quantizer}, which was published for error signals.")
    if check.data.synthetic:
        notices.append("The data are synthetic: there is no accuracy to show.")
    return tuple(notices)
