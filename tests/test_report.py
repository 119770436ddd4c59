from __future__ import annotations

import json
import math
import re
import subprocess
import sys
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from fedrot.errors import OutputError
from fedrot.report import final_rows, load_run, verdict, write_report
from fedrot.report.canvas import Chart
from fedrot.report.digits import MISSING, decimal, fraction
from fedrot.report.lines import loss_chart
from fedrot.report.page import CHARTS
from fedrot.report.plot import Plot
from fedrot.report.words import HEADERS, shorten_sites
from fedrot.tasks.glue import REGRESSION
from tests.browser import browser, console_errors, requested, require_chromium
from tests.run_directory import SITES, make_records, make_run, make_summary

PLOTS = ("accuracy", "loss", "aggregation_error", "rotation", "label_skew", "bytes", "accuracy_by_bytes")


class Page(HTMLParser):
    """Tags with their attributes, identifiers and the text outside scripts and styles."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if not self.tags or self.tags[-1][0] not in {"script", "style"}:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def identifiers(self) -> list[str]:
        return [value for _, attrs in self.tags if (value := attrs.get("id"))]


@pytest.fixture(scope="module")
def standard(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of the standard synthetic run, for tests that only read it."""
    return write_report(make_run(tmp_path_factory.mktemp("standard") / "run"))


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Draw only the charts named: drawing them all takes seconds, and most tests are about words."""

    def choose(*names: str) -> None:
        monkeypatch.setattr("fedrot.report.page.CHARTS", {name: CHARTS[name] for name in names})

    return choose


def page_of(run: Path) -> Page:
    return Page(write_report(run).read_text("utf-8"))


# ------------------------------ the page


def test_report_shows_every_plot_and_writes_each_as_a_small_png(standard: Path) -> None:
    page = Page(standard.read_text("utf-8"))
    assert {f"plot-{name}" for name in PLOTS} <= set(page.identifiers)
    files = {path.stem: path for path in (standard.parent / "plots").iterdir()}
    assert set(files) == set(PLOTS)
    for path in files.values():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert 5_000 < path.stat().st_size < 300_000


def test_page_loads_nothing_and_forbids_loading(standard: Path) -> None:
    html = standard.read_text("utf-8")
    page = Page(html)
    loading = [
        v for _, attrs in page.tags for k in ("src", "href", "xlink:href", "action") if (v := attrs.get(k))
    ]
    assert loading
    assert [v for v in loading if not v.startswith(("data:", "#"))] == []
    assert not re.search(r"@import|url\((?!#)", html)
    policies = [attrs["content"] for tag, attrs in page.tags if tag == "meta" and "http-equiv" in attrs]
    assert policies == [
        "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"
    ]


def test_identifiers_are_unique_and_every_reference_has_its_target(standard: Path) -> None:
    html = standard.read_text("utf-8")
    identifiers = Page(html).identifiers
    assert len(identifiers) == len(set(identifiers))
    targets = set(re.findall(r"(?:href=\"#|url\(#)([^\")]+)", html))
    assert targets
    assert targets <= set(identifiers)


def test_strings_from_files_are_text_never_markup(tmp_path: Path, only: Callable[..., None]) -> None:
    only("rotation", "label_skew")
    attack = '"><script>alert(1)</script><img src=x onerror=alert(2)>'

    def edit(records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        summary.update(task=attack, model=attack, device=attack, labels=[attack, "$x^2$", "a & b"])
        summary.update(notes=[attack], versions={attack: attack})
        for record in records:
            record["rotation_by_site"] = {attack: 0.5, "b": 0.25}
        records[3].update(rejected=1, rejected_clients={attack: attack})

    run = make_run(tmp_path / "run", edit=edit)
    with (run / "config.toml").open("a", encoding="utf-8") as file:
        file.write(f"# {attack}\n")
    html = write_report(run).read_text("utf-8")
    page = Page(html)
    assert [attrs for tag, attrs in page.tags if tag in {"script", "img"}] == [{}]
    assert not [k for _, attrs in page.tags for k in attrs if k.startswith("on")]
    assert attack in page.text
    assert "$x^2$" in page.text


def test_svg_takes_its_colours_from_the_page(standard: Path) -> None:
    html = standard.read_text("utf-8")
    drawings = re.findall(r"<svg class=\"plot.*?</svg>", html, flags=re.S)
    assert len(drawings) == 2 * len(PLOTS)
    assert all("var(--line)" in drawing for drawing in drawings)
    assert "#0a0b" not in html


def test_the_same_run_gives_the_same_report(tmp_path: Path, only: Callable[..., None]) -> None:
    only("accuracy", "rotation")
    first = write_report(make_run(tmp_path / "first")).read_bytes()
    assert write_report(make_run(tmp_path / "second")).read_bytes() == first
    assert write_report(tmp_path / "first").read_bytes() == first


def test_header_names_run_and_both_accuracies(tmp_path: Path, only: Callable[..., None]) -> None:
    only()

    def edit(records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        records[-1]["accuracy"], records[8]["accuracy"] = 0.7521, 0.7613
        summary["best_validation_round"] = 9

    text = page_of(make_run(tmp_path / "run", edit=edit)).text
    for words in ("fedrot on tweets", "google/bert-mini", "10 × 15", ".752", ".761", ".691", "torch 2.13.0"):
        assert words in text
    assert "round 9, chosen on validation" in text
    assert "12 texts without a label were left out." in text


def test_events_are_listed_or_said_to_be_none(tmp_path: Path, only: Callable[..., None]) -> None:
    only()

    def reject(records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        records[6].update(rejected=2, rejected_clients={"7": "non-finite loss"})
        records[8].update(dropped=2, dropped_clients=[1, 4], stale=1, stale_clients={"2": 3})

    text = page_of(make_run(tmp_path / "run", edit=reject)).text
    assert "client 7: non-finite loss; 1 without a recorded reason" in text
    assert "dropped out: client 1, client 4; stale, by rounds: client 2 (3)" in text
    assert "No client was rejected" in page_of(make_run(tmp_path / "quiet", method="fedit", gain=0.0)).text


def test_a_method_that_does_not_rotate_gets_one_line_and_a_note(
    tmp_path: Path, only: Callable[..., None]
) -> None:
    only("rotation", "aggregation_error")
    run = make_run(tmp_path / "run", method="fedit", gain=0.0)
    page = page_of(run)
    assert "plot-rotation" not in page.identifiers
    assert "Nothing was rotated" in page.text
    assert "there is one line" in page.text
    assert "without alignment" not in page.text.replace("error without alignment", "")
    assert not (run / "plots" / "rotation.png").exists()


def test_a_plot_that_no_longer_applies_is_removed(tmp_path: Path, only: Callable[..., None]) -> None:
    only("rotation")
    run = make_run(tmp_path / "run")
    write_report(run)
    assert (run / "plots" / "rotation.png").exists()
    write_report(make_run(run, method="fedit", gain=0.0))
    assert not (run / "plots" / "rotation.png").exists()


@pytest.mark.parametrize(("rounds", "clients", "labels", "sites"), [(1, 1, 1, 1), (130, 60, 40, 90)])
def test_extreme_sizes_still_draw(
    tmp_path: Path, only: Callable[..., None], rounds: int, clients: int, labels: int, sites: int
) -> None:
    shown = ("loss", "rotation", "label_skew", "accuracy_by_bytes")
    only(*shown)

    def edit(records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        for record in records:
            record["rotation"] = 0.2
            record["rotation_by_site"] = {f"model.layers.{i}.q_proj": 0.2 for i in range(sites)}
        summary["labels"] = [f"topic {i}" for i in range(labels)]
        summary["partition"]["counts"] = [[i + j for j in range(labels)] for i in range(1, clients + 1)]

    run = make_run(tmp_path / "run", rounds=rounds, clients=clients, edit=edit)
    page = page_of(run)
    assert {f"plot-{name}" for name in shown} <= set(page.identifiers)
    assert all(path.stat().st_size < 300_000 for path in (run / "plots").iterdir())
    assert ("34 smaller labels" in page.text) == (labels == 40)


# ------------------------------ the verdict


def test_verdict_praises_and_blames_with_the_same_words() -> None:
    for gain, verb in ((-0.2, "lowered"), (0.3, "raised")):
        records = make_records(gain=gain)
        for record in records[1:]:
            ratio = record["aggregation_error_relative_unaligned"] * (1 + gain)
            record["aggregation_error_relative"] = ratio
        words = verdict(records, make_summary(records))
        assert (
            f"Alignment {verb} the aggregation error by {abs(gain):.0%} on average over 14 rounds." in words
        )
    for accuracy, words in ((0.752, "6.1 points above"), (0.65, "4.1 points below"), (0.691, "level with")):
        records = make_records()
        records[-1]["accuracy"] = accuracy
        sentence = (
            f"Final accuracy {fraction(accuracy)}, {words} the linear probe on the frozen encoder (.691)."
        )
        assert verdict(records, make_summary(records)).startswith(sentence)
        summary = make_summary(records)
        summary["probe"]["central"] = {"accuracy": accuracy + 0.02}
        assert sentence[:-1] + " and 2.0 points below one fitted centrally" in verdict(records, summary)


def test_verdict_shares_the_credit_with_a_refit_and_knows_other_methods() -> None:
    records = make_records()
    assert "Alignment with refit lowered" in verdict(records, None, {"method": {"refit": True}})
    unturned = make_records(rotate=False)
    for record in unturned:
        record["aggregation_error_relative"] = record["aggregation_error_relative_unaligned"] / 2
    assert "Its aggregation error was 50% below that of plain averaging" in verdict(unturned, None)
    for record in unturned:
        record["aggregation_error_relative"] = 3e-8
    assert "exact" in verdict(unturned, None)


def test_verdict_says_when_the_last_round_was_not_evaluated_or_none_was() -> None:
    records = make_records()
    del records[-1]["accuracy"]
    assert verdict(records, make_summary(records)).startswith(
        "Accuracy at round 14, the last one evaluated, is"
    )
    for record in records:
        record.pop("accuracy", None)
    assert "No round was evaluated" in verdict(records, make_summary(records))


# ------------------------------ the table


def test_final_rows_are_strings_one_row_a_round(tmp_path: Path) -> None:
    def edit(records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        records[0].update(
            round=1, loss=1.25, accuracy=None, bytes_up=4_024_320, seconds=3.14159, rotation=0.0
        )
        records[0].update(aggregation_error_relative=2e-7, aggregation_error_relative_unaligned=0.5)

    headers, rows = final_rows(make_run(tmp_path / "run", edit=edit))
    assert headers == HEADERS
    assert rows[0] == ["1", "1.2500", MISSING, "2.0e-07", "0.5000", "0.000", "4.02", "3.14"]
    assert len(rows) == 15
    assert all(isinstance(cell, str) for row in rows for cell in row)


def test_numbers_read_well() -> None:
    assert [fraction(x) for x in (0.7519, 1.0, 0.0, None)] == [".752", "1.000", ".000", MISSING]
    assert [decimal(x) for x in (0.25, 0.00001, 0.0, math.nan, None)] == [
        "0.2500",
        "1.0e-05",
        "0.0000",
        "nan",
        MISSING,
    ]


def test_shortened_sites_stay_distinct() -> None:
    assert shorten_sites(SITES)[:4] == ["3 · query", "3 · key", "3 · value", "3 · dense"]
    names = [
        f"encoder.layer.0.{part}" for part in ("attention.output.dense", "intermediate.dense", "output.dense")
    ]
    assert len(set(shorten_sites(names))) == 3
    assert len(set(shorten_sites([*names, "lm_head", "0"]))) == 5


# ------------------------------ unfinished and odd runs


def test_unfinished_run_is_reported_and_says_so(tmp_path: Path, only: Callable[..., None]) -> None:
    only()
    run = make_run(tmp_path / "run", finished=False)
    metrics = run / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-40])
    page = page_of(run)
    assert "This run has not finished" in page.text
    assert "round 14 of 15" in page.text
    assert "line 15) is incomplete" in page.text
    assert "Unfinished: accuracy at round 14 is" in page.text
    assert len(final_rows(run)[1]) == 14


def test_interrupted_run_with_a_summary_says_so(tmp_path: Path, only: Callable[..., None]) -> None:
    only()

    def edit(records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        del records[9:]
        summary["interrupted"] = True

    text = page_of(make_run(tmp_path / "run", edit=edit)).text
    assert "This run was interrupted: round 9 of 15" in text
    assert "Interrupted: accuracy at round 9 is" in text


def test_a_line_torn_inside_a_character_is_dropped(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", rounds=2)
    with (run / "metrics.jsonl").open("ab") as file:
        file.write('{"round": 3, "note": "é'.encode()[:-1])
    assert [record["round"] for record in load_run(run).records] == [1, 2]


@pytest.mark.parametrize("value", [math.nan, math.inf, None])
def test_loss_that_is_not_finite_leaves_a_noted_gap(
    tmp_path: Path, value: float | None, only: Callable[..., None]
) -> None:
    only("loss")

    def edit(records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        records[4]["loss"] = value

    page = page_of(make_run(tmp_path / "run", edit=edit))
    assert ("training loss is not finite in round 5" in page.text) == (value is not None)
    assert "plot-loss" in page.identifiers


def test_the_loss_has_its_task_s_name(tmp_path: Path) -> None:
    plain, graded = make_run(tmp_path / "plain"), make_run(tmp_path / "graded")
    config = graded / "config.toml"
    config.write_text(config.read_text("utf-8").replace('data = "tweets"', f'data = "{REGRESSION}"'), "utf-8")
    for path, said in ((plain, "Cross-entropy (nats)"), (graded, "Mean squared error")):
        chart = loss_chart(load_run(path))
        assert isinstance(chart, Chart)
        assert isinstance(chart.draw, Plot)
        assert chart.draw.y_title == said


def test_no_evaluated_round_is_said_in_place_of_the_plots(tmp_path: Path, only: Callable[..., None]) -> None:
    only("accuracy", "loss", "accuracy_by_bytes")

    def edit(records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        for record in records:
            for key in ("accuracy", "macro_f1", "eval_loss", "validation_accuracy", "validation_loss"):
                del record[key]
        summary.update(probe=None, best_validation_round=None, final={})

    page = page_of(make_run(tmp_path / "run", edit=edit))
    assert "No round was evaluated on the test split" in page.text
    assert "plot-accuracy" not in page.identifiers
    assert "plot-loss" in page.identifiers


def test_repeated_and_missing_rounds_are_noted(tmp_path: Path) -> None:
    def edit(records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        records[4] = dict(records[5], loss=9.0)

    run = load_run(make_run(tmp_path / "run", edit=edit))
    assert "Round 5 missing from metrics.jsonl." in run.notes
    assert "Round 6 recorded more than once in metrics.jsonl; the last record is shown." in run.notes
    assert [r["loss"] for r in run.records if r["round"] == 6] != [9.0]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("metrics.jsonl", None, "run' has no finished round yet; continue it with --resume"),
        ("config.toml", None, "config.toml': cannot be read"),
        ("metrics.jsonl", "", "run' has no finished round yet; continue it with --resume"),
        ("metrics.jsonl", '{"round": 1}\nnonsense\n{"round": 2}\n', "line 2: not valid JSON"),
        ("metrics.jsonl", '{"round": 1}\nnonsense\n', "line 2: not valid JSON"),
        ("metrics.jsonl", '{"round": 1, "loss": "high"}\n', "loss = 'high': expected a number"),
        ("metrics.jsonl", '{"loss": 1.0}\n', "round = None: expected a positive integer"),
        ("metrics.jsonl", '{"round": 1, "rotation_by_site": [1]}\n', "rotation_by_site"),
        ("config.toml", "seed = ", "not valid TOML"),
        ("summary.json", "{", "summary.json': not valid JSON"),
        ("summary.json", '{"labels": ["a"], "partition": {"counts": [[1, 2]]}}', "partition.counts"),
        ("summary.json", '{"probe": {"accuracy": "good"}}', "probe.accuracy"),
    ],
)
def test_malformed_files_are_refused_by_name(
    tmp_path: Path, name: str, text: str | None, message: str
) -> None:
    run = make_run(tmp_path / "run")
    if text is None:
        (run / name).unlink()
    else:
        (run / name).write_text(text, "utf-8")
    with pytest.raises(OutputError, match=re.escape(message)):
        write_report(run)
    assert not (run / "report.html").exists()


def test_a_directory_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="not found"):
        write_report(tmp_path / "nowhere")


def test_a_blocked_report_is_an_output_error(tmp_path: Path, only: Callable[..., None]) -> None:
    only()
    run = make_run(tmp_path / "run")
    (run / "plots").write_text("a file where the folder goes", "utf-8")
    with pytest.raises(OutputError, match="cannot be written"):
        write_report(run)


def test_labels_beyond_the_png_font_are_noted(tmp_path: Path, only: Callable[..., None]) -> None:
    only("label_skew")

    def edit(records: list[dict[str, Any]], summary: dict[str, Any]) -> None:
        summary["labels"] = ["否定", "中立", "肯定"]

    text = page_of(make_run(tmp_path / "run", edit=edit)).text
    assert "lacks some characters of label_skew.png" in text
    assert "否定" in text


def test_importing_the_report_does_not_load_the_drawing_libraries() -> None:
    loaded = "[m for m in ('matplotlib', 'jinja2') if m in sys.modules]"
    code = f"import json, sys, fedrot.report; print(json.dumps({loaded}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


# ------------------------------ in the browser


@pytest.mark.parametrize(("width", "size"), [(1280, "roomy"), (390, "narrow")])
def test_page_in_a_browser(standard: Path, width: int, size: str) -> None:
    require_chromium()
    path = standard
    boxes = """return [...document.querySelectorAll('svg.plot')].map(e => {
        const box = e.getBoundingClientRect(); return [e.id, box.width, box.height]; })"""
    with browser(width=width, height=900) as driver:
        driver.get(path.as_uri())
        shown = {name: (w, h) for name, w, h in driver.execute_script(boxes) if w and h}
        suffix = "" if size == "roomy" else "-narrow"
        assert set(shown) == {f"plot-{name}{suffix}" for name in PLOTS}
        assert all(w > 250 and h > 150 for w, h in shown.values())
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        clipped = """return [...document.querySelectorAll('svg.plot text')].filter(t => {
            const box = t.getBoundingClientRect(), card = t.closest('figure').getBoundingClientRect();
            return box.width && (box.left < card.left || box.right > card.right || box.top < card.top);
        }).map(t => t.textContent)"""
        assert driver.execute_script(clipped) == []
        point = "const e = document.querySelector(arguments[0]), b = e.getBoundingClientRect();"
        move = "e.dispatchEvent(new PointerEvent('pointermove', {clientX: b.left + 1, clientY: b.top + 1}));"
        read = "return document.getElementById('tip').textContent"
        tip = driver.execute_script(f"{point}{move}{read}", f"#plot-accuracy{suffix} .spot")
        assert tip.startswith("Round 1")
        tip = driver.execute_script(f"{point}{move}{read}", f"#plot-rotation{suffix} .spot")
        assert tip == f"{SITES[0]}Round 10.000"
        assert console_errors(driver) == []
        asked = requested(driver)
        assert path.as_uri() in asked
        assert [url for url in asked if not url.startswith(("file:", "data:"))] == []


def test_a_comparison_is_told_where_its_page_is(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text("{}", "utf-8")
    with pytest.raises(
        OutputError, match=r"holds a comparison and no single run; its page is '.*/compare\.html'"
    ):
        write_report(tmp_path)
