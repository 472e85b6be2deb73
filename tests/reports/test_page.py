from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from html.parser import HTMLParser
from typing import Any

import msgspec
import pytest

from bench.config import CellConfig, as_plain
from bench.records.schema import RunRecord
from reports.definitions import DEFINITIONS
from reports.details import paths_text
from reports.load import Loaded, UnreadFile
from reports.page import FULL_DETAILS, Page, build_page
from reports.render import MARKDOWN_LIMIT, render_html, render_markdown
from reports.reproduce import reproduce_command
from reports.sections import build_sections
from reports.tables.model import Table
from reports.values import leaves

Make = Callable[..., list[RunRecord]]
HOSTILE = '<script>alert(1)</script>|"\n`x` [a](http://evil.example) @all =1+1 \u202e rtl عربى'


class _Elements(HTMLParser):
    """Every element with its attributes and its own text, in document order."""

    VOID = frozenset({"meta", "link", "br", "wbr", "input"})

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []  # of the element at the same position, up to its first child
        self._open: list[int] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self.texts.append("")
        if tag not in self.VOID:
            self._open.append(len(self.tags) - 1)

    def handle_endtag(self, tag: str) -> None:
        while self._open and self.tags[self._open.pop()][0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        if self._open:
            self.texts[self._open[-1]] += data


def _page(records: list[RunRecord], problems: tuple[UnreadFile, ...] = ()) -> Page:
    return build_page(Loaded(records=tuple(records), problems=problems), build_sections(records), {}, {})


def _tables(page: Page) -> dict[str, Table]:
    return {table.key: table for topic in page.sections[0].topics for table in topic.tables}


def _tags(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = _Elements()
    parser.feed(html)
    return parser.tags


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A record's own number as the page prints it."""

    anchor: str
    path: str
    text: str
    value: str | None  # as the attribute for sorting has it


def _shown_numbers(html: str) -> Iterator[_Shown]:
    parser = _Elements()
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
    page = _page(records)
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
    html = render_html(_page([record]))
    assert 'data-value="98.06" data-source="accuracy.test_accuracy_pct">98.06' in html
    assert record.timing is not None
    median = record.timing.step_ms.median
    assert f'data-value="{median}" data-source="timing.step_ms.median">{median:.1f} ms' in html
    assert f'data-value="{58 * 1024**2}" data-source="memory.peak_allocated_bytes">58.0 MiB' in html


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
    html = render_html(_page([changed]))
    assert ">fprop direct: fastest of int_mm 2 ms, direct &lt;1 ms; wgrad float32: fastest</td>" in html
    assert ">int_mm: dispatch=integer</td>" in html


def test_html_and_markdown_print_the_same_main_table(demo_records: Make) -> None:
    page = _page(demo_records())
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
    page = _page(records)
    for table in (_tables(page)["main"], _tables(page)["time"]):
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
        table = _page(demo_records(["fp32", "uint8_int8", "uint8_int4"], seeds=seeds)).sections[0].main
        index = [column.key for column in table.columns].index("accuracy")
        assert sum(row.cells[index].best for row in table.rows) == marked


def test_the_hypernetworks_own_products_and_slims_share_are_shown_as_such(demo_records: Make) -> None:
    page = _page(demo_records(["uint8_int4", "metagrad_int4_retain", "metagrad_int4_slim"]))
    tables = _tables(page)
    macs = [row.cells[-1] for row in tables["gemms"].rows]
    assert [cell.text for cell in macs] == ["–", "24.1", "24.1"]
    assert macs[1].source == "gemms.hypernet_float_macs"
    assert [row.cells[-1].detail for row in tables["hypernetwork"].rows] == ["", "one layer's share"]


def test_the_page_is_one_file_that_may_load_nothing(demo_records: Make) -> None:
    html = render_html(_page(demo_records()))
    tags = _tags(html)
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
    html = render_html(_page(records, problems))
    tags = _tags(html)
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
    html = render_html(_page(records))
    for text in ("diverged", "out of memory", "failed", "from step 7", "needs 9 GiB", "signal 11"):
        assert text in html


def test_synthetic_data_is_named_and_its_accuracy_never_shown(demo_records: Make) -> None:
    (record,) = demo_records(["uint8_int8"], data_name="synthetic")
    assert record.data is not None
    record = dataclasses.replace(record, data=dataclasses.replace(record.data, name="synthetic", synthetic=True))
    for text in (render_html(_page([record])), render_markdown(_page([record]))):
        assert "98.06" not in text
        assert "(synthetic data)" in text


def test_markdown_stays_below_its_limit_however_much_there_is(demo_records: Make) -> None:
    records = [
        dataclasses.replace(record, key=f"{record.key}-{n}", suite=f"suite{n}", notices=("n" * 400,))
        for n in range(60)
        for record in demo_records()
    ]
    text = render_markdown(_page(records))
    assert len(text.encode()) < MARKDOWN_LIMIT
    assert "report.html" in text


def test_one_suite_of_ninety_rows_still_fits_in_markdown(demo_records: Make) -> None:
    records = [
        dataclasses.replace(record, key=f"{record.key}-{n}", variant=f"{record.variant}_{n}")
        for n in range(90)
        for record in demo_records()
    ]
    text = render_markdown(_page(records))
    assert len(text.encode()) < MARKDOWN_LIMIT
    assert "more rows are in report.html" in text


def test_beyond_a_limit_cells_are_shown_in_brief_and_every_row_still_links_to_its_own(
    demo_records: Make, without_results: dict[str, Any]
) -> None:
    records = demo_records(["fp32"], seeds=range(FULL_DETAILS + 5))
    last = dataclasses.replace(records[-1], status="crashed", reason="signal 11", **without_results)
    page = _page([*records[:-1], last])
    brief = [detail for detail in page.details if detail.brief]
    assert page.num_brief == len(brief) == 5
    assert brief[0].brief.startswith("accuracy 98.")
    assert brief[-1].brief == "nothing was measured"
    assert brief[0].command.endswith(f"seed={FULL_DETAILS}")
    html = render_html(page)
    assert f"5 of {FULL_DETAILS + 5} cells are shown in brief" in html
    assert "signal 11" in html
    ids = {attributes["id"] for _, attributes in _tags(html) if "id" in attributes}
    links = [str(a["href"])[1:] for tag, a in _tags(html) if tag == "a"]
    assert set(links) <= ids
    assert {detail.anchor for detail in page.details} <= set(links)


def test_commands_name_the_suite_the_variant_and_the_seeds(demo_records: Make) -> None:
    commands = _page(demo_records(["fp32", "uint8_int8"], seeds=(0, 1))).sections[0].commands
    assert commands == (
        "metagrad-bench run suite=demo device=cpu seed=0,1",
        "metagrad-bench run suite=demo variant=fp32 device=cpu seed=0,1",
        "metagrad-bench run suite=demo variant=uint8_int8 device=cpu seed=0,1",
    )


def test_the_commit_stands_beside_the_digest_of_the_code_or_why_there_is_none(demo_records: Make) -> None:
    def code(**package: Any) -> str:
        return _page(demo_records(["fp32"], environment={"package": package})).sections[0].code

    version = "Code version 0.1.0+0123abcd (digest of the code); "
    assert code(git_commit="f00d", git_dirty=False) == f"{version}git commit f00d"
    assert code(git_commit="f00d", git_dirty=True) == f"{version}git commit f00d with uncommitted changes"
    assert code(git_commit={"reason": "git could not be run"}) == f"{version}git commit n/a (git could not be run)"
    assert code() == f"{version}git commit n/a (not recorded)"
    page = _page(demo_records(["fp32"]))
    assert "git commit f00dcafef00dcafe" in render_html(page)
    assert "git commit f00dcafef00dcafe" in render_markdown(page)


def test_a_suite_with_several_models_names_the_model(demo_records: Make) -> None:
    records = [*demo_records(["fp32"]), *demo_records(["fp32"], model_name="vgg16", key="v")]
    commands = [command for view in _page(records).sections for command in view.commands]
    assert "metagrad-bench run suite=demo variant=fp32 model=vgg16 device=cpu seed=0" in commands


def test_a_cell_without_a_variant_is_repeated_by_what_it_changes(make_record: Callable[..., RunRecord]) -> None:
    cell = CellConfig(error_bits=8)
    cell.method.name = "uint8"
    cell.protocol.epochs = 3
    record = make_record(variant="custom", suite="single", cell=as_plain(cell))
    command = reproduce_command(record, with_model=False, with_data=False, seeds=[0])
    assert command == "metagrad-bench run error_bits=8 method=uint8 protocol.epochs=3 device=cpu seed=0"


def test_a_cell_of_a_preset_is_repeated_by_it_and_by_its_variants_file(make_record: Callable[..., RunRecord]) -> None:
    cell = as_plain(CellConfig(preset_name="metaquant_fig6_adam"))
    for label, variant in (
        ("metaquant_w1_lstm_fc_bwn_adam", "metaquant_w1_lstm_fc"),
        ("fp32", "fp32"),
        ("of_a_user", "of_a_user"),
    ):
        record = make_record(variant=label, suite="metaquant_convergence", model_name="resnet20", cell=cell)
        command = reproduce_command(record, with_model=True, with_data=True, seeds=[0])
        words = f"suite=metaquant_convergence variant={variant} preset=metaquant_fig6_adam device=cpu seed=0"
        assert command == f"metagrad-bench run {words}"


def test_a_hostile_name_is_quoted_in_a_command(make_record: Callable[..., RunRecord]) -> None:
    record = make_record(variant="x; rm -rf ~")
    command = reproduce_command(record, with_model=False, with_data=False, seeds=[0])
    assert "'variant=x; rm -rf ~'" in command


def test_every_numeric_column_of_the_main_table_is_explained(demo_records: Make) -> None:
    terms = " ".join(term for term, _ in DEFINITIONS).lower()
    for column in _page(demo_records()).sections[0].main.columns[1:]:
        header = column.header.lower().replace("peak memory", "peak allocated")
        assert header in terms


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
    check_golden(f"{case}.md", render_markdown(_page(records, problems)))
