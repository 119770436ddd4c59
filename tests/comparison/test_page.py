"""The pages of a comparison, from made-up results: what they say, and how they look in a browser."""

from __future__ import annotations

import copy
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from fedrot.comparison.charts import grid_charts, looks
from fedrot.comparison.page import page, write_results
from fedrot.comparison.sent import sent_chart
from fedrot.comparison.stats import estimate, paired
from fedrot.comparison.store import Store
from fedrot.comparison.table import decided, markdown, verdict
from fedrot.report.canvas import PRINT, Spot
from fedrot.report.plot import Line, Plot
from tests.browser import browser, console_errors, requested, require_chromium

VARIANTS = ["fedit", "fedrot", "ffa", "rolora", "flexlora", "refit", "fedrot-hard"]


def made_up(
    variants: list[str] = VARIANTS, seeds: int = 3, clients: tuple[int, ...] = (3, 10, 50), gain: float = 0.05
) -> dict[str, Any]:
    """Results of a comparison in which every later variant is better by `gain`."""
    draw = random.Random(0)
    arms: list[dict[str, Any]] = []
    shared = {(n, s): draw.gauss(0, 0.01) for n in clients for s in range(seeds)}
    for n in clients:
        for i, label in enumerate(variants):
            last = {s: 0.6 + gain * i + shared[n, s] + draw.gauss(0, 0.003) - n / 1000 for s in range(seeds)}
            values = {"accuracy": last, "macro_f1": last, "error": dict.fromkeys(last, 0.3 / (i + 1))}
            values |= {"error_unaligned": dict.fromkeys(last, 0.35), "bytes": dict.fromkeys(last, 1e6 * n)}
            by_round = [
                {
                    "round": r,
                    "bytes": 1e5 * n * r,
                    "accuracy": found.to_json(),
                }
                for r in range(1, 11)
                if (found := estimate([v - 0.3 * math.exp(-r / 3) for v in last.values()]))
            ]
            means = {m: e.to_json() for m, v in values.items() if (e := estimate(list(v.values())))}
            arms.append(
                {
                    "variant": label,
                    "point": {"federation.clients": n},
                    "method": label,
                    "tuning": [
                        {
                            "setting": {"train.lr": lr},
                            "validation_accuracy": {"0": lr},
                            "mean": lr,
                            "failed": {},
                        }
                        for lr in (0.001, 0.003)
                    ],
                    "chosen": {"train.lr": 0.003},
                    "keys": {str(s): f"{label}-{n}-{s}" for s in range(seeds)},
                    "failed": {},
                    "values": {m: {str(s): x for s, x in v.items()} for m, v in values.items()},
                    "mean": means,
                    "by_round": by_round,
                    "difference": {},
                }
            )
    for arm in arms:
        base = next(a for a in arms if a["variant"] == variants[0] and a["point"] == arm["point"])
        ours, theirs = ({int(s): x for s, x in a["values"]["accuracy"].items()} for a in (arm, base))
        if arm is not base and (found := paired(ours, theirs)) is not None:
            by_seed = {str(s): ours[s] - theirs[s] for s in ours}
            arm["difference"] = {"accuracy": found.to_json() | {"by_seed": by_seed}}
    return {
        "baseline": variants[0],
        "seeds": list(range(seeds)),
        "variants": variants,
        "recipe": {
            "task": {"data": "tweets"},
            "model": {"path": "m"},
            "federation": {"clients": 4, "rounds": 10},
        },
        "compare": {
            "methods": variants,
            "seeds": list(range(seeds)),
            "grid": {"federation.clients": list(clients)},
            "one_factor": False,
            "tune": {"train.lr": [0.001, 0.003]},
            "trials": 2,
            "tune_seeds": 1,
        },
        "points": [{"name": f"clients = {n}", "setting": {"federation.clients": n}} for n in clients],
        "arms": arms,
        "notes": ["<b>A note</b> & more."],
        "versions": {"fedrot": "0.1.0"},
        "device": "cpu",
        "threads": 1,
        "examples": {"train": 100, "test": 50},
        "cpu_seconds": 100.0,
    }


def test_the_verdict_counts_what_its_intervals_show() -> None:
    better = made_up(["fedit", "fedrot"])
    assert all(decided(arm) for arm in better["arms"] if arm["difference"])
    assert "in 3 of 3 comparisons with fedit" in verdict(better)
    same = made_up(["fedit", "fedrot"], gain=0.0)
    assert verdict(same).startswith("No difference in test accuracy is larger than its 95% interval")
    alone = made_up(["fedit", "fedrot"], seeds=1)
    assert "With one seed" in verdict(alone)


def test_the_table_has_a_row_for_each_variant_and_grid_point() -> None:
    text = markdown(made_up())
    for label in VARIANTS:
        assert text.count(f"\n| {label} | .") == 3
    assert text.count("| baseline |") == 3
    assert "## clients = 50" in text
    assert "chosen" in text


def test_eighteen_variants_look_different() -> None:
    found = looks({"variants": [f"v{i}" for i in range(18)]})
    assert len({(look.colour, look.shape) for look in found.values()}) == 18


def test_a_product_of_grids_has_a_chart_for_each_value_of_the_other_keys() -> None:
    results = made_up(["fedit", "fedrot"], clients=(3, 10))
    arms = []
    for rank in (2, 4):
        for arm in results["arms"]:
            arms.append(copy.deepcopy(arm))
            arms[-1]["point"]["lora.rank"] = rank
    results["arms"] = arms
    results["points"] = [
        {"name": "", "setting": {"federation.clients": n, "lora.rank": r}} for n in (3, 10) for r in (2, 4)
    ]
    results["compare"]["grid"]["lora.rank"] = [2, 4]
    assert [chart.title for chart in grid_charts(results)] == [
        "Accuracy by federation.clients (rank = 2)",
        "Accuracy by federation.clients (rank = 4)",
    ]


def test_the_table_of_everything_that_classes_have_fits_on_a_desk(tmp_path: Path) -> None:
    require_chromium()
    results = made_up(["fedit", "fedrot", "refit-or-mean", "random-rotation"], gain=0.1)
    for arm in results["arms"]:
        means = arm["mean"]
        means |= dict.fromkeys(("best_accuracy", "local_accuracy", "eval_loss"), means["accuracy"])
        means["bytes"] = means["accuracy"] | {"mean": 467.184e6}
        means["seconds"] = means["accuracy"] | {"mean": 1234.5}
    write_results(Store(tmp_path), results)
    with browser(width=1200) as driver:
        driver.get((tmp_path / "compare.html").as_uri())
        sizes = (
            "return [...document.querySelectorAll('.table .scroll')].map(e => e.scrollWidth - e.clientWidth)"
        )
        assert driver.execute_script(sizes) == [0, 0, 0]


@pytest.mark.parametrize("amounts", [[467.184], [467.184, 467.191], [0.0], [1.5, 467.184]])
def test_amounts_are_marked_in_round_numbers(amounts: list[float]) -> None:
    from matplotlib.figure import Figure

    lines = [Line("fedit", [(x, 0.5) for x in amounts], 0)]
    figure = Figure()
    Plot(lines, "Sent (MB)", "Accuracy", [(x, "") for x in amounts], share=True, rounds=False)(figure, PRINT)
    axis = figure.axes[0].xaxis
    low, high = figure.axes[0].get_xlim()
    labels = [
        text for x in axis.get_majorticklocs() if low <= x <= high if (text := axis.get_major_formatter()(x))
    ]
    assert len(labels) > 2
    assert all(len(label.strip("0−-.")) <= 3 for label in labels), labels
    assert low < min(amounts) <= max(amounts) < high


@pytest.mark.parametrize(("width", "suffix"), [(1200, ""), (390, "-narrow")])
def test_the_page_in_a_browser(tmp_path: Path, width: int, suffix: str) -> None:
    require_chromium()
    store = Store(tmp_path)
    write_results(store, made_up())
    path = tmp_path / "compare.html"
    boxes = """return [...document.querySelectorAll('svg.plot')].map(e => {
        const box = e.getBoundingClientRect(); return [e.id, box.width, box.height]; })"""
    with browser(width=width, height=900) as driver:
        driver.get(path.as_uri())
        shown = {name: (w, h) for name, w, h in driver.execute_script(boxes) if w and h}
        names = [
            "differences",
            "grid-0",
            "sent",
            "errors",
            *(f"{kind}-{n}" for kind in ("rounds", "bytes") for n in range(3)),
        ]
        assert set(shown) == {f"plot-{name}{suffix}" for name in names}
        assert all(w > 250 and h > 150 for w, h in shown.values())
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        clipped = """return [...document.querySelectorAll('svg.plot text')].filter(t => {
            const box = t.getBoundingClientRect(), card = t.closest('figure').getBoundingClientRect();
            return box.width && (box.left < card.left || box.right > card.right || box.top < card.top);
        }).map(t => t.textContent)"""
        assert driver.execute_script(clipped) == []
        overlapping = """return [...document.querySelectorAll('svg.plot')].flatMap(svg => {
            const boxes = [...svg.querySelectorAll('text')].map(t => [t, t.getBoundingClientRect()]);
            return boxes.flatMap(([t, a], i) => boxes.slice(i + 1).filter(([, b]) => a.width && b.width &&
                a.left < b.right - 1 && b.left < a.right - 1 && a.top < b.bottom - 1 && b.top < a.bottom - 1)
                .map(([u]) => svg.id + ': ' + t.textContent + ' / ' + u.textContent)); })"""
        assert driver.execute_script(overlapping) == []
        if not suffix:
            scrolled = """return [...document.querySelectorAll('.table .scroll')].filter(
                e => e.scrollWidth > e.clientWidth)"""
            assert driver.execute_script(scrolled) == [], "the tables fit on a desk"
        move = """const e = document.querySelector(arguments[0]), b = e.getBoundingClientRect();
            e.dispatchEvent(new PointerEvent('pointermove', {clientX: b.left + 1, clientY: b.top + 1}));
            return document.getElementById('tip').textContent"""
        assert driver.execute_script(move, f"#plot-differences{suffix} .spot").startswith(
            "fedrot (clients = 3)"
        )
        assert driver.execute_script(move, f"#plot-rounds-0{suffix} .spot").startswith("Round 1")
        assert (
            driver.execute_script("return document.querySelector('#notes').textContent.trim()")
            == "<b>A note</b> & more."
        )
        assert console_errors(driver) == []
        assert [url for url in requested(driver) if not url.startswith(("file:", "data:"))] == []


def test_scores_are_drawn_against_the_bytes_of_every_grid_point() -> None:
    results = made_up(["fedit", "ffa"], clients=(10, 3, 50))
    for arm in results["arms"]:
        if arm["variant"] == "ffa":
            arm["mean"]["bytes"]["mean"] /= 2
    chart = sent_chart(results)
    assert chart is not None
    figure = Figure()
    spots = chart.draw(figure, PRINT)
    drawn = {line.get_gid(): line for line in figure.axes[0].lines}
    for label, each in (("fedit", 1.0), ("ffa", 0.5)):
        line = drawn[f"line-{label}"]
        xs, ys = np.asarray(line.get_xydata()).T
        assert xs == pytest.approx([3 * each, 10 * each, 50 * each]), "megabytes, in ascending order"
        by_clients = {a["point"]["federation.clients"]: a for a in results["arms"] if a["variant"] == label}
        assert ys == pytest.approx([by_clients[n]["mean"]["accuracy"]["mean"] for n in (3, 10, 50)])
        assert line.get_linestyle() == "-"
    assert len(spots) == 6
    assert all(isinstance(spot, Spot) and "clients = " in spot.tip for spot in spots)
    assert 'id="plot-sent"' in page(results)


def test_points_that_differ_in_other_keys_are_not_joined() -> None:
    results = made_up(["fedit", "fedrot"])
    for arm in results["arms"]:
        if arm["point"] == {"federation.clients": 50}:
            arm["point"] = {"lora.rank": 16}
    results["points"][-1] = {"name": "rank = 16", "setting": {"lora.rank": 16}}
    chart = sent_chart(results)
    assert chart is not None
    figure = Figure()
    chart.draw(figure, PRINT)
    assert {line.get_linestyle() for line in figure.axes[0].lines} == {"None"}
    assert {key.shape for key in chart.keys} == {"block"}


def test_where_all_send_as_much_there_is_no_chart_of_it() -> None:
    results = made_up(["fedit", "fedrot"])
    for arm in results["arms"]:
        arm["mean"]["bytes"]["mean"] = 1e6
    assert sent_chart(results) is None
    assert 'id="plot-sent"' not in page(results)
    assert sent_chart(made_up(["fedit", "fedrot"], clients=(3,))) is None
