"""The report: a page that is whole, loads nothing, holds the numbers and lets no name break out."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from rayrec.artifacts import Json
from rayrec.data.drift import drift
from rayrec.data.report import render
from rayrec.data.statistics import log_statistics, segment_statistics

HOSTILE = "<script>alert('x')</script>\"&"
VOID = {"meta"}


class Page(HTMLParser):
    """The tags of a page, checked for balance, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.ids: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)
        self.ids += [value for name, value in attrs if name == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: Any) -> None:
        self.tags.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data + "\n"


def log(count: int, days: int, seed: int = 0, name: str = "view") -> pa.Table:
    generator = np.random.default_rng(seed)
    return pa.table(
        {
            "user": generator.integers(1, 100, count),
            "item": generator.integers(1, 200, count),
            "type": pa.array([name, "buy"]).take(pa.array(generator.integers(0, 2, count))),
            "value": generator.lognormal(3, 1, count),
            "timestamp": 1_700_000_000_000 + generator.integers(0, days * 86_400_000, count),
            f"context_{name}": pa.nulls(count, pa.string()),
        }
    )


def described(events: pa.Table) -> tuple[Json, dict[str, pa.Table]]:
    vocab = {}
    for table in ("user", "item"):
        counts = np.bincount(events[table].to_numpy(), minlength=201)[1:]
        vocab[table] = pa.table({"index": np.arange(1, 201), "events": counts})
    return log_statistics([segment_statistics(events)], vocab), vocab


def manifest(events: int, name: str = "shop", **changed: Any) -> Json:
    return {
        "name": name,
        "parent": None,
        "simulated": False,
        "order": "timestamp",
        "time_range_ms": [1_700_000_000_000, 1_700_864_000_000],
        "counts": {"read": events + 30, "quarantined": 20, "deduplicated": 10, "events": events},
        "reasons": {"item missing": 20},
        "vocab": {"user": {"rows": 200}, "item": {"rows": 200}},
        "files": [{"name": f"{name}.csv", "source": 0, "rows": events + 30}],
    } | changed


VIEW: Json = {
    "counts": {"users": 90, "items": 150, "events": 1800, "train": 1620, "validation": 90, "test": 90},
    "filtered": {"min_user_events": 165, "event_types": 35},
    "view": {"event_types": ["view"], "min_user_events": 3},
    "split": {"kind": "leave-one-out"},
    "clean": {},
}


def test_the_page_holds_the_numbers() -> None:
    statistics, _ = described(log(2000, 400))
    page = Page(render(manifest(2000), statistics, VIEW, number=4))
    for text in ("2,030", "−20", "−10", "= 2,000", "item missing", "shop.csv", "−165", "1,620", "no parent", "2023-11"):
        assert text in page.text
    assert page.text.count("The sums add up") == 2
    assert page.tags.count("svg") == 5
    assert len(page.ids) == len(set(page.ids))


def test_sums_that_do_not_add_up_are_said() -> None:
    statistics, _ = described(log(2000, 400))
    page = Page(render(manifest(1990), statistics))
    assert "The sums add up" in page.text
    counts = {"read": 2040, "quarantined": 20, "deduplicated": 10, "events": 2000, "erased": 3}
    assert "7 unaccounted for" in Page(render(manifest(2000, counts=counts), statistics)).text


@pytest.mark.parametrize("days", [1, 60, 600, 4000, 20_000])
def test_bars_are_neither_few_nor_many_and_hold_every_event(days: int) -> None:
    page = render(manifest(3000), described(log(3000, days))[0])
    counts = re.findall(r"(day|week|month|year) of [\d-]+: ([\d,]+) events</title>", page)
    assert sum(int(count.replace(",", "")) for _, count in counts) == 3000
    assert len(counts) <= 182


def test_the_page_loads_nothing() -> None:
    statistics, vocab = described(log(2000, 50))
    page = render(manifest(2000), statistics, VIEW, drift(statistics, described(log(1000, 50))[0], vocab, vocab))
    assert not re.search(r"https?:|url\(|@import|src=|href=", page)
    assert not {"script", "link", "img", "iframe", "object"} & set(Page(page).tags)


def test_hostile_names_are_text() -> None:
    events = log(500, 50, name=HOSTILE)
    (now, now_vocab), (parent, parent_vocab) = described(events), described(events.slice(0, 300))
    view = VIEW | {"filtered": {HOSTILE: 1}, "view": {"event_types": [HOSTILE]}, "split": {"kind": HOSTILE}}
    hostile = manifest(500, HOSTILE, parent=HOSTILE, reasons={HOSTILE: 20}, simulated=True)
    page = Page(render(hostile, now, view, drift(now, parent, now_vocab, parent_vocab)))
    assert "script" not in page.tags
    assert page.text.count("<script>alert('x')</script>") >= 8
    assert "simulated data" in page.text


def test_a_log_without_times_has_no_charts_of_time() -> None:
    statistics, vocab = described(log(2000, 50))
    found = drift(statistics, described(log(1000, 50))[0], vocab, vocab)
    page = Page(render(manifest(2000, order="file", time_range_ms=None), statistics, None, found))
    assert "The log has no times" in page.text
    assert "Hours of the week: divergence" not in page.text


def test_drift_is_shown_against_the_parent() -> None:
    (parent, parent_vocab), (now, now_vocab) = described(log(1000, 50)), described(log(5000, 50))
    page = Page(render(manifest(5000, parent=1), now, None, drift(now, parent, now_vocab, parent_vocab)))
    assert "4,000 events were appended" in page.text
    assert "Popularity of items: divergence" in page.text
    assert "small" in page.text


def test_equal_input_gives_an_equal_page() -> None:
    statistics, _ = described(log(2000, 50))
    assert render(manifest(2000), statistics, VIEW) == render(manifest(2000), statistics, VIEW)
