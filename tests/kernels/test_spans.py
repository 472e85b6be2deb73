"""Spans record what ran, and nothing where nobody asks."""

from __future__ import annotations

import time

import torch

from bench.kernels.spans import record_spans, span

CPU = torch.device("cpu")


def test_a_span_is_recorded_with_its_names_and_its_length():
    with record_spans(CPU) as spans, span("gemm", layer="conv1", gemm="fprop"):
        time.sleep(0.002)
    assert [(found.piece, found.layer, found.gemm) for found in spans] == [("gemm", "conv1", "fprop")]
    assert spans[0].span_ms >= 2


def test_nothing_is_recorded_outside():
    with span("gemm"):
        pass
    with record_spans(CPU) as spans:
        pass
    with span("norm"):
        pass
    assert spans == []


def test_an_inner_recording_keeps_its_spans_to_itself():
    with record_spans(CPU) as outer:
        with record_spans(CPU) as inner, span("pool"):
            pass
        with span("norm"):
            pass
    assert [found.piece for found in inner] == ["pool"]
    assert [found.piece for found in outer] == ["norm"]


def test_a_span_that_fails_is_still_recorded():
    try:
        with record_spans(CPU) as spans, span("quantize"):
            raise ValueError
    except ValueError:
        pass
    assert [found.piece for found in spans] == ["quantize"]
