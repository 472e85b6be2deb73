"""Every number of the page is the record's."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator

from bench.records.schema import RunRecord
from reports.render import render_html
from reports.values import leaves
from tests.reports.pages import Elements, Make, page_of


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A record's own number as the page prints it."""

    anchor: str
    path: str
    text: str
    value: str | None  # as the attribute for sorting has it


def _shown_numbers(html: str) -> Iterator[_Shown]:
    parser = Elements()
    parser.feed(html)
    record = ""
    for (_, attributes), text in zip(parser.tags, parser.texts, strict=True):
        record = attributes.get("data-record") or record
        if source := attributes.get("data-source"):
            yield _Shown(record, source, text, attributes["data-value"])
        if sources := attributes.get("data-sources"):
            for path, number in zip(sources.split(), NUMBER.findall(text), strict=False):
                yield _Shown(record, path, number, None)
        if source := attributes.get("data-list"):
            for index, number in enumerate(text.split(", ")):
                yield _Shown(record, f"{source}[{index}]", number, None)


NUMBER = re.compile(r"[-−]?\d[\d,]*(?:\.\d+)?(?:e[-+]\d+)?")

UNITS = {"": 1, "ms": 1, "%": 1, "×": 1, "B": 1, "KiB": 1024, "MiB": 1024**2, "GiB": 1024**3, "s": 1, "J": 1}


def _says(text: str, value: float, factors: tuple[float, ...]) -> bool:
    """Whether a printed number is the value, rounded where its digits end."""
    digits = NUMBER.match(text.strip())
    assert digits is not None, f"{text!r} starts with no number"
    plain = digits[0].replace("−", "-").replace(",", "")
    unit = text.strip()[digits.end() :].strip()
    mantissa, _, exponent = plain.partition("e")
    half = 0.5 * 10.0 ** (int(exponent or 0) - len(mantissa.partition(".")[2]))
    scales = (UNITS[unit],) if unit in UNITS and unit else factors
    return any(abs(float(plain) * scale - value) <= half * scale * 1.001 for scale in scales)


#: What stands in tables/*.csv alone, or without marks of its own (environment, layer shapes).
ELSEWHERE = re.compile(
    r"environment\.|model\.layers|timing\.repeats\[\d+\]\.(?!step_ms|fp32_step_ms)|"
    r"profile\.\w+\.(spans|products|work|plain_step_ms|spanned_step_ms)\[|profile\.fp32\.trace\.operators"
)


def test_every_number_in_the_html_equals_the_records_and_every_records_number_is_there(
    demo_records: Make, profiled: Callable[[RunRecord], RunRecord]
) -> None:
    records = [profiled(record) for record in demo_records()]
    page = page_of(records)
    by_anchor = {detail.anchor: dict(leaves(detail.record)) for detail in page.details}
    shown: dict[str, set[str]] = {anchor: set() for anchor in by_anchor}
    checked = 0
    for one in _shown_numbers(render_html(page)):
        value = by_anchor[one.anchor][one.path]
        assert one.value is None or float(one.value) == value, f"{one.path} of {one.anchor}"
        # in millions where the header says so
        factors = (1, 1e6) if one.path == "gemms.hypernet_float_macs" else (1,)
        assert _says(one.text, value, factors), f"{one.path} of {one.anchor} is {value} and reads {one.text}"
        shown[one.anchor].add(one.path)
        checked += 1
    assert checked > 8 * 150
    for anchor, values in by_anchor.items():
        numbers = {p for p, v in values.items() if isinstance(v, int | float) and not isinstance(v, bool)}
        assert {path for path in numbers - shown[anchor] if not ELSEWHERE.match(path)} == set()


def test_a_number_that_the_page_prints_wrongly_is_noticed(demo_records: Make) -> None:
    assert _says("13.2 MiB", 13.2 * 1024**2, (1,))
    assert _says("−1.67", -1.6666, (1,))
    assert not _says("13.3 MiB", 13.2 * 1024**2, (1,))
    assert not _says("56.5 ms", 55.9, (1,))


def test_the_main_table_shows_the_records_numbers_with_their_units(demo_records: Make) -> None:
    (record,) = demo_records(["uint8_int8"])
    html = render_html(page_of([record]))
    assert 'data-value="98.06" data-source="accuracy.test_accuracy_pct">98.06' in html
    assert record.timing is not None
    median = record.timing.step_ms.median
    assert f'data-value="{median}" data-source="timing.step_ms.median">{median:.1f} ms' in html
    assert f'data-value="{58 * 1024**2}" data-source="memory.peak_allocated_bytes">58.0 MiB' in html
