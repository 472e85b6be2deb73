"""``hydra/launcher=submitit_slurm`` and ``submitit_local``: hydra-submitit-launcher's, waiting for every job.

Its settings and the way in which a job runs are that package's. Its own waiting raises at the first job that was killed
or ran out of time, while others run, and leaves all of them in the queue on Ctrl-C.
"""

import contextlib
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
from hydra.core.config_store import ConfigStore
from hydra.core.singleton import Singleton
from hydra.core.utils import JobReturn, JobStatus

try:
    from hydra_plugins.hydra_submitit_launcher import config as upstream_config
    from hydra_plugins.hydra_submitit_launcher import submitit_launcher as upstream
except ImportError:  # not installed: its names stay unknown to Hydra
    upstream = None

_POLL_S = 1.0
_ARRAY = 1000  # Slurm's usual MaxArraySize is 1001

if upstream is not None:

    @dataclass
    class SlurmConf(upstream_config.SlurmQueueConf):
        """hydra-submitit-launcher's settings."""

        _target_: str = "hydra_plugins.metagrad_launchers.submitit_launcher.SlurmLauncher"

    @dataclass
    class LocalConf(upstream_config.LocalQueueConf):
        """hydra-submitit-launcher's settings."""

        _target_: str = "hydra_plugins.metagrad_launchers.submitit_launcher.LocalLauncher"
        # Theirs ends in %j, and submitit's local controller makes a folder of that very name; files carry the job too.
        submitit_folder: str = "${hydra.sweep.dir}/.submitit"

    class _Launcher(upstream.BaseSubmititLauncher):
        """Submits all jobs, then waits for each."""

        task_function: Any

        def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
            """Run all jobs and wait for them; Ctrl-C takes back what has not ended.

            Raises:
                WorkerError: jobs could not be submitted or left no record, once the others have ended.
            """
            from bench.jobs import JobLog, name_job, with_trace

            assert self.config is not None, "Hydra calls setup first"
            assert self.task_function is not None, "Hydra calls setup first"
            self.task_function = with_trace(self.task_function)
            log = JobLog(total=len(job_overrides), show=bool(self.config.progress))
            folder = Path(str(self.config.hydra.sweep.dir))
            executor = self._executor()
            names = [name_job(overrides) for overrides in job_overrides]
            state = Singleton.get_state()
            jobs: list[Any] = []
            try:
                for start in range(0, len(names), _ARRAY):
                    jobs += self._submit(
                        executor, job_overrides[start : start + _ARRAY], initial_job_idx + start, state
                    )
                log.say(f"{len(jobs)} jobs submitted; `metagrad-bench status {folder}` shows them")
                returns = _collect(jobs, names, log)
            except BaseException:
                for job in jobs:
                    if not job.done():
                        with contextlib.suppress(OSError, psutil.Error):
                            self._cancel(job)
                raise
            log.check()
            return returns

        def _cancel(self, job: Any) -> None:
            job.cancel(check=False)

        def _executor(self) -> Any:
            import submitit

            params = dict(self.params)
            start = {"folder": params.pop("submitit_folder")}
            if "max_num_timeout" in params:
                start[f"{self._EXECUTOR}_max_num_timeout"] = params.pop("max_num_timeout")
            executor = submitit.AutoExecutor(cluster=self._EXECUTOR, **start)
            shared = set(upstream_config.BaseQueueConf.__dataclass_fields__)
            executor.update_parameters(
                **{name if name in shared else f"{self._EXECUTOR}_{name}": value for name, value in params.items()}
            )
            return executor

        def _submit(self, executor: Any, job_overrides: Sequence[Sequence[str]], first: int, state: Any) -> list[Any]:
            from submitit.core.utils import FailedJobError, FailedSubmissionError

            from bench.errors import WorkerError

            numbers = range(first, first + len(job_overrides))
            columns = ([list(part) for part in job_overrides], numbers, [f"job_{number}" for number in numbers])
            overrides, numbers, ids = columns
            try:
                submitted = executor.map_array(
                    self, overrides, ["hydra.sweep.dir"] * len(ids), numbers, ids, [state] * len(ids)
                )
            except (FailedSubmissionError, FailedJobError, OSError) as error:
                why = " ".join(str(error).split())[:300]
                raise WorkerError(
                    f"The jobs cannot be submitted ({why}): check the settings of hydra.launcher."
                ) from error
            return list(submitted)

    class SlurmLauncher(_Launcher):
        """Runs the jobs of a sweep as Slurm arrays."""

        _EXECUTOR = "slurm"

    class LocalLauncher(_Launcher):
        """Runs the jobs of a sweep as processes of this machine, all at once: for trying out."""

        _EXECUTOR = "local"

        def _cancel(self, job: Any) -> None:
            """Interrupt the job itself; submitit's watcher over it would print a traceback."""
            for process in psutil.Process(int(job.job_id)).children():
                process.send_signal(signal.SIGINT)

    def _collect(jobs: Sequence[Any], names: Sequence[str], log: Any) -> list[JobReturn]:
        """Wait for every job, in whatever order they end."""
        from submitit.core.utils import UncompletedJobError

        from bench.errors import WorkerError

        returns: dict[int, JobReturn] = {}
        pending = list(range(len(jobs)))
        while pending:
            ended = [number for number in pending if jobs[number].done()]
            for number in ended:
                job = jobs[number]
                try:
                    answer = job.results()[0]
                except UncompletedJobError:
                    reason = f"its job {job.job_id} ended as {job.state}; its log is {job.paths.stderr}"
                    log.finish(names[number], error=WorkerError(f"{reason}."))
                    continue
                returns[number] = answer
                error = answer._return_value if answer.status == JobStatus.FAILED else None
                log.finish(names[number], answer=answer._return_value, error=error, place=f"job {job.job_id}")
            pending = [number for number in pending if number not in set(ended)]
            if pending:
                time.sleep(_POLL_S)
        return [returns[number] for number in sorted(returns)]


def store() -> None:
    """Give the names of hydra-submitit-launcher's launchers to ours; after Hydra has looked for plugins."""
    if upstream is None:
        return
    for name, node in (("submitit_slurm", SlurmConf), ("submitit_local", LocalConf)):
        ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="metagrad-bench")
