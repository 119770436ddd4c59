"""What each strength of alignment would have done, and where the paper's bound says that it helps."""

from __future__ import annotations

from collections.abc import Sequence

from fedrot.report.bound import CURVE, POSITIVE, Bound, Panels, signed
from fedrot.report.canvas import Chart, Key
from fedrot.report.digits import decimal
from fedrot.report.load import Record, Run
from fedrot.report.plot import Line, Plot

GAMMA = "Γ(λ)"


def diagnosed(run: Run) -> Sequence[Record]:
    """The rounds that recorded an error by strength."""
    return [r for r in run.records if (r.get("diagnostics") or {}).get("error_by_strength")]


def strength_chart(run: Run) -> Chart | str:
    """Relative aggregation error by strength, last round and mean of all, and the bound of the last round below."""
    records = diagnosed(run)
    if not records:
        return "No round recorded an error by strength; see output.diagnostics."
    curves = [{float(k): float(v) for k, v in r["diagnostics"]["error_by_strength"].items()} for r in records]
    strengths = sorted(curves[-1])
    mean = [(x, sum(curve[x] for curve in curves) / len(curves)) for x in strengths]
    lines = [Line(f"round {records[-1]['round']}", [(x, curves[-1][x]) for x in strengths], 0)]
    if len(records) > 1:
        lines.append(Line(f"mean of {len(records)} rounds", mean, 1, "dashed", "s"))
    last = records[-1]["diagnostics"]
    interval = last.get("admissible")
    bound = Bound(last["slope"], last["curvature"], None if interval is None else tuple(interval))
    symbol = f"{GAMMA}, round {records[-1]['round']}"
    tips = [
        (
            x,
            "\n".join(
                [
                    f"strength {x:g}",
                    *(f"{line.label}\t{decimal(dict(line.points)[x])}" for line in lines),
                    f"{symbol}\t{signed(bound(x))}",
                ]
            ),
        )
        for x in strengths
    ]
    keys = [Key(line.label, line.colour, line.shape) for line in lines]
    keys.append(Key(f"{symbol} (below)", CURVE))
    if bound.positive is not None:
        keys.append(Key(f"Γ above zero, up to λ = {bound.positive[1]:.3g}", POSITIVE, "block"))
    plot = Plot(lines, "Strength λ", "Relative error", tips, rounds=False)
    caption = _caption(records, bound)
    return Chart("strength", "Error by strength", caption, Panels(plot, bound, GAMMA), keys, height=420)


def _caption(records: Sequence[Record], bound: Bound) -> str:
    positive = sum(r["diagnostics"].get("admissible") is not None for r in records)
    last = records[-1]
    anchor = last["diagnostics"].get("anchor", "unknown")
    said = (
        "Above: the same uploads, averaged after alignment of each strength. Below: Γ of round "
        f"{last['round']}, anchor {anchor}. Where it is positive, the paper's upper bound on the error is lower with "
        "alignment; elsewhere it says nothing. It is positive at some strength in "
        f"{positive} of {len(records)} rounds."
    )
    return f"{said} Its lower part is cut off." if bound.cut else said
