from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from bench.records.schema import RunRecord
from reports.build import build_report

CHROMIUM = Path("/usr/bin/chromium")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Chromium at {CHROMIUM} (Debian's package chromium)"),
]
MAIN = 'table[data-table="main"]'


@pytest.fixture
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="needs the Python package playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        )
        yield browser
        browser.close()


@pytest.fixture
def report(
    demo_records: Callable[..., list[RunRecord]],
    write_runs: Callable[[Sequence[RunRecord]], Path],
    without_results: dict[str, Any],
    tmp_path: Path,
) -> Path:
    records = demo_records()
    records += demo_records(["uint8_int4"], seeds=(1,), status="failed", reason="killed " * 30, **without_results)
    records += demo_records(["fp32", "uint8_int8"], seeds=(0, 1), machine="cpu-other")
    return build_report([write_runs(records)], tmp_path / "out").html


def _open(browser: Any, report: Path, **options: Any) -> tuple[Any, list[str], list[str]]:
    context = browser.new_context(offline=True, **options)
    page = context.new_page()
    messages: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(report.as_uri())
    return page, messages, requests


def _column(page: Any, index: int) -> list[str]:
    texts: list[str] = page.eval_on_selector_all(
        f"{MAIN} >> nth=0 >> tbody tr", f"rows => rows.filter(r => !r.hidden).map(r => r.cells[{index}].innerText)"
    )
    return texts


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_the_report_opens_offline_without_errors_requests_or_overflow(
    browser: Any, report: Path, scheme: str, width: int
) -> None:
    page, messages, requests = _open(browser, report, color_scheme=scheme, viewport={"width": width, "height": 844})
    assert messages == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert len([url for url in requests if url.startswith("file:")]) == 1
    page.eval_on_selector_all("details", "all => all.forEach(one => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    if width == 390:  # accuracy and its difference to FP32 are seen beside the name, and that more follows is said
        edges = page.eval_on_selector_all(
            f"{MAIN} >> nth=0 >> thead th",
            "all => all.map(h => [h.innerText.split('\\n')[0], h.getBoundingClientRect()])",
        )
        seen = [name for name, box in edges if box["left"] >= 0 and box["right"] <= width]
        assert [name.split("\u00a0")[0] for name in seen] == ["Method", "Accuracy", "Δ to FP32"]
    hints = page.evaluate(
        "new Promise(done => setTimeout(() => done([...document.querySelectorAll('.scroll')].map(s => ["
        " s.scrollWidth > s.clientWidth + 1, getComputedStyle(s, '::before').content.includes('more columns')])), 100))"
    )
    assert hints
    assert all(is_wide == is_told for is_wide, is_told in hints)
    assert any(is_wide for is_wide, _ in hints) is (width == 390)
    inside = page.evaluate(
        "[...document.querySelectorAll('main p, main li, h1, h2, h3, dd, figcaption')]"
        ".filter(e => e.getBoundingClientRect().right > innerWidth && !e.closest('.scroll, .plot, pre')).length"
    )
    assert inside == 0
    ink, paper = page.evaluate(
        "(() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; })()"
    )
    assert ink != paper
    drawn = page.evaluate("getComputedStyle(document.querySelector('figure svg text')).fill")
    assert drawn == ink


def test_tables_sort_by_number_both_ways_with_missing_values_last(browser: Any, report: Path) -> None:
    page, messages, _ = _open(browser, report)
    headers = page.eval_on_selector_all(f"{MAIN} >> nth=0 >> thead th", "all => all.map(h => h.innerText)")
    step = next(index for index, text in enumerate(headers) if text.split("\n")[0] == "Step")
    button = page.locator(f"{MAIN} >> nth=0").locator("thead th").nth(step).locator("button")
    button.click()
    ascending = [float(text.split()[0]) for text in _column(page, step)]
    assert ascending == sorted(ascending)
    button.focus()
    page.keyboard.press("Enter")
    descending = [float(text.split()[0]) for text in _column(page, step)]
    assert descending == sorted(descending, reverse=True)
    sorted_by = page.eval_on_selector_all(f"{MAIN} >> nth=0 >> th[aria-sort]", "all => all.map(h => h.ariaSort)")
    assert sorted_by == ["descending"]
    adds = next(index for index, text in enumerate(headers) if text.startswith("Hypernetwork adds"))
    page.locator(f"{MAIN} >> nth=0").locator("thead th").nth(adds).locator("button").click()
    texts = _column(page, adds)
    empty = [text.startswith(("–", "n/a")) for text in texts]
    assert empty == sorted(empty)
    assert messages == []


def test_the_main_table_needs_no_scrolling_on_a_laptop(browser: Any, report: Path) -> None:
    page, _, _ = _open(browser, report, viewport={"width": 1280, "height": 900})
    hidden = page.eval_on_selector_all(
        MAIN, "all => all.map(t => t.closest('.scroll')).map(s => s.scrollWidth - s.clientWidth)"
    )
    assert hidden
    assert max(hidden) <= 0


def test_the_page_speaks_to_a_screen_reader(browser: Any, report: Path) -> None:
    page, _, _ = _open(browser, report)
    levels = page.eval_on_selector_all("h1, h2, h3, h4, h5", "all => all.map(h => Number(h.tagName[1]))")
    assert levels[0] == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels)), "a heading level is skipped"
    drawings = page.eval_on_selector_all("figure svg", "all => all.map(s => [s.getAttribute('role'), s.ariaLabel])")
    assert drawings
    assert all(role == "img" and len(label or "") > 20 for role, label in drawings)
    assert page.evaluate("document.documentElement.lang") == "en"
    for selector in ("[role=region]", "table.data", "input", "nav", "main > section"):
        names = page.eval_on_selector_all(
            selector,
            "all => all.map(e => e.ariaLabel"
            " || document.getElementById(e.getAttribute('aria-labelledby'))?.textContent)",
        )
        assert names, selector
        assert all(name and name.strip() for name in names), f"{selector} without a name"
    unreachable = page.eval_on_selector_all(
        ".scroll, .plot, pre", "all => all.filter(e => e.scrollWidth > e.clientWidth && e.tabIndex < 0).length"
    )
    assert unreachable == 0


def test_in_print_all_is_read_on_white_and_nothing_is_cut_off(browser: Any, report: Path) -> None:
    page, _, _ = _open(browser, report, viewport={"width": 1060, "height": 750}, color_scheme="dark")
    page.evaluate("document.querySelector('details.cell').open = true")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1060
    for control in ("label.filter", "nav.toc", "details.cell:not([open])"):
        assert not page.locator(control).first.is_visible(), control
    assert page.get_by_text("Printed are the cells that were open").is_visible()
    cut = page.evaluate(
        "[...document.querySelectorAll('.scroll, .plot, pre')].filter(e => e.checkVisibility())"
        ".filter(e => getComputedStyle(e).overflow !== 'visible' || getComputedStyle(e).maxHeight !== 'none').length"
    )
    assert cut == 0
    dark = page.evaluate(
        "[...document.querySelectorAll('body, .note, pre, th, td, .scroll')].map(e => getComputedStyle(e))"
        ".filter(s => !['rgb(255, 255, 255)', 'rgb(244, 244, 244)', 'rgba(0, 0, 0, 0)'].includes(s.backgroundColor)"
        " || s.backgroundImage !== 'none').length"
    )
    assert dark == 0
    count = "document.querySelectorAll('thead th button').length"
    buttons = page.evaluate(count)
    for event, left in (("beforeprint", 0), ("afterprint", buttons)):
        page.evaluate(f"window.dispatchEvent(new Event('{event}'))")
        assert page.evaluate(count) == left, "Chromium repeats no header with a button in it on the next page"
    stuck = page.evaluate("[...document.querySelectorAll('th')].filter(h => getComputedStyle(h).position !== 'static')")
    assert stuck == [], "Chromium repeats no header that sticks"
    closed = page.locator("#environment ~ details:not([open]) dl")
    assert [one.is_visible() for one in closed.all()] == [True, True], "machines are printed, closed or not"


def test_filtering_keeps_the_rows_that_hold_every_word(browser: Any, report: Path) -> None:
    page, _, _ = _open(browser, report)
    field = page.get_by_label("Filter rows of Accuracy and cost").first
    field.fill("metagrad emulated")
    assert {name.split()[0] for name in _column(page, 0)} == {
        "metagrad_int4_retain", "metagrad_int4_slim", "metagrad_int4_recompute",
    }  # fmt: skip
    field.fill("")
    assert len(_column(page, 0)) == 8


def test_every_link_leads_to_a_place_in_the_file_and_opens_its_cell(browser: Any, report: Path) -> None:
    page, _, _ = _open(browser, report)
    dead = page.evaluate(
        "[...document.querySelectorAll('a')].map(a => a.getAttribute('href'))"
        ".filter(h => !h.startsWith('#') || !document.getElementById(h.slice(1)))"
    )
    assert dead == []
    page.locator(f"{MAIN} >> nth=0 >> tbody th a >> nth=0").click()
    assert page.evaluate("document.querySelector('details:target').open")


def test_a_script_in_a_name_does_not_run(
    browser: Any, demo_records: Callable[..., list[RunRecord]], write_runs: Callable[..., Path], tmp_path: Path
) -> None:
    hostile = "<script>document.title = 'owned'</script><img src=x onerror=\"document.title = 'owned'\">"
    records = demo_records(["fp32", "uint8_int8"], notices=(hostile,))
    records[1] = dataclasses.replace(records[1], variant=hostile)
    page, messages, requests = _open(browser, build_report([write_runs(records)], tmp_path / "out").html)
    assert page.title() == "metagrad-bench: demo"
    assert messages == []
    assert [url for url in requests if not url.startswith("data:")] == [page.url]
    assert hostile in page.locator("body").inner_text().replace("\n", "")
