from __future__ import annotations

import dataclasses
from typing import Any

from reports.definitions import DEFINITIONS
from reports.details import paths_text
from reports.load import UnreadFile
from reports.page import FULL_DETAILS
from reports.render import render_html, render_markdown
from tests.reports.pages import HOSTILE, Make, page_of, tables_of, tags_of


def test_a_layers_row_says_which_path_each_product_took_and_why(demo_records: Make) -> None:
    (record,) = demo_records(["uint8_int8"])
    assert record.model is not None
    layer, *_ = record.model.layers
    fast = "direct: fastest of int_mm 2 ms, direct <1 ms"
    mixed = dataclasses.replace(layer, fprop_path=fast, wgrad_path="float32: fastest")
    alike = dataclasses.replace(layer, fprop_path="int_mm: dispatch=integer", wgrad_path="int_mm: dispatch=integer")
    assert [paths_text(one) for one in (layer, alike)] == ["", "int_mm: dispatch=integer"]
    assert paths_text(mixed) == f"fprop {fast}; wgrad float32: fastest"
    changed = dataclasses.replace(record, model=dataclasses.replace(record.model, layers=(mixed, alike)))
    html = render_html(page_of([changed]))
    assert ">fprop direct: fastest of int_mm 2 ms, direct &lt;1 ms; wgrad float32: fastest</td>" in html
    assert ">int_mm: dispatch=integer</td>" in html


def test_html_and_markdown_print_the_same_main_table(demo_records: Make) -> None:
    page = page_of(demo_records())
    html, markdown = render_html(page), render_markdown(page)
    for row in page.sections[0].main.rows:
        for cell in row.cells:
            for text in (cell.text, cell.detail):
                assert text.replace("[", "\\[").replace("]", "\\]") in markdown
    for row in page.sections[0].main.rows:
        for cell in row.cells[1:]:
            assert cell.text in html
            assert cell.detail in html


def test_a_ratio_of_one_process_shows_no_interval_anywhere_and_is_never_marked(
    demo_records: Make, one_process: Any
) -> None:
    records = [one_process(record) for record in demo_records(["fp32", "uint8_int8", "uint8_int4"])]
    page = page_of(records)
    for table in (tables_of(page)["main"], tables_of(page)["time"]):
        keys = [column.key for column in table.columns]
        ratio, step = keys.index("time_vs_fp32"), keys.index("step")
        assert {row.cells[ratio].detail for row in table.rows} == {"one process, no interval"}
        assert not any(row.cells[index].best for row in table.rows for index in (ratio, step))
    html, markdown = render_html(page), render_markdown(page)
    assert "<br>one process, no interval" in markdown
    for record in records:
        assert record.timing is not None
        ends = record.timing.time_vs_fp32
        assert f'data-value="{ends.value}" data-source="timing.time_vs_fp32.value"' in html
        assert str(ends.low) not in html
        assert str(ends.high) not in html


def test_accuracies_of_one_seed_are_not_marked_as_the_best(demo_records: Make) -> None:
    for seeds, marked in (((0,), 0), ((0, 1), 1)):
        table = page_of(demo_records(["fp32", "uint8_int8", "uint8_int4"], seeds=seeds)).sections[0].main
        index = [column.key for column in table.columns].index("accuracy")
        assert sum(row.cells[index].best for row in table.rows) == marked


def test_the_hypernetworks_own_products_and_slims_share_are_shown_as_such(demo_records: Make) -> None:
    page = page_of(demo_records(["uint8_int4", "metagrad_int4_retain", "metagrad_int4_slim"]))
    tables = tables_of(page)
    macs = [row.cells[-1] for row in tables["gemms"].rows]
    assert [cell.text for cell in macs] == ["–", "24.1", "24.1"]
    assert macs[1].source == "gemms.hypernet_float_macs"
    assert [row.cells[-1].detail for row in tables["hypernetwork"].rows] == ["", "one layer's share"]


def test_the_page_is_one_file_that_may_load_nothing(demo_records: Make) -> None:
    html = render_html(page_of(demo_records()))
    tags = tags_of(html)
    policy = next(attributes["content"] for tag, attributes in tags if attributes.get("http-equiv"))
    assert str(policy).startswith("default-src 'none'")
    assert [tag for tag, _ in tags].count("script") == 1
    assert not {tag for tag, _ in tags} & {"iframe", "object", "embed", "form", "img", "video", "audio", "base"}
    ids = {attributes["id"] for _, attributes in tags if "id" in attributes}
    links = [str(attributes["href"]) for tag, attributes in tags if tag == "a"]
    assert len(links) > 20
    assert all(link.startswith("#") and link[1:] in ids for link in links)
    assert len([1 for _, attributes in tags if "id" in attributes]) == len(ids)


def test_hostile_text_is_inert_in_html(demo_records: Make) -> None:
    records = demo_records(
        ["metagrad_int4_slim"], variant=HOSTILE, suite=HOSTILE, model_name=HOSTILE, data_name=HOSTILE, reason=HOSTILE,
        status="failed", notices=(HOSTILE,), cell={HOSTILE: HOSTILE}, environment={"device": {"name": HOSTILE}},
    )  # fmt: skip
    problems = (UnreadFile(name=HOSTILE, reason=HOSTILE),)
    html = render_html(page_of(records, problems))
    tags = tags_of(html)
    assert [tag for tag, _ in tags].count("script") == 1
    assert not any(name.startswith("on") for _, attributes in tags for name in attributes)
    assert "\u202e" not in html
    assert all(str(a.get("href", "#")).startswith("#") for tag, a in tags if tag == "a")


def test_diverged_failed_and_out_of_memory_cells_are_rows_with_their_reason(
    demo_records: Make, without_results: dict[str, Any]
) -> None:
    records = demo_records(["fp32"])
    for variant, status, reason in (
        ("uint8_int4", "diverged", "the loss is not finite from step 7"),
        ("metagrad_int4_retain", "out_of_memory", "the memory pass needs 9 GiB"),
        ("metagrad_int4_slim", "failed", "the timing pass ended with signal 11"),
    ):
        records += demo_records([variant], status=status, reason=reason, **without_results)
    html = render_html(page_of(records))
    for text in ("diverged", "out of memory", "failed", "from step 7", "needs 9 GiB", "signal 11"):
        assert text in html


def test_synthetic_data_is_named_and_its_accuracy_never_shown(demo_records: Make) -> None:
    (record,) = demo_records(["uint8_int8"], data_name="synthetic")
    assert record.data is not None
    record = dataclasses.replace(record, data=dataclasses.replace(record.data, name="synthetic", synthetic=True))
    for text in (render_html(page_of([record])), render_markdown(page_of([record]))):
        assert "98.06" not in text
        assert "(synthetic data)" in text


def test_beyond_a_limit_cells_are_shown_in_brief_and_every_row_still_links_to_its_own(
    demo_records: Make, without_results: dict[str, Any]
) -> None:
    records = demo_records(["fp32"], seeds=range(FULL_DETAILS + 5))
    last = dataclasses.replace(records[-1], status="crashed", reason="signal 11", **without_results)
    page = page_of([*records[:-1], last])
    brief = [detail for detail in page.details if detail.brief]
    assert page.num_brief == len(brief) == 5
    assert brief[0].brief.startswith("accuracy 98.")
    assert brief[-1].brief == "nothing was measured"
    assert brief[0].command.endswith(f"seed={FULL_DETAILS}")
    html = render_html(page)
    assert f"5 of {FULL_DETAILS + 5} cells are shown in brief" in html
    assert "signal 11" in html
    ids = {attributes["id"] for _, attributes in tags_of(html) if "id" in attributes}
    links = [str(a["href"])[1:] for tag, a in tags_of(html) if tag == "a"]
    assert set(links) <= ids
    assert {detail.anchor for detail in page.details} <= set(links)


def test_every_numeric_column_of_the_main_table_is_explained(demo_records: Make) -> None:
    terms = " ".join(term for term, _ in DEFINITIONS).lower()
    for column in page_of(demo_records()).sections[0].main.columns[1:]:
        header = column.header.lower().replace("peak memory", "peak allocated")
        assert header in terms
