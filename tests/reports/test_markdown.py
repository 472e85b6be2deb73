from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import msgspec
import pytest

from bench.records.schema import RunRecord
from reports.load import UnreadFile
from reports.render import MARKDOWN_LIMIT, render_markdown
from tests.reports.pages import HOSTILE, Make, page_of


def test_markdown_stays_below_its_limit_however_much_there_is(demo_records: Make) -> None:
    records = [
        dataclasses.replace(record, key=f"{record.key}-{n}", suite=f"suite{n}", notices=("n" * 400,))
        for n in range(60)
        for record in demo_records()
    ]
    text = render_markdown(page_of(records))
    assert len(text.encode()) < MARKDOWN_LIMIT
    assert "report.html" in text


def test_one_suite_of_ninety_rows_still_fits_in_markdown(demo_records: Make) -> None:
    records = [
        dataclasses.replace(record, key=f"{record.key}-{n}", variant=f"{record.variant}_{n}")
        for n in range(90)
        for record in demo_records()
    ]
    text = render_markdown(page_of(records))
    assert len(text.encode()) < MARKDOWN_LIMIT
    assert "more rows are in report.html" in text


def _as_first_written(record: RunRecord) -> RunRecord:
    """The record as the first version left it: without any field that came later, read back from its JSON."""
    plain = msgspec.to_builtins(record)
    later = {
        "method": ("compact", "error_granularity", "grad_rounding", "hypernet_depth", "hypernet_activation", "norm",
                   "cycle_min_bits", "cycles"),
        "accuracy": ("error_bits_used",),
        "timing": ("phase_mark_cost_pct", "throttled_steps", "energy_j"),
        "memory": ("hypernet_bound_bytes", "hypernet_code_bytes", "phases", "phases_missing", "layers", "snapshot"),
        "hypernet": ("interpolation_error", "same_codes_pct", "meta_angle_deg"),
    }  # fmt: skip
    for part, names in later.items():
        for name in names if plain[part] is not None else ():
            del plain[part][name]
    for repeat in plain["timing"]["repeats"]:
        for name in set(repeat) - {"step_ms", "fp32_step_ms", "phases_ms", "throttled"}:
            del repeat[name]
    del plain["profile"]
    return msgspec.convert(plain, RunRecord)


@pytest.mark.parametrize(
    "case",
    [
        "one_cell",
        "demo",
        "several_seeds",
        "two_machines",
        "troubles",
        "no_accuracy",
        "old_version",
        "hostile_names",
        "profile",
    ],
)
def test_markdown_is_as_in_its_golden_file(
    case: str,
    demo_records: Make,
    without_results: dict[str, Any],
    check_golden: Callable[[str, str], None],
    profiled: Callable[[RunRecord], RunRecord],
) -> None:
    problems: tuple[UnreadFile, ...] = ()
    if case == "one_cell":
        records = demo_records(["metagrad_int4_slim"])
    elif case == "demo":
        records = demo_records()
    elif case == "several_seeds":
        records = demo_records(["fp32", "uint8_int4", "metagrad_int4_slim"], seeds=(0, 1, 2))
    elif case == "two_machines":
        records = [*demo_records(["fp32", "uint8_int8"]), *demo_records(["fp32", "uint8_int8"], machine="cpu-other")]
    elif case == "troubles":
        records = demo_records(["fp32", "uint8_int8"], seeds=(0, 1))
        records += demo_records(["uint8_int8"], seeds=(2,), status="failed", reason="killed", **without_results)
        records += demo_records(
            ["uint8_int4"], status="diverged", reason="loss not finite at step 7", **without_results
        )
        records += demo_records(
            ["metagrad_int4_retain"], status="out_of_memory", reason="needs 9 GiB", **without_results
        )
        for seed, (status, reason) in enumerate(
            (
                ("timed_out", "the timing pass took longer than 900 s"),
                ("killed", "the memory pass was killed from outside (signal 9)"),
                ("crashed", "the accuracy pass ended with signal 11"),
            )
        ):
            records += demo_records(
                ["metagrad_int4_slim"], seeds=(seed,), status=status, reason=reason, **without_results
            )
        problems = (UnreadFile(name="old/record.json", reason="record.json is not valid JSON; write it again."),)
    elif case == "no_accuracy":
        missing = {"accuracy": "the accuracy pass was not asked for"}
        records = [
            dataclasses.replace(record, accuracy=None, missing=record.missing | missing)
            for record in demo_records(["fp32", "uint8_int8", "metagrad_int4_slim"])
        ]
    elif case == "old_version":
        records = [_as_first_written(record) for record in demo_records(["fp32", "uint8_int8", "metagrad_int4_slim"])]
    elif case == "profile":
        records = [profiled(record) for record in demo_records(["fp32", "uint8_int8"])]
    else:
        records = demo_records(
            ["fp32", "uint8_int8"], suite=HOSTILE, notices=(HOSTILE,), environment={"device": {"name": HOSTILE}}
        )
        records[1] = dataclasses.replace(records[1], variant=HOSTILE, status="failed", reason=HOSTILE)
        problems = (UnreadFile(name=HOSTILE, reason=HOSTILE),)
    check_golden(f"{case}.md", render_markdown(page_of(records, problems)))
