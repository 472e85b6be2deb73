"""Pages of records, and HTML read back element by element."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser

from bench.records.schema import RunRecord
from reports.load import Loaded, UnreadFile
from reports.page import Page, build_page
from reports.sections import build_sections
from reports.tables.model import Table

Make = Callable[..., list[RunRecord]]

HOSTILE = '<script>alert(1)</script>|"\n`x` [a](http://evil.example) @all =1+1 \u202e rtl عربى'


class Elements(HTMLParser):
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


def page_of(records: list[RunRecord], problems: tuple[UnreadFile, ...] = ()) -> Page:
    return build_page(Loaded(records=tuple(records), problems=problems), build_sections(records), {}, {})


def tables_of(page: Page) -> dict[str, Table]:
    return {table.key: table for topic in page.sections[0].topics for table in topic.tables}


def tags_of(html: str) -> list[tuple[str, dict[str, str | None]]]:
    parser = Elements()
    parser.feed(html)
    return parser.tags
