"""Charts of the experiments' results, drawn into the page from the same JSON files as the tables."""

from __future__ import annotations

import json
import re
from dataclasses import replace

from experiments_tables import RESULTS  # beside this file; MkDocs puts its folder on the path

from fedrot.comparison.sent import sent_chart
from fedrot.report.canvas import PRINT, render_svg

COLOURS = {
    **{"--ink": "currentColor", "--muted": "currentColor", "--line": "#8888", "--card": "transparent"},
    **{f"--c{number}": colour for number, colour in enumerate(PRINT.series)},
}
"""What the report's page defines; of the text, the colours of these pages, light or dark."""


def score_by_bytes(name: str) -> str:
    """The last round's score against the megabytes that a run sent, a line for each variant."""
    path = RESULTS / f"{name}.json"
    if not path.exists():
        return "*Not run yet.*\n"
    chart = sent_chart(json.loads(path.read_text("utf-8")))
    if chart is None:
        raise ValueError(f"{path.name}: all runs send as many bytes, there is nothing to draw against them")
    chart = replace(chart, width=690, height=270)  # a column of these pages
    drawing = re.sub(r'<g class="spots">.*?</g></svg>', "</svg>", str(render_svg(chart, "roomy")), flags=re.S)
    drawing = re.sub(r"\n\s*\n", "\n", drawing)  # an empty line would end the block in Markdown
    style = "; ".join(f"{key}: {value}" for key, value in COLOURS.items())
    legend = " &nbsp; ".join(
        f'<span style="color: {PRINT.series[key.colour or 0]}">●</span> <code>{key.label}</code>' for key in chart.keys
    )
    return f'<div style="{style}">\n{drawing}\n<p><small>{legend}. {chart.caption}</small></p>\n</div>\n'
