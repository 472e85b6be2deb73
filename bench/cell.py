"""One cell: config → passes in fresh processes → record. A failure becomes a record too, so that the others go on."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from bench import native, passes
from bench.cell_folder import CellFiles, fetch_spare, find_finished, only_here, save
from bench.cell_passes import CellPasses
from bench.cell_results import accuracy_result, cell_notices, hypernet_result, memory_result
from bench.config import CellConfig, as_plain
from bench.hardware.environment import fingerprint, read_environment
from bench.hardware.probe import resolve_device
from bench.journal import Journal
from bench.keys import cell_folder, cell_key, code_version
from bench.layers.dispatch import Paths
from bench.methods import describe
from bench.outcome import AccuracyAnswer
from bench.privacy import without_host
from bench.profilers.nvml_sampler import NvmlSampler
from bench.progress import SuiteProgress, current
from bench.pulse import CellPulse
from bench.records.schema import (
    FINISHED,
    SCHEMA_VERSION,
    AccuracyResult,
    Ceilings,
    HypernetPoint,
    HypernetResult,
    HypernetSurface,
    MemoryResult,
    ProfileResult,
    RunRecord,
    TimingRepeat,
    TimingResult,
)
from bench.shared_weights import find_or_train
from bench.timing_summary import busy_notices, memory_notices, timing_notices, timing_result
from bench.training.assemble import as_fp32, without_hypernet
from bench.units import Absent

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
        with CellPulse(folder, cell, device=str(device)) as pulse:
            progress.pulse = pulse
            record = run.measure(key, pulse.started_at)
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
    """What the passes of one cell answered."""

    cell: CellConfig
    device: str
    progress: SuiteProgress
    folder: Path
    journal: Journal
    weights: str | None = None
    paths: Paths = field(default_factory=dict)  # what dispatch=auto chose
    notices: list[str] = field(default_factory=list)
    losses: tuple[float, ...] = ()
    hypernet_points: tuple[HypernetPoint, ...] = ()
    surface: HypernetSurface | None = None
    runs: CellPasses = field(init=False)

    def __post_init__(self) -> None:
        self.runs = CellPasses(cell=self.cell, device=self.device, progress=self.progress, journal=self.journal)

    def measure(self, key: str, started_at: str) -> RunRecord:
        cell = self.cell
        start = time.monotonic()
        environment = _environment(cell, torch.device(self.device))
        self.progress.start_cell(f"{cell.variant_name} {cell.model.name} {cell.data.name}", count_passes(cell))
        check: passes.CheckAnswer | None = self.runs.run("check", passes.check_pass, keep="check")
        self.paths = check.paths if check is not None else {}
        accuracy = timing = memory = profile = hypernet = None
        if check is None:
            reason = self.runs.missing["check"]
            self.runs.missing = dict.fromkeys(("model", "data", "gemms", *_MEASURED), reason)
        elif self._pretrain():
            timing = self._timing()
            memory = self._memory()
            profile = self._profile()
            accuracy, observed = self._accuracy(check)
            hypernet = self._hypernet(check, observed)
        status, reason = self.runs.verdict()
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
            reason=without_host(reason),
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
            missing={part: without_host(why) for part, why in self.runs.missing.items()},
            notices=(
                *cell_notices(check, cell, self.device),
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
            tracebacks=tuple(self.runs.tracebacks),
            made_by_passes=tuple(self._files_folder().glob("*")),
        )

    def clean_up(self, record: RunRecord) -> None:
        """The record is written: what waited for it goes; what an unfinished cell could go on from stays."""
        shutil.rmtree(self._files_folder(), ignore_errors=True)
        if record.status in FINISHED:
            self.journal.remove()

    def _start(self, part: str, function: Callable[..., Any], **arguments: Any) -> Any:
        """A pass over the model as it starts: with the FP32 weights and the paths chosen for it."""
        return self.runs.run(part, function, weights=self.weights, paths=self.paths, **arguments)

    def _pretrain(self) -> bool:
        """Make sure that the shared FP32 weights are there; False if they could not be made."""
        if self.cell.protocol.pretrain_epochs == 0:
            return True
        path = find_or_train(self.runs, self.notices)
        if path is None:
            why = self.runs.missing.pop("pretraining", "their file is gone again")  # with the output folder
            reason = f"there are no FP32 weights to start from: {why}"
            self.runs.missing |= dict.fromkeys(_MEASURED, reason)
            return False
        self.weights = str(path)
        return True

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
            if "timing" in self.runs.missing:
                break  # what there is stands in the record: its reason says that it is not all
        if not repeats:
            return None
        self.runs.missing.pop("timing", None)
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
            measured = self.runs.run("profile", passes.ceilings_pass)
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
            self.runs.missing.setdefault("accuracy", answer.accuracy_pct.reason)
            if check.data.synthetic:
                return None, answer.observed
        if not answer.fit.curve:
            return None, answer.observed
        return accuracy_result(answer), answer.observed

    def _hypernet(self, check: passes.CheckAnswer, observed: dict[str, float | Absent]) -> HypernetResult | None:
        if self.cell.method.grad_quantizer != "hypernet":
            self.runs.missing["hypernet"] = "the method has no hypernetwork"
            return None
        unseen = Absent(reason=self.runs.missing.get("accuracy", "the accuracy pass did not run"))
        return hypernet_result(self.cell, check, observed, unseen)

    def _wanted(self, part: str) -> bool:
        if part in self.cell.protocol.passes:
            return True
        self.runs.missing[part] = f"protocol.passes leaves the {part} pass out"
        return False


def _environment(cell: CellConfig, device: torch.device) -> dict[str, Any]:
    """The environment as the passes will see it: their number of threads, not this process's."""
    ours = torch.get_num_threads()
    torch.set_num_threads(cell.protocol.threads or ours)
    try:
        return read_environment(device, elementwise=native.pieces(device))
    finally:
        torch.set_num_threads(ours)
