"""The report of a run: metrics to a table, plots and one self-contained HTML page.

Reads a run directory (`config.toml`, `metrics.jsonl`, `summary.json`) and nothing else, so a report can be
written again at any time, on any machine, and while the run is still going.
"""

from __future__ import annotations

from fedrot.report.load import Run, load_run
from fedrot.report.page import write_report
from fedrot.report.words import final_rows, verdict

__all__ = ["Run", "final_rows", "load_run", "verdict", "write_report"]
