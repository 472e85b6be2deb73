from __future__ import annotations

import dataclasses
from collections.abc import Callable

from bench.records.schema import RunRecord
from reports.paper_claims import NO_RUN, paper_claims
from reports.sections import build_sections

Make = Callable[..., list[RunRecord]]


def ours(records: list[RunRecord]) -> dict[str, str]:
    return {claim.text.split(" ")[0]: claim.ours for claim in paper_claims(build_sections(records))}


def test_a_claim_that_no_row_of_ours_measured_says_so(demo_records: Make) -> None:
    told = ours(demo_records(["uint8_int4", "metagrad_int4_retain", "metagrad_int4_slim"]))
    assert set(told.values()) == {NO_RUN}
    assert len(told) == 4


def test_fp32s_backward_stands_beside_the_claim_about_it(demo_records: Make) -> None:
    assert ours(demo_records())["backward"] == "ours: fp32 on digits, cpu: 60.0 % of the step (resnet20)"


def test_metaquants_memory_and_slim_form_stand_beside_its_claims(demo_records: Make) -> None:
    retain, slim = (
        dataclasses.replace(record, method=dataclasses.replace(record.method, name="metaquant"))
        for record in demo_records(["metagrad_int4_retain", "metagrad_int4_slim"])
    )
    told = ours([retain, slim])
    assert "60.9 % of the peak allocated (retain)" in told["the"], "98 MiB of 161"
    assert "25.6 % of the peak allocated (slim)" in told["the"]
    assert told["slim"] == "ours: metagrad_int4_slim (emulated) on digits, cpu: −0.28 points against retain, n = 1"


def test_metagrads_int4_loss_is_of_its_model_and_data_alone(demo_records: Make) -> None:
    names = ["fp32", "metagrad_int4_retain"]
    told = ours(demo_records(names, model_name="vgg16", data_name="cifar10"))
    assert told["INT4"] == "ours: metagrad_int4_retain (emulated) on cifar10, cpu: −2.22 points against FP32, n = 1"
    assert ours(demo_records(names, model_name="vgg16"))["INT4"] == NO_RUN


def test_of_many_rows_the_first_are_named(demo_records: Make) -> None:
    records = [record for number in range(9) for record in demo_records(["fp32"], suite=f"s{number}", key=str(number))]
    assert ours(records)["backward"].endswith("; and 3 more rows")
