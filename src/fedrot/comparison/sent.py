"""What accuracy costs on the wire, over all grid points: the last round's score against all that a run sent."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedrot.comparison.charts import looks
from fedrot.comparison.table import in_words, score_of, with_interval
from fedrot.report.canvas import WIDE, Chart, Key
from fedrot.report.digits import byte_unit, data_size
from fedrot.report.plot import Line, Plot

Json = Mapping[str, Any]


def sent_chart(results: Json) -> Chart | None:
    """Final scores against bytes, a mark for each variant and grid point; None where all runs send as much."""
    score, look = score_of(results), looks(results)
    arms = [arm for arm in results["arms"] if {score.name, "bytes"} <= arm["mean"].keys()]
    totals = [_bytes(arm) for arm in arms]
    if len(results["points"]) < 2 or len(set(totals)) < 2:
        return None
    size, unit = byte_unit(max(totals))
    lines = [
        Line(
            label,
            sorted((_bytes(arm) / size, arm["mean"][score.name]["mean"]) for arm in own),
            look[label].colour,
            look[label].shape if _ordered(own) else "marks",
            look[label].marker,
        )
        for label in results["variants"]
        if (own := [arm for arm in arms if arm["variant"] == label])
    ]
    tips: list[tuple[float, str]] = []
    for total in sorted(set(totals)):
        told = [data_size(total)]
        for arm in (arm for arm in arms if _bytes(arm) == total):
            where = in_words(results, arm["point"])
            told.append(f"{arm['variant']}, {where}\t{with_interval(arm['mean'][score.name], score)}")
        tips.append((total / size, "\n".join(told)))
    plot = Plot(
        lines, f"Sent by a run, up and down ({unit})", score.axis, tips, share=score.share, rounds=False
    )
    caption = (
        f"Test {score.words} of the last round at every grid point, mean over seeds; all clients together."
    )
    keys = [Key(line.label, line.colour, "block" if line.shape == "marks" else line.shape) for line in lines]
    title = f"{score.title} against bytes, all grid points"
    return Chart("sent", title, caption, plot, keys, width=WIDE, height=300)


def _bytes(arm: Json) -> float:
    return float(arm["mean"]["bytes"]["mean"])


def _ordered(arms: list[Json]) -> bool:
    """Whether grid points differ in the same keys and in bytes, so that a line from one to the next means something."""
    keys = {frozenset(arm["point"]) for arm in arms}
    return len(keys) == 1 and len({_bytes(arm) for arm in arms}) == len(arms)
