"""What verbs give back: words for people, short in a shell, drawn in a notebook, harmless everywhere."""

import dataclasses
import inspect
import json
import pickle
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

import distconv
from distconv.cli import main
from distconv.verbs.convert_each import EachReport
from distconv.verbs.reports import Report
from distconv.verbs.tables import Table
from tests.checkpoints import Spec
from tests.test_screen import FOREIGN, is_harmless

REPORTS = [EachReport] + [
    found
    for name in distconv.__all__
    if inspect.isclass(found := getattr(distconv, name)) and issubclass(found, Report) and found is not Report
]


@dataclass(frozen=True, slots=True, repr=False)
class AnyReport(Report):
    """A report that holds one text wherever a report can hold one."""

    text: str
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        return {"text": self.text}

    def lines(self) -> Sequence[str | Table]:
        return (Table(("a", self.text), [(self.text, "1")], (False, True)), "", self.text, f"b {self.text}")


class Tags(HTMLParser):
    """Collects the tags of a page, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.text += data


def test_every_report_of_the_package_is_one() -> None:
    assert len(REPORTS) == 11
    for report in REPORTS:
        assert dataclasses.is_dataclass(report)
        assert report.__repr__ is Report.__repr__, f"{report.__name__}: a dataclass prints all that it holds"
        assert "notes" in dir(report)


@given(text=FOREIGN)
def test_any_text_is_shown_and_does_nothing(text: str) -> None:
    report = AnyReport(text, (text,))
    assert is_harmless(str(report))
    assert str(report).startswith("note: ")
    assert repr(report).isprintable()
    assert len(repr(report)) < 200
    page = Tags(report._repr_html_())
    assert set(page.tags) <= {"div", "b", "table", "thead", "tbody", "tr", "th", "td", "pre"}
    assert is_harmless(page.text)


@given(lines=st.lists(st.text(st.characters(categories=["L", "P", "S"]), min_size=1), min_size=1))
def test_a_notebook_shows_every_line_once_and_in_order(lines: list[str]) -> None:
    @dataclass(frozen=True, slots=True, repr=False)
    class Lines(Report):
        notes: tuple[str, ...] = ()

        def to_json(self) -> dict[str, object]:
            return {}

        def lines(self) -> Sequence[str]:
            return lines

    assert Tags(Lines()._repr_html_()).text == "\n".join(lines) == str(Lines())


def test_reports_say_what_the_command_prints(
    checkpoint: Callable[[Spec], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = checkpoint(Spec("llama-2", shards=2))
    for verb in ("inspect", "plan", "check"):
        main([verb, str(source), *(["--quiet"] if verb == "check" else [])])
        report = getattr(distconv, verb)(source)
        out = capsys.readouterr().out
        said = re.sub(r"`device='cuda'`", "--device cuda", str(report))
        assert said.endswith(out.rstrip("\n"))
        notes = said.removesuffix(out.rstrip("\n")).splitlines()
        assert notes == [f"note: {note}" for note in report.notes]
    assert repr(distconv.plan(source)) == "<PlanReport: family Llama 2, bfloat16>"
    assert repr(distconv.inspect(source)) == "<Inspection: family Llama 2>"
    made = distconv.convert(source, tmp_path / "out")
    assert repr(made) == f"<ConversionReport: {tmp_path / 'out'}: Llama 2, bfloat16, 1 chunk>"
    assert len(repr(distconv.manifest(tmp_path / "out", tmp_path / "m.json"))) < 200
    assert "<td" in distconv.plan(source)._repr_html_()
    json.dumps(made.to_json())


def test_reports_cross_to_other_processes_and_back(
    checkpoint: Callable[[Spec], Path], tmp_path: Path
) -> None:
    source, out = checkpoint(Spec("llama-2", shards=2)), tmp_path / "out"
    for report in (
        *(verb(source) for verb in (distconv.inspect, distconv.plan, distconv.check)),
        distconv.convert(source, out),
        distconv.plan(out, to="meta"),
        distconv.verify(out),
        distconv.manifest(out, tmp_path / "m.json"),
        distconv.convert_tokenizer(source, tmp_path / "tokenizer"),
    ):
        again = pickle.loads(pickle.dumps(report))
        assert again == report
        assert str(again) == str(report)
        assert again.to_json() == report.to_json()


def test_a_report_with_a_hundred_thousand_findings_is_one_line_in_a_shell() -> None:
    findings = tuple(f"{random.random()}" for _ in range(100_000))
    report = distconv.CheckReport("in", 1, 0, 0, 5, findings, ())
    assert repr(report) == "<CheckReport: in: 1 file by MD5, 0 by CRC32, 100,000 findings>"
    assert str(report).count("\n") == 100_000
