"""One drawing, two outputs: a PNG in fixed colours, and inline SVG in the page's own colours and font.

For the page a chart is drawn in placeholder colours, which are then replaced by CSS variables: the same SVG
follows the reader's light or dark scheme. Text stays text. Matplotlib is imported only to draw.
"""

from __future__ import annotations

import io
import json
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

POINTS_PER_INCH = 72
WIDE = 960
_NARROW = 350  # CSS pixels: a phone's width less its margins


@dataclass(frozen=True)
class Theme:
    """Colours of a drawing."""

    ink: str
    muted: str
    line: str
    paper: str
    series: tuple[str, ...]


# Paul Tol's "bright" scheme, safe for colour-blind readers; the last is for "everything else".
PRINT = Theme(
    ink="#1c2330",
    muted="#5b6472",
    line="#d9dde3",
    paper="#ffffff",
    series=("#4477aa", "#ee6677", "#228833", "#ccbb44", "#66ccee", "#aa3377", "#a9adb5"),
)
SCREEN = Theme(
    ink="#0a0b01",
    muted="#0a0b02",
    line="#0a0b03",
    paper="#0a0b04",
    series=tuple(f"#0a0b1{i}" for i in range(7)),
)
_VARIABLES = {
    SCREEN.ink: "var(--ink)",
    SCREEN.muted: "var(--muted)",
    SCREEN.line: "var(--line)",
    SCREEN.paper: "var(--card)",
    **{colour: f"var(--c{i})" for i, colour in enumerate(SCREEN.series)},
}


@dataclass(frozen=True)
class Key:
    """A legend entry. `colour` indexes `Theme.series` (None: muted); `shape`: line, dashed, dotted, block."""

    label: str
    colour: int | None
    shape: str = "line"


@dataclass(frozen=True)
class Spot:
    """A region of the axes, in data coordinates, that shows `tip` under the pointer."""

    axes: Axes
    x: tuple[float, float]
    y: tuple[float, float] | None
    tip: str


@dataclass(frozen=True)
class Cells:
    """A map whose cells show their row, column and value under the pointer."""

    axes: Axes
    rows: Sequence[str]
    columns: Sequence[str]
    values: Sequence[Sequence[str]]


@dataclass(frozen=True)
class Chart:
    """A chart of the report. Sizes are CSS pixels at the page's natural scale."""

    name: str
    title: str
    caption: str
    draw: Callable[[Figure, Theme], Sequence[Spot | Cells]]
    keys: Sequence[Key] = ()
    width: int = 470
    height: int = 280

    @property
    def wide(self) -> bool:
        """Whether it takes a whole row of the page."""
        return self.width >= WIDE


@contextmanager
def _drawing(chart: Chart, missing: set[str]) -> Iterator[None]:
    """Matplotlib's defaults plus ours, whatever the user's matplotlibrc says; restored afterwards."""
    import matplotlib

    with matplotlib.rc_context(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(
            {
                "font.family": "DejaVu Sans",
                "font.size": 11.5,
                "text.parse_math": False,  # a `$` in a label is a dollar sign
                "svg.fonttype": "none",
                "svg.hashsalt": chart.name,
                "axes.spines.top": False,
                "axes.spines.right": False,
                "axes.axisbelow": True,
                "xtick.major.size": 3,
                "ytick.major.size": 0,
                "xtick.minor.size": 0,
                "ytick.minor.size": 0,
                "lines.linewidth": 2,
                "lines.solid_capstyle": "round",
            }
        )
        yield
    for warning in caught:
        if "missing from" in str(warning.message):
            missing.add(chart.name)
        else:
            warnings.warn_explicit(warning.message, warning.category, warning.filename, warning.lineno)


def _figure(chart: Chart, extra_height: float = 0.0) -> Figure:
    from matplotlib.figure import Figure

    size = (chart.width / POINTS_PER_INCH, (chart.height + extra_height) / POINTS_PER_INCH)
    figure = Figure(figsize=size, dpi=POINTS_PER_INCH, layout="constrained")
    figure.get_layout_engine().set(w_pad=0.05, h_pad=0.05)  # type: ignore[union-attr]
    return figure


def _lay_out(figure: Figure) -> None:
    """Place everything once; left to itself, saving draws the figure twice to do so."""
    engine = figure.get_layout_engine()
    if engine is not None:
        engine.execute(figure)
    figure.set_layout_engine("none")


def render_png(chart: Chart, path: Path) -> bool:
    """Draw `chart` to a PNG with its title and legend. False if its font lacks some of the characters."""
    missing: set[str] = set()
    with _drawing(chart, missing):
        rows = 0 if not chart.keys else -(-sum(len(key.label) + 6 for key in chart.keys) * 7 // chart.width)
        figure = _figure(chart, 26 + 18 * rows)
        figure.set_facecolor(PRINT.paper)
        figure.suptitle(chart.title, x=0.02, ha="left", fontsize=13, fontweight="bold", color=PRINT.ink)
        chart.draw(figure, PRINT)
        if chart.keys:
            columns = max(1, -(-len(chart.keys) // rows))
            figure.legend(
                handles=[_handle(key) for key in chart.keys],
                loc="outside lower left",
                ncols=columns,
                frameon=False,
                fontsize=10,
                labelcolor=PRINT.muted,
            )
        _lay_out(figure)
        figure.savefig(path, format="png", dpi=160, metadata={"Software": "fedrot"})
    return not missing


def _handle(key: Key) -> Line2D | Patch:
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    colour = PRINT.muted if key.colour is None else PRINT.series[key.colour]
    if key.shape == "block":
        return Patch(facecolor=colour, label=key.label)
    style: Literal["--", ":", "-"] = "--" if key.shape == "dashed" else ":" if key.shape == "dotted" else "-"
    return Line2D([], [], color=colour, linestyle=style, label=key.label)


def render_svgs(chart: Chart) -> Markup:
    """Draw `chart` for a desk and again for a phone, where scaling would shrink its text; CSS shows one."""
    narrow = replace(chart, name=f"{chart.name}-narrow", width=_NARROW, height=min(chart.height, 420))
    return render_svg(chart, "roomy") + render_svg(narrow, "narrow")


def render_svg(chart: Chart, size: str) -> Markup:
    """Draw `chart` as inline `<svg>`: page colours, page font, identifiers of its own, regions with tips."""
    buffer = io.StringIO()
    with _drawing(chart, set()):
        figure = _figure(chart)
        spots = chart.draw(figure, SCREEN)
        _lay_out(figure)
        no_metadata = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=no_metadata)
        overlay = "".join(_overlay(spot, chart.height) for spot in spots)
    # Safe: matplotlib and _overlay escape every text they are given.
    return Markup(_themed(buffer.getvalue(), chart, size, overlay))


def _themed(svg: str, chart: Chart, size: str, overlay: str) -> str:
    body = svg[svg.index(">", svg.index("<svg")) + 1 : svg.rindex("</svg>")]
    body = re.sub(r"<style.*?</style>|<metadata>.*?</metadata>", "", body, flags=re.S)
    body = re.sub(r"\bid=\"", f'id="{chart.name}-', body)
    body = re.sub(r"(?:xlink:)?href=\"#", f'href="#{chart.name}-', body)
    body = body.replace("xlink:href=", "href=").replace("url(#", f"url(#{chart.name}-")
    body = re.sub(r"(<text[^>]*?)font: ([^;\"]*?)([\d.]+px) [^;\"]*", r"\1font-size: \3", body)
    for placeholder, variable in _VARIABLES.items():
        body = body.replace(placeholder, variable)
    opening = (
        f'<svg class="plot {size}" id="plot-{chart.name}" viewBox="0 0 {chart.width} {chart.height}" '
        f'role="img" aria-label="{Markup.escape(chart.title)}">'
    )
    return f'{opening}{body}<g class="spots">{overlay}</g></svg>'


def _overlay(spot: Spot | Cells, height: float) -> str:
    axes = spot.axes
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    if isinstance(spot, Spot):
        left, right = max(min(left, right), spot.x[0]), min(max(left, right), spot.x[1])
        low, high = spot.y or (low, high)
    corners = axes.transData.transform([(left, low), (right, high)])
    (x0, y0), (x1, y1) = corners.min(axis=0), corners.max(axis=0)
    box = f'x="{x0:.1f}" y="{height - y1:.1f}" width="{x1 - x0:.1f}" height="{y1 - y0:.1f}"'
    if isinstance(spot, Spot):
        return f'<rect class="spot" {box} data-tip="{Markup.escape(spot.tip)}"/>'
    cells = json.dumps(
        {"rows": list(spot.rows), "columns": list(spot.columns), "values": [list(v) for v in spot.values]}
    )
    return (
        f'<rect class="spot cells" {box} data-cells="{Markup.escape(cells)}"/>'
        '<rect class="cell" width="0" height="0"/>'
    )
