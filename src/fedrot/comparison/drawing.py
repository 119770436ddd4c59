"""How a comparison's charts are drawn: lines with the interval of each point, and rows with a mean and its span."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedrot.report.canvas import Spot, Theme
from fedrot.report.plot import Plot, dress
from fedrot.report.words import tidy

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Bands = Sequence[tuple[int, Sequence[tuple[float, float, float]]]]
"""Of every line its colour, and `(x, low, high)` of its points."""


@dataclass(frozen=True)
class Spread:
    """A line chart with the interval of each point: a band around its line, or bars where x is a list of cases."""

    plot: Plot
    bands: Bands
    ticks: Sequence[tuple[float, str]] = ()
    within: tuple[float, float] = (0.0, 1.0)
    """Between which values lie; the axis ends just beyond."""

    def __call__(self, figure: Figure, theme: Theme) -> Sequence[Spot]:
        """Draw on an empty figure."""
        spots = self.plot(figure, theme)
        axes = figure.axes[0]
        low, high = axes.get_ylim()
        room = 0.8 * (high - low)  # wide intervals get room, but not so much that the lines lie flat
        reach = low, high
        for colour, band in self.bands:
            x, lows, highs = zip(*band, strict=True)
            if self.ticks:
                axes.vlines(x, lows, highs, color=theme.series[colour], linewidth=1.5, alpha=0.6)
            else:
                axes.fill_between(
                    x, lows, highs, color=theme.series[colour], alpha=0.13, linewidth=0, zorder=0
                )
            reach = min(reach[0], *lows), max(reach[1], *highs)
        floor, ceiling = self.within[0] - 0.01, self.within[1] + 0.01
        axes.set_ylim(max(reach[0], low - room, floor), min(reach[1], high + room, ceiling))
        if self.ticks:
            axes.set_xticks([x for x, _ in self.ticks], [label for _, label in self.ticks])
            axes.set_xlim(-0.4, len(self.ticks) - 0.6)
        return spots


@dataclass(frozen=True)
class RowMark:
    """A row of a chart by rows: what is drawn at `y` for one arm."""

    label: str
    tip: str
    colour: int
    mean: float
    span: tuple[float, float] | None
    dots: Sequence[float] = ()
    other: float | None = None


@dataclass(frozen=True)
class Rows:
    """One row per arm: a mean with its span, faint dots, or two marks joined by a line."""

    rows: Sequence[RowMark]
    x_title: str
    zero: bool

    def __call__(self, figure: Figure, theme: Theme) -> Sequence[Spot]:
        """Draw on an empty figure."""
        axes = figure.add_subplot()
        dress(axes, theme, self.x_title, "")
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", color=theme.line, linewidth=0.8)
        if self.zero:
            axes.axvline(0, color=theme.muted, linewidth=1.4, gid="zero")
        spots: list[Spot] = []
        for y, row in enumerate(self.rows):
            colour = theme.series[row.colour]
            if row.span is not None:
                axes.plot(row.span, [y, y], color=colour, linewidth=2.5, gid=f"span-{y}")
            if row.other is not None:
                axes.plot([row.mean, row.other], [y, y], color=theme.line, linewidth=2.5, zorder=1)
                axes.plot(
                    [row.other],
                    [y],
                    marker="o",
                    color=colour,
                    markerfacecolor=theme.paper,
                    markersize=7,
                    zorder=2,
                )
            axes.plot(
                row.dots,
                [y] * len(row.dots),
                linestyle="",
                marker="|",
                color=theme.muted,
                markersize=8,
                alpha=0.8,
            )
            axes.plot(
                [row.mean], [y], marker="o", color=colour, markersize=7, markeredgecolor=theme.paper, zorder=3
            )
            spots.append(Spot(axes, (-1e9, 1e9), (y - 0.5, y + 0.5), row.tip))
        axes.set_ylim(len(self.rows) - 0.4, -0.6)
        limit = 48 if figure.get_figwidth() > 7 else 20  # inches; on a phone the names would leave no room
        axes.set_yticks(range(len(self.rows)), [tidy(row.label, limit) for row in self.rows])
        axes.margins(x=0.06)
        return spots
