from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from hydra.core.utils import JobReturn, JobStatus

from bench.app import parse_arguments, plan_cells
from bench.errors import ConfigError, WorkerError
from bench.jobs import JobLog, check_shared, shared_mark
from bench.records.find import find_records
from bench.status import StatusReader
from hydra_plugins.metagrad_launchers import ray_launcher
from hydra_plugins.metagrad_launchers.ray_launcher import task_resources

ROOT = Path(__file__).parents[1]
PROGRAM = [sys.executable, "-P", "-m", "tools.cli", "run", "--multirun"]
QUICK = [
    "data=synthetic", "protocol=tiny", "protocol.pretrain_epochs=0", "protocol.passes=[timing]", "device=cpu",
    "data.train_limit=256",
]  # fmt: skip
ENDLESS = ["protocol.timing_budget_s=500", "protocol.timing_interval_pct=0.0001", "protocol.timing_blocks=3"]


def start(cwd: Path, *argv: str, threads: str | None = "1") -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("OMP_NUM_THREADS", None)
    if threads is not None:
        environment["OMP_NUM_THREADS"] = threads
    return subprocess.Popen(
        [*PROGRAM, *argv], cwd=cwd, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment,
        start_new_session=True,
    )  # fmt: skip


def run(cwd: Path, *argv: str, threads: str | None = "1") -> tuple[int, str, str]:
    process = start(cwd, *argv, threads=threads)
    out, err = process.communicate()
    return process.returncode, out, err


def are_at_work(cells: int, folder: Path, process: subprocess.Popen[str]) -> bool:
    """Whether so many cells run, or wait for each other's passes, before the process ends."""
    while process.poll() is None:
        time.sleep(0.5)
        counts = StatusReader([folder]).read().counts if folder.is_dir() else {}
        if counts.get("running", 0) and counts["running"] + counts.get("waiting", 0) >= cells:
            return True
    return False


def at_work_in(folder: Path) -> list[list[str]]:
    """Command lines of the processes whose working folder it is."""
    return [p.info["cmdline"] for p in psutil.process_iter(["cwd", "cmdline"]) if p.info["cwd"] == str(folder)]


@contextlib.contextmanager
def ray_cluster(nodes: int) -> Iterator[tuple[str, list[int]]]:
    """A Ray cluster with one CPU a node: its address, and the raylets of all nodes but the head."""
    cluster = subprocess.Popen(
        [sys.executable, str(ROOT / "tests" / "ray_cluster.py"), str(nodes)], text=True, stdin=subprocess.PIPE,
        stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert cluster.stdout is not None
    address, raylets = cluster.stdout.readline().strip(), cluster.stdout.readline()
    assert address, "the cluster did not start"
    try:
        yield address, [int(pid) for pid in raylets.split()]
    finally:
        cluster.communicate()


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[str]:
    """Address of a Ray cluster of two nodes with one CPU each."""
    with ray_cluster(2) as (address, _):
        yield address


@pytest.mark.slow
def test_joblib_runs_the_cells_of_a_sweep_and_no_two_passes_share_the_device(tmp_path: Path) -> None:
    sweep = ["seed=1,2", "protocol=tiny", "data.train_limit=128", "data.test_limit=64", "protocol.passes=[accuracy]"]
    launcher = ["hydra/launcher=joblib", "hydra.launcher.n_jobs=2"]
    code, _, err = run(tmp_path, *sweep, *launcher, threads=None)  # joblib gives each worker its share of the cores
    assert code == 0, err[-3000:]
    found, problems = find_records([tmp_path / "out"])
    assert not problems
    assert [(item.record.seed, item.record.status) for item in found] == [(1, "ok"), (2, "ok")]


@pytest.mark.slow
def test_ray_runs_a_sweep_on_two_nodes_and_its_records_land_in_one_store(two_nodes: str, tmp_path: Path) -> None:
    ray = ["hydra/launcher=ray", f"hydra.launcher.address={two_nodes}"]
    code, out, err = run(tmp_path, "seed=1,2", "variant=fp32,ste_int4", *QUICK, *ray)
    assert code == 0, err[-3000:]
    assert "4 cells: 4 ok" in out
    nodes = re.findall(r"\[\d/4\] .*: ok \(node (\w+)\)", err)
    assert len(nodes) == 4
    assert len(set(nodes)) == 2, "both nodes measured"
    found, problems = find_records([tmp_path / "out"])
    assert not problems
    done = sorted((item.record.variant, item.record.seed, item.record.status) for item in found)
    assert done == [("fp32", 1, "ok"), ("fp32", 2, "ok"), ("ste_int4", 1, "ok"), ("ste_int4", 2, "ok")]
    status = StatusReader([tmp_path / "out"]).read()
    assert (status.counts, status.runners) == ({"ok": 4}, 0)
    assert not list((tmp_path / "out" / "single").glob(".launch-*"))

    code, out, err = run(tmp_path, "seed=1,2,3", "variant=fp32", *QUICK, *ray)
    assert code == 0, err[-3000:]
    assert "3 cells: 3 ok" in out
    assert len(find_records([tmp_path / "out"])[0]) == 5, "only what was missing was measured"


@pytest.mark.slow
@pytest.mark.parametrize("retries", [1, 0])
def test_a_cell_whose_ray_node_died_is_measured_on_another_or_named(retries: int, tmp_path: Path) -> None:
    with ray_cluster(2) as (address, (raylet,)):
        ray = ["hydra/launcher=ray", f"hydra.launcher.address={address}", f"hydra.launcher.retries={retries}"]
        some_time = [*ENDLESS[1:], "protocol.timing_budget_s=12", "protocol.timing_processes=1"]
        process = start(tmp_path, "seed=1,2", *QUICK, *some_time, *ray)
        assert are_at_work(2, tmp_path / "out", process)
        node = psutil.Process(raylet)  # its workers would outlive it on a machine that lives on
        for part in (node, *node.children(recursive=True)):
            part.kill()
        try:
            _, err = process.communicate(timeout=400)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            raise AssertionError(f"it goes on waiting: {process.communicate()[1][-3000:]}") from None
    found, problems = find_records([tmp_path / "out"])
    assert not problems
    assert "Traceback" not in err
    seeds = [item.record.seed for item in found]
    if retries:
        assert process.returncode == 0, err[-3000:]
        assert seeds == [1, 2]
        assert len(set(re.findall(r"ok \(node \w+\)", err))) == 1, "the node that is left measured both"
    else:
        assert process.returncode == 1, err[-3000:]
        assert len(seeds) == 1
        assert "1 of 2 jobs left no record" in err
        assert re.search(r"seed=\d.*: failed: its Ray worker ended", err)


@pytest.mark.slow
def test_ray_says_in_a_sentence_what_a_worker_could_not_do(two_nodes: str, tmp_path: Path) -> None:
    ray = ["hydra/launcher=ray", f"hydra.launcher.address={two_nodes}"]
    code, out, err = run(tmp_path, "device=cuda", "seed=1", *QUICK[:4], *ray)
    assert code == 1
    assert "No node of the Ray cluster has the 1 CPU, 1 GPU" in err
    assert "Traceback" not in err
    assert "1 failed" in out
    code, _, err = run(tmp_path, "seed=1", *QUICK, "hydra/launcher=ray", "hydra.launcher.address=127.0.0.1:9")
    assert code == 1
    assert "cannot be joined" in err
    assert "Traceback" not in err


@pytest.mark.slow
def test_submitit_runs_the_jobs_of_a_sweep_into_one_store(tmp_path: Path) -> None:
    code, out, err = run(tmp_path, "seed=1", "variant=fp32,ste_int4", *QUICK, "hydra/launcher=submitit_local")
    assert code == 0, err[-3000:]
    assert "2 cells: 2 ok" in out
    assert len(re.findall(r"\[\d/2\] .*: ok \(job \d+\)", err)) == 2
    assert [item.record.status for item in find_records([tmp_path / "out"])[0]] == ["ok", "ok"]
    logs = [path.name for path in tmp_path.rglob("*_log.err")]
    assert len(logs) == 2
    assert all(re.fullmatch(r"\d+_0_log.err", name) for name in logs)
    assert list(tmp_path.rglob("*%*")) == [], "a folder is called after a job, not after its placeholder"


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "ray"])
def test_ctrl_c_ends_the_jobs_of_every_launcher(launcher: str, two_nodes: str, tmp_path: Path) -> None:
    settings = {"joblib": ["hydra.launcher.n_jobs=2"], "ray": [f"hydra.launcher.address={two_nodes}"]}.get(launcher, [])
    process = start(tmp_path, "seed=1,2", *QUICK, *ENDLESS, f"hydra/launcher={launcher}", *settings)
    assert are_at_work(1, tmp_path / "out", process)
    os.kill(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=300)
    assert process.returncode == 130, err
    assert "Interrupted" in err
    assert "Traceback" not in err
    deadline = time.monotonic() + 300
    while (left := at_work_in(tmp_path)) and time.monotonic() < deadline:
        time.sleep(0.5)
    time.sleep(6)  # what was given back to a launcher would begin again
    left += at_work_in(tmp_path)
    assert left == []
    counts = StatusReader([tmp_path / "out"]).read().counts
    assert "running" not in counts, counts


def test_a_launcher_without_a_sweep_is_refused() -> None:
    with pytest.raises(ConfigError, match="--multirun"):
        plan_cells(parse_arguments(["seed=1", "hydra/launcher=ray"]))
    assert plan_cells(parse_arguments(["-m", "seed=1,2", "hydra/launcher=ray"])).here is False
    assert plan_cells(parse_arguments(["-m", "seed=1,2", "hydra/launcher=joblib"])).here is True


HEAD, CPUS, GPUS = {"memory": 1.0}, {"CPU": 16.0}, {"CPU": 32.0, "GPU": 4.0}


def test_a_cell_reserves_a_gpu_or_a_nodes_cpus_so_that_its_device_is_its_own() -> None:
    def reserve(device: str, nodes: list[dict[str, float]]) -> tuple[float, int]:
        options = task_resources(device, nodes, num_cpus=None, resources={})
        return options["num_cpus"], options["num_gpus"]

    assert reserve("cpu", [HEAD, CPUS, {"CPU": 8.0}]) == (8.0, 0)
    assert reserve("auto", [HEAD, CPUS]) == (16.0, 0)
    assert reserve("auto", [CPUS, GPUS]) == (1.0, 1)
    assert reserve("cuda", [CPUS, GPUS]) == (1.0, 1)
    assert task_resources("cuda", [GPUS], num_cpus=4, resources={}) == {"num_cpus": 4, "num_gpus": 1, "resources": {}}


def test_what_no_node_has_is_refused_instead_of_waited_for() -> None:
    for device, cpus, resources in (("cuda", None, {}), ("cpu", 64.0, {}), ("cpu", None, {"rack7": 1.0})):
        with pytest.raises(WorkerError, match="No node"):
            task_resources(device, [HEAD, CPUS], num_cpus=cpus, resources=resources)
    with pytest.raises(WorkerError, match="use device=cuda"):
        task_resources("cuda:1", [GPUS], num_cpus=None, resources={})


class DepletedRay:
    """Ray's interface as the launcher uses it, of a cluster whose only GPU node is gone; one cell needs no GPU."""

    exceptions = SimpleNamespace(RayTaskError=RuntimeError, RayError=OSError)

    def __init__(self) -> None:
        self.cancelled: list[str] = []
        self.looks = 0

    def wait(self, pending: list[str], **_: object) -> tuple[list[str], list[str]]:
        self.looks += 1
        ready = ["cpu"] if self.looks == 2 else []
        return ready, [ref for ref in pending if ref not in ready]

    def nodes(self) -> list[dict[str, object]]:
        return [{"Alive": True, "Resources": {"CPU": 8.0}}, {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 1.0}}]

    def get(self, ref: str) -> tuple[JobReturn, str]:
        answer = JobReturn(status=JobStatus.COMPLETED)
        answer.return_value = "ok"
        return answer, f"node of {ref}"

    def cancel(self, ref: str, *, force: bool) -> None:
        self.cancelled.append(ref)


def test_a_cell_that_no_node_of_the_cluster_can_take_any_more_is_named_instead_of_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(ray_launcher, "_RETURN_S", 0.0)
    cluster, log = DepletedRay(), JobLog(total=2, show=False)
    wanted = [{"num_cpus": 1.0, "num_gpus": gpus, "resources": {}} for gpus in (0, 1)]
    returns = ray_launcher._collect(cluster, {"cpu": 0, "gpu": 1}, wanted, ["one", "other"], log)
    assert [job.return_value for job in returns] == ["ok"]
    assert cluster.cancelled == ["gpu"]
    with pytest.raises(WorkerError, match=r"1 of 2 jobs .* no node is left that has the 1 CPU, 1 GPU"):
        log.check()


def test_a_worker_that_does_not_share_the_store_says_so(tmp_path: Path) -> None:
    with shared_mark(tmp_path / "out") as mark:
        check_shared(mark)
    with pytest.raises(WorkerError, match="that all machines share"):
        check_shared(mark, wait_s=0.0)
