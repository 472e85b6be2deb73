"""``hydra/launcher=ray``: each cell is a task of a Ray cluster that reserves its device alone.

Ours, on Ray's public interface: hydra-ray-launcher 1.2 pins Ray 1.12.
"""

import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus, run_job, setup_globals
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf, open_dict

_CANCEL_GRACE_S = 10.0
_REACH_S = 5.0
_LOOK_S = 30.0  # without a finished cell, how long until the nodes are looked at
_RETURN_S = 600.0  # a node that a cell needs may come back so late, or be started by an autoscaler


@dataclass
class RayLauncherConf:
    """Settings of the launcher."""

    _target_: str = "hydra_plugins.metagrad_launchers.ray_launcher.RayLauncher"
    address: str | None = None  # host:port; none: RAY_ADDRESS, the cluster of this machine, else one is started
    num_cpus: float | None = None  # CPUs of a cell; none: 1 beside a GPU, all CPUs of a node for device=cpu
    resources: dict[str, float] = field(default_factory=dict)  # of the cluster's own naming, which a cell needs too
    retries: int = 1  # how often a cell whose worker or node died is started again


class RayLauncher(Launcher):
    """Runs the jobs of a sweep on a Ray cluster."""

    def __init__(self, address: str | None, num_cpus: float | None, resources: Any, retries: int) -> None:
        """Keep the settings; nothing is started yet."""
        self.address = address
        self.num_cpus = num_cpus
        plain: Any = OmegaConf.to_object(resources) if OmegaConf.is_config(resources) else resources
        self.resources: dict[str, float] = plain
        self.retries = retries
        self.hydra_context: HydraContext | None = None
        self.task_function: TaskFunction | None = None
        self.config: DictConfig | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """What to run."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run all jobs and wait for them; Ctrl-C takes back what has not ended.

        Raises:
            WorkerError: no cluster, no node that fits, or jobs that left no record, once the others have ended.
        """
        from bench.jobs import JobLog, name_job, shared_mark, with_trace

        ray = _import_ray()
        assert self.config is not None, "Hydra calls setup first"
        assert self.task_function is not None, "Hydra calls setup first"
        log = JobLog(total=len(job_overrides), show=bool(self.config.progress))
        folder = Path(str(self.config.hydra.sweep.dir)).absolute()
        with _connection(ray, self.address), shared_mark(folder) as mark:
            from ray import cloudpickle

            what = (self.hydra_context, with_trace(self.task_function), self.config, Singleton.get_state())
            shared = ray.put(cloudpickle.dumps(what))
            nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
            task = ray.remote(run_in_worker)
            wanted = [self._resources(overrides, nodes) for overrides in job_overrides]
            refs = {}
            for index, overrides in enumerate(job_overrides):
                options = wanted[index] | {"max_retries": self.retries, "name": name_job(overrides)}
                number = initial_job_idx + index
                ref = task.options(**options).remote(shared, list(overrides), number, str(mark), str(Path.cwd()))
                refs[ref] = index
            log.say(f"{len(refs)} cells on a Ray cluster; `metagrad-bench status {folder}` shows them")
            returns = _collect(ray, refs, wanted, [name_job(overrides) for overrides in job_overrides], log)
        log.check()
        return returns

    def _resources(self, overrides: Sequence[str], nodes: Sequence[dict[str, float]]) -> dict[str, Any]:
        assert self.config is not None, "Hydra calls setup first"
        device = str(self.config.device)
        for override in overrides:
            if override.startswith("device="):
                device = override.removeprefix("device=")
        return task_resources(device, nodes, num_cpus=self.num_cpus, resources=self.resources)


def task_resources(
    device: str, nodes: Sequence[dict[str, float]], *, num_cpus: float | None, resources: dict[str, float]
) -> dict[str, Any]:
    """What a cell reserves, so that no other gets its device: one GPU, or a node's CPUs.

    Args:
        device: as configured: auto (a GPU where the cluster has any), cpu or cuda.
        nodes: resources of each node.
        num_cpus: the user's choice; None as ``RayLauncherConf`` says.
        resources: of the cluster's own naming.

    Raises:
        WorkerError: a GPU by its number, or more than any node has.
    """
    from bench.errors import WorkerError

    if device.startswith("cuda:"):
        raise WorkerError(f"device={device} cannot be chosen with hydra/launcher=ray, which gives each cell a GPU: "
                          "use device=cuda.")  # fmt: skip
    gpus = int(device == "cuda" or (device == "auto" and any(node.get("GPU", 0) >= 1 for node in nodes)))
    if num_cpus is None:
        # Nodes of equal size are full then; on a larger one the device's lock keeps a second cell waiting.
        num_cpus = 1.0 if gpus else min((node["CPU"] for node in nodes if node.get("CPU", 0) >= 1), default=1.0)
    wanted = {"num_cpus": num_cpus, "num_gpus": gpus, "resources": resources}
    if not _fits(wanted, nodes):
        raise WorkerError(
            f"No node of the Ray cluster has the {_needs(wanted)} that a cell with device={device} reserves: change "
            "device, hydra.launcher.num_cpus or hydra.launcher.resources, or add a node."
        )
    return wanted


def _counts(wanted: dict[str, Any]) -> dict[str, float]:
    """A task's options as a node counts its resources."""
    return {"CPU": wanted["num_cpus"], "GPU": wanted["num_gpus"], **wanted["resources"]}


def _fits(wanted: dict[str, Any], nodes: Sequence[dict[str, float]]) -> bool:
    """Whether a node has, busy or not, what a task reserves."""
    return any(all(node.get(name, 0) >= count for name, count in _counts(wanted).items()) for node in nodes)


def _needs(wanted: dict[str, Any]) -> str:
    return ", ".join(f"{count:g} {name}" for name, count in _counts(wanted).items() if count)


def run_in_worker(shared: bytes, overrides: list[str], number: int, mark: str, folder: str) -> tuple[JobReturn, str]:
    """One job in a process of a node.

    Args:
        shared: pickled Hydra context, function, config and Hydra's state.
        overrides: of this job.
        number: of this job.
        mark: a file that is there if this node shares the store.
        folder: working folder of the run's start, for what is named relative to it.

    Returns:
        Hydra's return value, a user error inside it, and the node's name.
    """
    # Ray puts the working folder first on the path; a bench/ or torch.py of the user's must not stand before ours.
    sys.path[:] = [entry for entry in sys.path if entry not in ("", folder)] + [folder]
    import ray
    from ray import cloudpickle

    from bench.errors import UserError
    from bench.jobs import check_shared

    place = f"node {ray.get_runtime_context().get_node_id()[:8]}"
    try:
        check_shared(Path(mark))
        if Path(folder).is_dir():
            os.chdir(folder)
    except UserError as error:
        failed = JobReturn(overrides=overrides, status=JobStatus.FAILED)
        failed.return_value = error
        return failed, place
    context, task, config, state = cloudpickle.loads(shared)
    setup_globals()
    Singleton.set_state(state)
    job_config = context.config_loader.load_sweep_config(config, overrides)
    with open_dict(job_config):
        job_config.hydra.job.id, job_config.hydra.job.num = f"{job_config.hydra.job.name}_{number}", number
    return run_job(task, job_config, "hydra.sweep.dir", "hydra.sweep.subdir", context), place


def _collect(
    ray: Any, refs: dict[Any, int], wanted: Sequence[dict[str, Any]], names: Sequence[str], log: Any
) -> list[JobReturn]:
    """Wait for every job, in whatever order they end; one that no node can take any more is given up."""
    from bench.errors import WorkerError

    returns: dict[int, JobReturn] = {}
    pending = list(refs)
    without_node_since: dict[Any, float] = {}
    try:
        while pending:
            done, pending = ray.wait(pending, num_returns=1, timeout=_LOOK_S)
            if not done:
                nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
                if not nodes:
                    raise WorkerError("All nodes of the Ray cluster are gone: start them and run again.")
                now = time.monotonic()
                without_node_since = {
                    ref: without_node_since.get(ref, now) for ref in pending if not _fits(wanted[refs[ref]], nodes)
                }
                for ref in [ref for ref, since in without_node_since.items() if now - since >= _RETURN_S]:
                    needs = _needs(wanted[refs[ref]])
                    log.finish(names[refs[ref]], error=WorkerError(f"no node is left that has the {needs}; run again."))
                    _try_to_cancel(ray, ref, force=True)
                    pending.remove(ref)
                continue
            (ref,) = done
            name = names[refs[ref]]
            try:
                job, place = ray.get(ref)
            except ray.exceptions.RayTaskError as error:
                raise (error.cause if isinstance(error.cause, Exception) else error) from None
            except ray.exceptions.RayError as error:
                why = str(error).strip().splitlines()[0]
                log.finish(name, error=WorkerError(f"its Ray worker ended ({type(error).__name__}: {why}); run again."))
                continue
            returns[refs[ref]] = job
            raised = job._return_value if job.status == JobStatus.FAILED else None
            log.finish(name, answer=job._return_value, error=raised, place=place)
    finally:
        _cancel(ray, pending)
    return [returns[index] for index in sorted(returns)]


def _cancel(ray: Any, pending: list[Any]) -> None:
    """Take back jobs: politely, so that their passes end with them, then by force."""
    for force in (False, True):
        if not pending:
            return
        for ref in pending:
            _try_to_cancel(ray, ref, force=force)
        _, pending = ray.wait(pending, num_returns=len(pending), timeout=_CANCEL_GRACE_S)


def _try_to_cancel(ray: Any, ref: Any, *, force: bool) -> None:
    """Take back a job that may have gone meanwhile.

    Ray answers TypeError or ValueError where its core cannot cancel, RayError without a connection, and ConnectionError
    where its client has lost the cluster.
    """
    with contextlib.suppress(TypeError, ValueError, ConnectionError, ray.exceptions.RayError):
        ray.cancel(ref, force=force)


@contextlib.contextmanager
def _connection(ray: Any, address: str | None) -> Iterator[None]:
    """Join or start a cluster; leave it, and end one that was started here."""
    from bench.errors import WorkerError

    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a benchmark reports to nobody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # Ray's coming default; else it warns
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.getsignal(signal.SIGTERM)
    try:
        _reach(address)
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (OSError, RuntimeError, ValueError) as error:
        why = " ".join(str(error).split())[:300]
        raise WorkerError(
            f"The Ray cluster {address or ''} cannot be joined ({why}): start it with `ray start --head`, or leave "
            "hydra.launcher.address out to run on this machine alone."
        ) from error
    if in_main:
        signal.signal(signal.SIGTERM, before)  # Ray sets its own, which ends in an exit code of its own
    try:
        yield
    finally:
        ray.shutdown()


def _reach(address: str | None) -> None:
    """Fail within seconds where nobody listens; Ray tries for minutes."""
    host, colon, port = (address or "").rpartition(":")
    if colon and port.isdigit() and "://" not in host:
        socket.create_connection((host, int(port)), timeout=_REACH_S).close()


def _import_ray() -> Any:
    from bench.errors import WorkerError

    try:
        import ray
        import ray.exceptions
    except ImportError as error:
        raise WorkerError("hydra/launcher=ray needs Ray: pip install 'metagrad-bench[ray]'.") from error
    return ray


ConfigStore.instance().store(group="hydra/launcher", name="ray", node=RayLauncherConf, provider="metagrad-bench")
