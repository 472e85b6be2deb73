"""Hypernetworks f_ψ of the two papers: coordinate-wise, one instance shared by all quantized layers."""

from __future__ import annotations

import inspect
from typing import Any

from bench.errors import ConfigError
from bench.hypernets.base import (
    FORMS,
    CarriedEvaluation,
    Evaluation,
    Hypernet,
    Scales,
    State,
    count_parameters,
    layer_scales,
)
from bench.hypernets.dual_lstm_fc import DualLSTMFC
from bench.hypernets.fc_grad import FCGrad
from bench.hypernets.lstm_fc import LSTMFC
from bench.hypernets.multi_fc import MultiFC

HYPERNETS: dict[str, type[FCGrad] | type[MultiFC] | type[LSTMFC] | type[DualLSTMFC]] = {
    "fc_grad": FCGrad,
    "multi_fc": MultiFC,
    "lstm_fc": LSTMFC,
    "dual_lstm_fc": DualLSTMFC,
}

FULLY_CONNECTED = ("fc_grad", "multi_fc")  # with a depth and an activation


def build_hypernet(name: str, *, hidden: int, form: str = "residual", **options: Any) -> Hypernet:
    """The hypernetwork of that name, float32 on the CPU, initialised from torch's global generator.

    Args:
        name: fc_grad, multi_fc, lstm_fc or dual_lstm_fc.
        hidden: H, at least 1.
        form: residual or literal.
        options: depth and activation for the fully connected ones; state, zero or carry, for the LSTMs.

    Raises:
        ConfigError: for an unknown name or form, a size below 1, or an option that the hypernetwork does not have.
    """
    if name not in HYPERNETS:
        raise ConfigError(f"unknown hypernetwork {name!r}; choose one of: {', '.join(HYPERNETS)}.")
    if hidden < 1:
        raise ConfigError(f"a hypernetwork's hidden size is at least 1, got {hidden}.")
    known = inspect.signature(HYPERNETS[name]).parameters
    for key in options:
        if key not in known:
            raise ConfigError(f"{name} has no option {key!r}; it takes: {', '.join(known)}.")
    return HYPERNETS[name](hidden=hidden, form=form, **options)


__all__ = [
    "FORMS",
    "FULLY_CONNECTED",
    "HYPERNETS",
    "CarriedEvaluation",
    "DualLSTMFC",
    "Evaluation",
    "FCGrad",
    "Hypernet",
    "LSTMFC",
    "MultiFC",
    "Scales",
    "State",
    "build_hypernet",
    "count_parameters",
    "layer_scales",
]
