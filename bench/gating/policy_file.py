"""A gate's policy as a YAML file: thresholds, statistics, what a verdict counts as. Its keys: docs/gate.md."""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from bench.errors import ConfigError, ExitCode
from bench.gating.metrics import PHASE, Policy, Threshold
from bench.gating.verdicts import OUTCOMES, Verdict
from bench.printable import show_path
from bench.records.read import read_bytes

Treat = dict[Verdict, ExitCode]
_KEYS = ("alpha", "prior_df", "resamples", "thresholds", "treat")
_LIMITS, _FLOOR = ("limit", "interleaved_limit"), ("floor_of", "floor_pct")
_SETTINGS = {
    "ratio": (*_LIMITS, *_FLOOR, "process_shift_pct", "session_shift_pct"), "exact": (*_LIMITS, *_FLOOR),
    "seeds": (*_LIMITS, "process_shift_pct"),
}  # fmt: skip  # what has an effect, by how a metric is judged


class _StrictLoader(yaml.SafeLoader):
    """YAML in which no key stands twice in a mapping: of two limits the reader would not know which holds."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                problem = f"the key {key.value!a} stands twice, again in line {key.start_mark.line + 1}"
                raise yaml.constructor.ConstructorError(problem=problem)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


@dataclass(frozen=True, slots=True)
class Rules:
    """A policy and what its verdicts count as."""

    policy: Policy
    treat: Treat


def read_policy(path: Path, policy: Policy) -> Rules:
    """Read a policy file over a policy.

    Raises:
        RecordError: it cannot be read or is empty.
        ConfigError: it is no YAML, or names something that does not exist; the message says what.
    """
    name = show_path(path)
    try:
        content = _StrictLoader(read_bytes(path)).get_single_data()
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: also a date that no calendar has
        raise ConfigError(f"The policy {name} is not valid YAML: {' '.join(str(error).split())}.") from error
    if not isinstance(content, dict):
        raise ConfigError(f"The policy {name} is no mapping: write keys such as `thresholds:` and `treat:`.")
    try:
        for key in content:
            _known(key, _KEYS, "key")
        policy = dataclasses.replace(
            policy,
            alpha=_number("alpha", content.get("alpha", policy.alpha)),
            prior_df=_number("prior_df", content.get("prior_df", policy.prior_df)),
            resamples=int(_number("resamples", content.get("resamples", policy.resamples))),
        )
        for key, possible, rule in (
            ("alpha", 0 < policy.alpha < 0.5, "a chance between 0 and 0.5"),
            ("prior_df", policy.prior_df >= 1, "1 or more"),
            ("resamples", policy.resamples >= 100, "100 or more"),
        ):
            if not possible:
                raise ConfigError(f"{key} takes {rule}, not {content[key]!a}")
        for metric, value in _mapping(content, "thresholds").items():
            policy = with_threshold(policy, str(metric), value)
        named = _mapping(content, "treat")
        treat = read_treat(named.items())
        if len(treat) < len(named):
            raise ConfigError("treat names a verdict twice, with a blank and with an underscore")
    except ConfigError as error:
        raise ConfigError(f"The policy {name}: {error}.") from error
    return Rules(policy, treat)


def with_threshold(policy: Policy, metric: str, value: Any) -> Policy:
    """A policy in which a metric has another limit, or several settings.

    Args:
        policy: to start from.
        metric: one that has a threshold, or any phase (``pack_ms``).
        value: the limit, for recorded runs and for runs measured in turn, or a mapping of a threshold's fields.

    Raises:
        ConfigError: an unknown metric or field, or no number of 0 or more; without a full stop.
    """
    known = policy.thresholds.get(metric)
    if known is None and metric.endswith("_ms") and metric.removesuffix("_ms").isidentifier():
        near = difflib.get_close_matches(metric, policy.thresholds, n=1, cutoff=0.8)
        known = PHASE if not near else None
    if known is None:
        _known(metric, tuple(policy.thresholds), "metric")
        raise AssertionError("an unknown metric is refused")
    if isinstance(value, dict):
        fields: dict[str, Any] = {}
        for name, setting in value.items():
            _known(name, _SETTINGS[known.judged_by], f"setting of {metric}")
            if name == "floor_of":
                _known(setting, tuple(policy.thresholds), "metric")
            fields[name] = setting if name == "floor_of" else _number(f"{metric}.{name}", setting)
    else:
        limit = _number(metric, value)
        fields = {"limit": limit, "interleaved_limit": limit}
    threshold: Threshold = dataclasses.replace(known, **fields)
    if threshold.floor_pct and not threshold.floor_of:
        raise ConfigError(f"{metric}.floor_pct needs floor_of, the metric that it is a share of")
    return dataclasses.replace(policy, thresholds={**policy.thresholds, metric: threshold})


def read_treat(pairs: Iterable[tuple[Any, Any]]) -> Treat:
    """What verdicts count as.

    Args:
        pairs: a verdict and ``ok``, ``fail``, ``inconclusive`` or ``not_comparable``.

    Raises:
        ConfigError: an unknown one; without a full stop.
    """
    treat = {}
    for verdict, outcome in pairs:
        name = str(verdict).replace(" ", "_")
        _known(name, tuple(item.value for item in Verdict), "verdict")
        _known(outcome, tuple(OUTCOMES), f"outcome for {name}")
        treat[Verdict(name)] = OUTCOMES[outcome]
    return treat


def _mapping(content: dict[str, Any], key: str) -> dict[Any, Any]:
    value = content.get(key) or {}
    if not isinstance(value, dict):
        raise ConfigError(f"{key} takes a mapping, not {value!a}")
    return value


def _number(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not (math.isfinite(number) and number >= 0):
        raise ConfigError(f"{name} takes a number of 0 or more, not {value!a}")
    return number


def _known(name: Any, known: tuple[str, ...], what: str) -> None:
    if name in known:
        return
    near = difflib.get_close_matches(str(name), known, n=1)
    hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(known)}"
    raise ConfigError(f"there is no {what} {name!a}; {hint}")
