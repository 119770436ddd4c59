"""What each strength of alignment would have done, and where the paper's bound says that it helps."""

from __future__ import annotations

from collections.abc import Sequence

from fedrot.report.canvas import Chart, Key
from fedrot.report.digits import decimal
from fedrot.report.load import Record, Run
from fedrot.report.plot import Line, Plot


def diagnosed(run: Run) -> Sequence[Record]:
    """The rounds that recorded an error by strength."""
    return [r for r in run.records if (r.get("diagnostics") or {}).get("error_by_strength")]


def strength_chart(run: Run) -> Chart | str:
    """Relative aggregation error by strength in the first and the last diagnosed round and in the mean of all."""
    records = diagnosed(run)
    if not records:
        return "No round recorded an error by strength; see output.diagnostics."
    curves = [{float(k): float(v) for k, v in r["diagnostics"]["error_by_strength"].items()} for r in records]
    strengths = sorted(curves[-1])
    mean = [(x, sum(curve[x] for curve in curves) / len(curves)) for x in strengths]
    lines = [Line(f"round {records[-1]['round']}", [(x, curves[-1][x]) for x in strengths], 0)]
    if len(records) > 1:
        lines.append(Line(f"mean of {len(records)} rounds", mean, 1, "dashed", "s"))
    tips = [
        (x, "\n".join([f"strength {x:g}", *(f"{li.label}\t{decimal(dict(li.points)[x])}" for li in lines)]))
        for x in strengths
    ]
    intervals = [r["diagnostics"].get("admissible") for r in records]
    if (interval := intervals[-1]) is not None:
        lowest = min(y for line in lines for _, y in line.points)
        lines.append(Line("bound positive", [(x, lowest) for x in interval], 2, "dotted", "D"))
    positive = sum(interval is not None for interval in intervals)
    caption = (
        f"The same uploads, averaged after alignment of each strength. In {positive} of {len(records)} rounds the "
        "paper's upper bound on the error is lower with alignment at some strength than without; elsewhere it says "
        "nothing."
    )
    plot = Plot(lines, "Strength", "Relative error", tips, rounds=False)
    keys = [Key(line.label, line.colour, line.shape) for line in lines]
    return Chart("strength", "Error by strength", caption, plot, keys)
