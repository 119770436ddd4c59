"""Charts with clients or sites on an axis: the rotation heat map and the label skew."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedrot.report.canvas import WIDE, Cells, Chart, Key, Spot, Theme
from fedrot.report.load import Run, rotated
from fedrot.report.plot import dress
from fedrot.report.words import shorten_sites, tidy

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLOURS = 6  # distinct label colours; a seventh, grey, stands for the rest


@dataclass(frozen=True)
class HeatMap:
    """Rotation size, sites x rounds. NaN where a site was not recorded."""

    labels: Sequence[str]
    names: Sequence[str]
    rounds: Sequence[int]
    values: Sequence[Sequence[float]]

    def __call__(self, figure: Figure, theme: Theme) -> Sequence[Cells]:
        """Draw on an empty figure, with a colour bar."""
        import numpy as np
        from matplotlib.ticker import MaxNLocator

        axes = figure.add_subplot()
        dress(axes, theme, "Round", "")
        axes.grid(visible=False)
        axes.spines["bottom"].set_visible(False)
        grid = np.ma.masked_invalid(np.array(self.values, dtype=float))
        top = float(grid.max()) if grid.count() else 1.0
        image = axes.imshow(
            grid, aspect="auto", cmap="viridis", vmin=0, vmax=top or 1.0, interpolation="none"
        )
        image.set_gid("map")
        # Ticks at rounds 1, 3, 5 or 5, 10, 15 read better than at every n-th column.
        step = max(1, -(-len(self.rounds) // 8))
        step = next(s for s in (1, 2, 5, 10, 20, 25, 50, 100, 200, 500, 10**9) if s >= step)
        chosen = [i for i, r in enumerate(self.rounds) if r % step == 0 or (i == 0 and step > 2)]
        axes.set_xticks(chosen or [0], [str(self.rounds[i]) for i in chosen or [0]])
        label_rows(axes, self.labels)
        bar = figure.colorbar(image, ax=axes, fraction=0.045, pad=0.03, aspect=28)
        bar.outline.set_visible(False)  # type: ignore[operator]
        bar.ax.tick_params(colors=theme.muted, labelsize=10.5, size=0)
        bar.ax.yaxis.set_major_locator(MaxNLocator(nbins=5))
        bar.set_label("‖R − I‖, mean over clients", color=theme.muted, fontsize=11)
        shown = [["not recorded" if math.isnan(v) else f"{v:.3f}" for v in row] for row in self.values]
        return [Cells(axes, self.names, [f"Round {r}" for r in self.rounds], shown)]


def label_rows(axes: Axes, labels: Sequence[str]) -> None:
    """Name the rows 0, 1, ...; every n-th only where they would overlap."""
    height = axes.bbox.height
    step = max(1, -(-len(labels) * 12 // max(1, int(height))))
    axes.set_yticks(
        range(0, len(labels), step), list(labels)[::step], fontsize=10.5 if height / len(labels) > 14 else 9
    )


def rotation_chart(run: Run) -> Chart | str:
    """Heat map of how far each site was turned in each round; a sentence if nothing was."""
    sites = list(dict.fromkeys(site for r in run.records for site in (r.get("rotation_by_site") or {})))
    if not rotated(run.records):
        return "Nothing was rotated: every factor was averaged in the frame it was trained in."
    if not sites:
        return "The rounds recorded a rotation, but not by site (rotation_by_site is missing)."
    values = [[_cell(r.get("rotation_by_site") or {}, site) for r in run.records] for site in sites]
    drawing = HeatMap(
        [tidy(name, 26) for name in shorten_sites(sites)],
        [tidy(site, 90) for site in sites],
        [int(r["round"]) for r in run.records],
        values,
    )
    wide = len(sites) > 16 or len(run.records) > 120
    height = min(max(280, 66 + 16 * len(sites)), 640) if wide else 280
    caption = "How far the clients' factors were turned before averaging, one row a LoRA site. 0 is no turn."
    return Chart("rotation", "Rotation by site", caption, drawing, width=WIDE if wide else 470, height=height)


def _cell(sizes: dict[str, float | None], site: str) -> float:
    value = sizes.get(site)
    return math.nan if value is None or not math.isfinite(value) else float(value)


@dataclass(frozen=True)
class Skew:
    """Examples per client, stacked by label. `counts` holds a row per client, a column per group; `clients` numbers."""

    groups: Sequence[str]
    colours: Sequence[int]
    counts: Sequence[Sequence[float]]
    clients: Sequence[int]
    tips: Sequence[str]

    def __call__(self, figure: Figure, theme: Theme) -> Sequence[Spot]:
        """Draw on an empty figure; each client's row has a tip."""
        axes = figure.add_subplot()
        dress(axes, theme, "Training examples", "Client")
        axes.grid(visible=False)
        axes.grid(axis="x", color=theme.line, linewidth=0.8)
        rows = range(len(self.counts))
        left = [0.0] * len(self.counts)
        for g, colour in enumerate(self.colours):
            column = [row[g] for row in self.counts]
            axes.barh(
                rows,
                column,
                left=left,
                height=0.76 if len(self.counts) <= 40 else 1.0,
                color=theme.series[colour],
                edgecolor=theme.paper,
                linewidth=0.8 if len(self.counts) <= 40 else 0,
            )
            left = [a + b for a, b in zip(left, column, strict=True)]
        axes.set_ylim(len(self.counts) - 0.4, -0.6)
        axes.spines["bottom"].set_visible(False)
        axes.tick_params(axis="x", length=0)
        axes.set_xlim(0, (max(left) or 1.0) * 1.02)
        label_rows(axes, [str(number) for number in self.clients])
        edge = axes.get_xlim()[1]
        return [Spot(axes, (0.0, edge), (i - 0.5, i + 0.5), tip) for i, tip in enumerate(self.tips)]


def skew_chart(run: Run) -> Chart | str:
    """Which labels each client holds; a sentence if the run did not write its counts."""
    counts, labels = run.counts, run.labels
    if not counts:
        missing = (
            "they are written when the run finishes"
            if run.summary is None
            else "summary.json does not hold them"
        )
        return f"The label counts of the clients are not known: {missing}."
    totals = [sum(row[i] for row in counts) for i in range(len(labels))]
    if len(labels) <= _COLOURS + 1:
        named, rest = list(range(len(labels))), []
    else:
        by_size = sorted(range(len(labels)), key=lambda i: -totals[i])
        named, rest = sorted(by_size[:_COLOURS]), by_size[_COLOURS:]
    groups = [tidy(labels[i], 28) for i in named] + ([f"{len(rest)} smaller labels"] if rest else [])
    table = [[row[i] for i in named] + ([sum(row[i] for i in rest)] if rest else []) for row in counts]
    keys = [Key(name, i, "block") for i, name in enumerate(groups)]
    shares = run.fact("partition", {})
    numbers = shares.get("listed") or list(range(len(counts)))
    tips = [_client_tip(number, row, labels) for number, row in zip(numbers, counts, strict=True)]
    drawing = Skew(groups, list(range(len(groups))), table, numbers, tips)
    caption = _skew_caption(run, [sum(row) for row in counts])
    wide = len(counts) > 16
    height = min(60 + 19 * len(counts), 520) if wide else 280
    return Chart(
        "label_skew",
        "Examples by client" if run.unlabelled else "Labels by client",
        caption,
        drawing,
        keys,
        width=WIDE if wide else 470,
        height=height,
    )


def _skew_caption(run: Run, sizes: Sequence[int]) -> str:
    """`sizes` of the clients that are drawn; the summary has the extremes where those are not all."""
    shares = run.fact("partition", {})
    least, most = shares.get("smallest", min(sizes)), shares.get("largest", max(sizes))
    size = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    if "listed" not in shares:
        return f"{sum(sizes):,} training examples over {len(sizes)} clients; {size} a client."
    return (
        f"{run.fact('clients', 0):,} clients, {size} training examples a client; {len(sizes):,} of them are drawn, "
        "evenly spread."
    )


def _client_tip(client: int, row: Sequence[float], labels: Sequence[str]) -> str:
    held = sorted((i for i in range(len(row)) if row[i]), key=lambda i: -row[i])
    shown = [f"{tidy(labels[i], 28)}\t{row[i]:,}" for i in held[:8]]
    more = [f"{len(held) - 8} more labels\t{sum(row[i] for i in held[8:]):,}"] if len(held) > 8 else []
    return "\n".join([f"Client {client}, {sum(row):,} examples", *shown, *more])
