"""Sentences of advice, one for whatever would spoil a measurement on the machine that ``collect`` has read."""

from __future__ import annotations

from typing import Any

BUSY_LOAD = 0.3  # processes running besides us, on average over the last minute, that already show in timings
_BUSY_GPU_PCT = 5
_LITTLE_MEMORY_BYTES = 2 * 1024**3


def advise(report: dict[str, Any]) -> list[str]:
    """Say what would spoil a measurement, one sentence each.

    Args:
        report: what ``collect`` returns, advice apart.
    """
    advice: list[str] = []
    cores = report["cpu"]["usable_cores"]
    if is_known(report["load_average"]) and report["load_average"] > BUSY_LOAD:
        advice.append(
            f"Other programs ran in the last minute (load average {report['load_average']:.1f} on {cores} cores): wait "
            "or stop them, since they share the cores with what is timed."
        )
    advice += _thread_advice(report)
    governor = report["cpu"]["governor"]
    if is_known(governor) and governor != "performance":
        advice.append(
            f"The CPU governor is {governor}, so clocks follow the load: set it to performance while measuring "
            "(cpupower frequency-set -g performance)."
        )
    if report["on_battery"] is True:
        advice.append("The machine runs on its battery and will lower its clocks: plug it in.")
    if report["memory"]["available_bytes"] < _LITTLE_MEMORY_BYTES:
        advice.append("Less than 2 GiB of memory is free: a training step may be swapped out while it is timed.")
    if len(report["devices"]) == 1 and is_known(report["nvidia"]["driver"]) and report["nvidia"]["gpus_seen"] != 0:
        advice.append(
            f"The NVIDIA driver sees a GPU that torch {report['torch']['version']} cannot use: install a torch built "
            "for CUDA, or look at CUDA_VISIBLE_DEVICES."
        )
    for device in report["devices"]:
        advice += _device_advice(device)
    return advice


def _thread_advice(report: dict[str, Any]) -> list[str]:
    threads, cpu = report["torch"]["threads"], report["cpu"]
    limit = cpu["usable_cores"]
    if is_known(cpu["cgroup_cores"]) and cpu["cgroup_cores"] < limit:
        limit = cpu["cgroup_cores"]
    if threads > limit:
        return [
            f"torch uses {threads} threads where only {limit:g} cores may be used: set OMP_NUM_THREADS="
            f"{max(1, int(limit))}, or threads will wait for one another."
        ]
    physical = cpu["physical_cores"]
    if is_known(physical) and threads > physical:
        return [f"torch uses {threads} threads on {physical} physical cores: OMP_NUM_THREADS={physical} is steadier."]
    if is_known(physical) and threads < min(physical, int(limit)):
        return [
            f"torch uses {threads} of {min(physical, int(limit))} cores: raise OMP_NUM_THREADS if that is not meant."
        ]
    return []


def _device_advice(device: dict[str, Any]) -> list[str]:
    name, advice = device["device"], []
    if not is_known(device["self_check"]):
        advice.append(
            f"On {name} the integer product is wrong or does not run ({device['self_check']['reason'].rstrip('.')}): "
            "use dispatch=simulate there."
        )
    elif name == "cpu" and not {"avx512_vnni", "amx_int8"} & set(device["instruction_sets"]):
        advice.append(
            "This CPU has neither AVX512-VNNI nor AMX: integer products are exact but slow here, so read accuracy and "
            "memory from this machine and not speed."
        )
    if name == "cpu" and not is_known(device["elementwise"]):
        advice.append(
            f"Element-wise work runs in plain torch ({device['elementwise']['reason']}): results are right, steps "
            "slower. A C compiler with OpenMP (on Debian: apt-get install gcc) is found at the next start."
        )
    if name == "cpu" and is_known(device["elementwise_notice"]):
        advice.append(device["elementwise_notice"])
    ceilings = device["ceilings"]
    if not is_known(ceilings) and "another pass holds" in ceilings["reason"]:
        advice.append(f"A run of metagrad-bench is under way on {name}: wait for its end, its times would suffer too.")
    if name == "cpu":
        return advice
    others, state = device["other_processes"], device["state"]
    if is_known(others) and others:
        advice.append(f"{others} other process(es) use {name}: stop them, since they share its clocks and memory.")
    if state["mig"] is True:
        advice.append(f"{name} is a MIG instance: its neighbours share power and clocks, which cannot be read here.")
    reasons = set(state["clock_reasons"]) if is_known(state["clock_reasons"]) else set()
    from bench.hardware.nvml import THROTTLE_REASONS

    if reasons & THROTTLE_REASONS:
        held = ", ".join(sorted(reasons & THROTTLE_REASONS))
        advice.append(f"{name} is being throttled ({held}): let it cool or raise its power limit before measuring.")
    limit, default = state["power_limit_w"], state["default_power_limit_w"]
    if is_known(limit) and is_known(default) and limit < default:
        advice.append(
            f"{name} is limited to {limit:g} W of its {default:g} W: times hold for this limit only (nvidia-smi -pl)."
        )
    if is_known(state["utilisation_pct"]) and state["utilisation_pct"] > _BUSY_GPU_PCT and not is_known(others):
        advice.append(
            f"{name} is {state['utilisation_pct']} % busy though nothing of ours runs there: others use it, and their "
            "processes cannot be seen from here."
        )
    if not is_known(state["clock_mhz"]) and state["mig"] is not True:
        advice.append(
            f"The clocks of {name} cannot be read ({state['clock_mhz']['reason']}): throttling would go unseen."
        )
    return advice


def is_known(value: Any) -> bool:
    """Whether a plain value is one, and not the reason why there is none."""
    return not (isinstance(value, dict) and set(value) == {"reason"})
