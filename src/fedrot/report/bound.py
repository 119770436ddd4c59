"""How the paper's bound on the gain of alignment is drawn: a panel of its own below the measured errors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fedrot.report.canvas import Spot, Theme
from fedrot.report.plot import Plot, bands, dress

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CURVE, POSITIVE = 5, 2
"""Colours of the bound and of where it is positive."""
POINTS = 101
SHOWN_BELOW = 2.0
"""How far below zero the panel goes where the bound has a positive part, in heights of that part."""


@dataclass(frozen=True)
class Bound:
    """`Gamma(strength) = slope strength - curvature strength^2` on [0, 1], and where it is positive."""

    slope: float
    curvature: float
    positive: tuple[float, float] | None

    def __call__(self, strength: float) -> float:
        """The bound's gain at a strength."""
        return self.slope * strength - self.curvature * strength**2

    @property
    def curve(self) -> list[tuple[float, float]]:
        """Points of [0, 1], and as many of the positive part, which may be a sliver."""
        shares = [number / (POINTS - 1) for number in range(POINTS)]
        xs = set(shares)
        if self.positive is not None:
            low, high = self.positive
            xs |= {low + (high - low) * share for share in shares}
        return [(x, self(x)) for x in sorted(xs)]

    @property
    def frame(self) -> tuple[float, float]:
        """Lowest and highest value shown: all of them, but for depths that would make the positive part vanish."""
        values = [value for _, value in self.curve]
        low, high = min(values), max(values)
        if self.positive is not None:
            low = max(low, -SHOWN_BELOW * high)
        room = 0.08 * (high - low) or 1.0
        return low - room, high + room

    @property
    def cut(self) -> bool:
        """Whether a part of the curve lies below what is shown."""
        return min(value for _, value in self.curve) < self.frame[0]


@dataclass(frozen=True)
class Panels:
    """Measured errors above, the bound below, by the same strengths; its positive part is shaded in both."""

    errors: Plot
    bound: Bound
    symbol: str

    def __call__(self, figure: Figure, theme: Theme) -> Sequence[Spot]:
        """Draw on an empty figure; the returned regions cover both panels."""
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
        dress(lower, theme, self.errors.x_title, self.symbol)
        lower.axhline(0, color=theme.muted, linewidth=1.2, gid="bound-zero")
        xs, ys = zip(*self.bound.curve, strict=True)
        lower.plot(xs, ys, color=theme.series[CURVE], gid="bound")
        spots = self.errors.on(upper, theme)
        upper.set_xlabel("")
        upper.tick_params(axis="x", labelbottom=False)
        figure.align_ylabels((upper, lower))
        _scale(lower, self.bound)
        if self.bound.positive is not None:
            for axes in (upper, lower):
                axes.axvspan(
                    *self.bound.positive, color=theme.series[POSITIVE], alpha=0.16, zorder=0, gid="positive"
                )
        return [*spots, *bands(lower, self.errors.tips)]


def _scale(axes: Axes, bound: Bound) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    axes.set_ylim(*bound.frame)
    axes.yaxis.set_major_locator(MaxNLocator(nbins=4, steps=[1, 2, 2.5, 5, 10]))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: signed(value)))


def signed(value: float) -> str:
    """Three significant digits, with a sign if negative: `0.04`, `−12.3`, `0`."""
    if not math.isfinite(value) or value == 0:
        return f"{abs(value):g}"
    text = f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"
    return text.replace("-", "−")
