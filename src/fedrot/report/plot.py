"""How a line chart is drawn: quiet axes, gaps where a value is not finite, tips under the pointer."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

from fedrot.report.canvas import Spot, Theme
from fedrot.report.digits import fraction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Point = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """A line of a chart, or its marks alone (`shape`: marks); a y that is not finite leaves a gap."""

    label: str
    points: Sequence[Point]
    colour: int
    shape: str = "line"
    marker: str = "o"


@dataclass(frozen=True)
class Plot:
    """Everything a line chart shows. `tips` maps an x to the text under the pointer there."""

    lines: Sequence[Line]
    x_title: str
    y_title: str
    tips: Sequence[tuple[float, str]]
    floor: float | None = None
    log: bool = False
    share: bool = False
    from_zero: bool = False
    rounds: bool = True

    def __call__(self, figure: Figure, theme: Theme) -> Sequence[Spot]:
        """Draw on an empty figure; the returned bands cover the axes."""
        return self.on(figure.add_subplot(), theme)

    def on(self, axes: Axes, theme: Theme) -> list[Spot]:
        """Draw on empty axes."""
        dress(axes, theme, self.x_title, self.y_title)
        for line in self.lines:
            _draw_line(axes, theme, line)
        if self.floor is not None:
            axes.axhline(self.floor, color=theme.muted, linestyle=(0, (2, 2.5)), linewidth=1.6, gid="floor")
        self._scale(axes)
        return bands(axes, self.tips)

    def _scale(self, axes: Axes) -> None:
        from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

        xs = [x for x, _ in self.tips]
        pad = (max(xs) - min(xs)) * 0.04 or 0.5
        if not self.rounds:  # of amounts that hardly differ, digits that nobody reads would do so
            pad = max(
                (max(xs) - min(xs)) * 0.06, max(xs) * 0.1 if max(xs) - min(xs) < max(xs) * 0.02 else 0.0
            )
        axes.set_xlim(min(xs) - (pad or 1.0), max(xs) + (pad or 1.0))
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=self.rounds, steps=[1, 2, 5, 10]))
        if self.rounds and len(set(xs)) == 1:
            axes.set_xticks([xs[0]])
        if not self.rounds:
            axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        if self.log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(
                FuncFormatter(lambda value, _: f"{value:g}" if value >= 1e-3 else f"{value:.0e}")
            )
            axes.yaxis.set_minor_formatter(NullFormatter())
            return
        axes.yaxis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 5, 10]))
        low, high = axes.get_ylim()
        room = (high - low) * 0.06
        low, high = low - room, high + room
        if self.share:
            least = min((y for line in self.lines for _, y in line.points if math.isfinite(y)), default=0.0)
            low, high = max(low, -0.01 if least >= 0 else -1.01), min(high, 1.01)
        axes.set_ylim(0 if self.from_zero else low, high)
        digits = 3 if high - low < 0.05 else 2
        axes.yaxis.set_major_formatter(
            FuncFormatter(
                lambda v, _: (
                    fraction(max(v, 0.0) if low > -0.02 else v, digits)
                    if self.share
                    else f"{v:.{digits}f}"
                    if high < 5
                    else f"{v:g}"
                )
            )
        )


def dress(axes: Axes, theme: Theme, x_title: str, y_title: str) -> None:
    """Quiet axes: horizontal grid lines, muted tick labels, titles in ink."""
    axes.set_xlabel(x_title, color=theme.muted, fontsize=11.5, labelpad=5)
    axes.set_ylabel(y_title, color=theme.muted, fontsize=11.5, labelpad=7)
    axes.tick_params(colors=theme.muted, labelsize=11, color=theme.line)
    axes.grid(axis="y", color=theme.line, linewidth=0.8)
    axes.patch.set_alpha(0.0)
    for side in ("left", "bottom"):
        axes.spines[side].set_color(theme.line)
    axes.spines["left"].set_visible(False)


def _draw_line(axes: Axes, theme: Theme, line: Line) -> None:
    xs = [x for x, _ in line.points]
    ys = [y if math.isfinite(y) else math.nan for _, y in line.points]
    many = len(xs) > 40 and line.shape != "marks"
    # On a long line only the points that no segment touches need a marker to be seen.
    breaks = [True, *(math.isnan(y) for y in ys), True]
    alone = [i for i in range(len(ys)) if breaks[i] and breaks[i + 2]]
    axes.plot(
        xs,
        ys,
        color=theme.series[line.colour],
        linestyle={"dashed": (0, (4, 2)), "dotted": (0, (1, 1.6)), "marks": ""}.get(line.shape, "-"),
        marker=line.marker if not many or alone else "",
        markevery=alone if many and alone else None,
        markersize=2.5 if many else 5.5,
        markeredgecolor=theme.paper,
        markeredgewidth=0 if many else 1,
        clip_on=False,
        gid=f"line-{line.label.replace(' ', '-')}",
    )


def bands(axes: Axes, tips: Sequence[tuple[float, str]]) -> list[Spot]:
    """Vertical bands around each x, meeting half way, so that the pointer is always near some point."""
    ordered = sorted(tips)
    xs = [x for x, _ in ordered]
    left, right = axes.get_xlim()
    edges = [left, *((a + b) / 2 for a, b in pairwise(xs)), right]
    return [Spot(axes, (edges[i], edges[i + 1]), None, tip) for i, (_, tip) in enumerate(ordered)]
