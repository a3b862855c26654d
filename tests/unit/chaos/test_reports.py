"""Reports of runs: they tell all, from any text, and need nothing from elsewhere."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from regrow.chaos import reports
from regrow.chaos.reports.charts import BINS_S, histogram, round_step
from regrow.chaos.reports.index import index
from regrow.chaos.reports.junit import junit
from regrow.chaos.reports.markup import element
from regrow.chaos.reports.page import page
from regrow.chaos.reports.totals import Totals
from regrow.chaos.result import RunResult, as_json, percentile
from tests.unit.chaos.results import result

#: Elements that have no end.
VOID = {"meta"}


class Reader(HTMLParser):
    """Fails at an element that is not closed; keeps the text and the addresses."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.texts: list[str] = []
        self.addresses: list[str] = []
        self.tags: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("href", "src")]
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        """All of it."""
        return "\n".join(self.texts)


def read(document: str) -> Reader:
    reader = Reader()
    reader.feed(document)
    reader.close()
    assert not reader.open
    return reader


def test_the_page_of_a_run_tells_what_happened() -> None:
    text = read(page(result())).text
    for told in (
        "passed", "node_crash, seed 3", "1,200", "2.50 s", "2.10 s", "1.020",
        "no operation failed", "regrow chaos run node_crash --seed 3", "logs/gcs.log",
        "worker_crash: worker 12 of node 1, at 7.0 s",
        "node_crash: node 3, at 4.0 s, healed after 2.0 s; noticed after 2.10 s; all that it hit",
    ):  # fmt: skip
        assert told in text, told


def test_a_page_needs_no_script_and_nothing_from_elsewhere() -> None:
    document = page(result())
    reader = read(document)
    assert not reader.tags & {"script", "link", "img", "iframe"}
    assert all("//" not in address for address in reader.addresses)
    assert "url(" not in document
    assert "prefers-color-scheme: dark" in document


def test_a_failed_run_shows_each_finding() -> None:
    text = read(page(result(finding="counter 1: <b>1.7</b> was counted twice"))).text
    assert "FAILED" in text
    assert "counter 1: <b>1.7</b> was counted twice" in text


def test_a_run_without_a_verdict_says_why() -> None:
    broken = RunResult(result().scenario, 4, "regrow chaos run x --seed 4", broken="OSError: full")
    text = read(page(broken)).text
    assert "no verdict" in text
    assert "OSError: full" in text
    assert "No fault hit an operation under way." in text


def test_what_was_made_again_hangs_below_what_needed_it() -> None:
    document = page(result())
    tree = document[document.index('class="lineage"') :]
    assert tree.index("branch") < tree.index("leaf")
    assert re.search(r"<li>(?:(?!</li>).)*branch(?:(?!</li>).)*<ul><li>(?:(?!</li>).)*leaf", tree)


def test_lineage_that_goes_in_circles_or_beyond_what_is_told_is_shown_once() -> None:
    one = result()
    one.replays[1].needed_by = ["aa" * 16, "cc" * 16]
    tree = read(page(one)).text
    assert "Lineage of what was made again" in tree


def test_junit_has_a_suite_for_each_run_and_a_case_for_each_checker() -> None:
    document = ET.fromstring(junit([result(), result(seed=4, finding="a\x00b"), result(seed=5)]))
    assert [suite.get("name") for suite in document] == [
        "node_crash seed 3", "node_crash seed 4", "node_crash seed 5",
    ]  # fmt: skip
    assert (document.get("tests"), document.get("failures"), document.get("errors")) == (
        "6", "1", "0",
    )  # fmt: skip
    [failure] = document.iter("failure")
    assert failure.get("message") == "not so: answers are right"
    assert failure.text is not None
    assert failure.text.startswith("a\N{REPLACEMENT CHARACTER}b")
    assert "regrow chaos run node_crash --seed 4" in failure.text


def test_junit_tells_a_run_without_a_verdict_as_an_error() -> None:
    broken = RunResult(result().scenario, 4, "again", broken="OSError: full")
    document = ET.fromstring(junit([broken]))
    assert document.get("errors") == "1"
    [error] = document.iter("error")
    assert error.get("message") == "OSError: full"


def test_json_reads_back_as_the_result() -> None:
    one = result(finding="wrong")
    document = as_json(one)
    assert json.loads(document)["passed"] is False
    assert msgspec.json.decode(document, type=RunResult) == one


def test_the_index_links_each_run_and_sums_up() -> None:
    reader = read(index([(result(), "a/report.html"), (result(seed=4, finding="x"), "b")]))
    assert reader.addresses == ["a/report.html", "b"]
    assert "1 FAILED" in reader.text
    assert "2,400" in reader.text


def test_all_files_of_several_runs_are_written(tmp_path: Path) -> None:
    results = [result(), result(seed=4)]
    for one in results:
        reports.write(one, tmp_path / reports.folder_name(one))
    reports.write_all(results, tmp_path)
    written = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*.*"))
    assert written == [
        "index.html", "junit.xml",
        "node_crash-3/junit.xml", "node_crash-3/report.html", "node_crash-3/result.json",
        "node_crash-4/junit.xml", "node_crash-4/report.html", "node_crash-4/result.json",
    ]  # fmt: skip
    reader = read((tmp_path / "index.html").read_text())
    assert all((tmp_path / address).exists() for address in reader.addresses)


def test_totals_add_up() -> None:
    totals = Totals.of([result(), result(seed=4, finding="x")])
    assert (totals.runs, totals.failed_runs, totals.acknowledged) == (2, 1, 2400)
    assert totals.fired == {"node_crash": 2, "worker_crash": 2}
    assert totals.recoveries_s == [0.4, 2.5, 0.4, 2.5]


@given(st.text())
def test_any_text_is_shown_as_it_is(text: str) -> None:
    ET.fromstring(element("p", text, title=text))


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=50))
def test_the_histogram_counts_every_recovery(values: list[float]) -> None:
    document = ET.fromstring(histogram(values))
    labels = [one.text for one in document.iter("text") if one.get("class") == "label middle"]
    assert sum(int(text or "") for text in labels) == len(values)


def test_the_histogram_has_a_bar_for_what_is_longer_than_all_bars() -> None:
    assert f"&gt; {BINS_S[-1]:g} s" in histogram([0.05, 1000.0])


@given(st.floats(0.01, 1e6), st.integers(1, 20))
def test_steps_of_an_axis_are_round_and_few(span: float, parts: int) -> None:
    step = round_step(span, parts)
    assert step * parts >= span * 0.999
    assert f"{step:.0e}"[0] in "125"


@pytest.mark.parametrize(("share", "value"), [(0.0, 1), (0.5, 2), (0.51, 3), (0.99, 4), (1.0, 4)])
def test_percentiles_are_by_nearest_rank(share: float, value: int) -> None:
    assert percentile([4.0, 1.0, 3.0, 2.0], share) == value
