"""Emulated, simulated and synthetic figures say so where they stand: in every table of both pages."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable

import pytest

from bench.records.schema import RunRecord
from reports.page import Page
from reports.render import render_html, render_markdown
from tests.reports.pages import page_of

Make = Callable[..., list[RunRecord]]


@pytest.fixture
def full_page(
    demo_records: Make, profiled: Callable[[RunRecord], RunRecord], with_categories: Callable[..., RunRecord]
) -> Page:
    """The demo's rows with everything that has a table, two machines, and a row that stands beside a published one."""
    records = [
        with_categories(profiled(record), weights=4.0, activations=8.0)
        for machine in ("cpu-one", "cpu-two")
        for record in demo_records(machine=machine)
    ]
    return page_of(records)


def test_every_table_of_the_html_labels_emulated_rows(full_page: Page) -> None:
    html = render_html(full_page)
    emulated = {d.anchor for d in full_page.details if d.record.gemms and d.record.gemms.label == "emulated"}
    tables = re.findall(r'<table class="(?:data wide|papers)".*?</table>', html, flags=re.DOTALL)
    seen = set()
    for table in tables:
        name = (re.findall(r'data-table="(\w+)"', table) or ["papers"])[0]
        if name in {"operators", "layers"}:  # of one row: their titles name it
            continue
        for anchor, row in re.findall(r'<tr data-record="([\w-]+)">(.*?)</tr>', table, flags=re.DOTALL):
            assert ('class="chip emulated"' in row) == (anchor in emulated), (name, row)
            seen.add(name)
    assert seen >= {
        "main", "time", "memory", "strategies", "memory_categories", "hypernetwork", "gemms", "pieces", "ceilings",
        "convergence", "papers",
    }  # fmt: skip
    assert 'class="chip emulated"' in html[html.index('id="across-1"') : html.index('id="section-1')]
    for anchor in emulated:
        assert re.search(rf'id="{anchor}"><summary>[^\n]*class="chip emulated"', html)


def test_every_table_of_the_markdown_labels_emulated_rows(full_page: Page) -> None:
    lines = [line for line in render_markdown(full_page).splitlines() if line.startswith("| ")]
    rows = [line for line in lines if re.match(r"\| (uint8_int4|metagrad_int4_\w+)\b", line)]
    assert len(rows) > 8 * 4
    assert all("`emulated`" in row for row in rows)
    assert not [line for line in lines if line.startswith("| fp32") and "`emulated`" in line]


def test_tables_of_one_row_name_its_label_in_the_title(
    demo_records: Make, profiled: Callable[[RunRecord], RunRecord]
) -> None:
    records = [profiled(record) for record in demo_records(["fp32", "uint8_int4"])]
    page = page_of(records)
    titles = [table.title for topic in page.sections[0].topics for table in topic.tables if not table.links]
    assert len(titles) == 2
    assert all("uint8_int4 (emulated)" in title for title in titles)


def test_random_data_is_said_beside_every_row(demo_records: Make) -> None:
    (record,) = demo_records(["uint8_int4"])
    assert record.data is not None
    record = dataclasses.replace(record, data=dataclasses.replace(record.data, name="synthetic", synthetic=True))
    page = page_of([record])
    heads = [table.rows[0].cells[0] for topic in page.sections[0].topics for table in topic.tables if table.links]
    assert len(heads) > 3
    assert {head.chips for head in heads} == {("emulated", "synthetic")}
