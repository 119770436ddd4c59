"""The last lines of a run on the command line."""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from fedrot.rundir import RunDirectory


def print_outcome(out: Console, directory: Path, summary: dict[str, Any]) -> None:
    """Print the table of rounds, the final accuracy beside the floor, and where report and adapter lie."""
    from fedrot.report import final_rows

    headers, rows = final_rows(directory)
    table = Table(box=None, pad_edge=False)
    for header in headers:
        table.add_column(header, justify="right")
    for row in rows:
        table.add_row(*row)
    out.print(table)
    final, floor = summary["final"], summary["probe"]
    metric = summary["metric"]["name"]
    if final:
        out.print(f"\nfinal test {words(metric)} {final[metric]:.4f} after round {final['round']}")
    else:
        out.print("\nno round was evaluated")
    if summary["best_validation_round"] is not None:
        best = summary["best_validation"]
        out.print(
            f"at the best round on validation ({best['round']}): test {words(metric)} {best[metric]:.4f}"
        )
    if floor and final:
        for told, probe in (
            ("linear probe, same federation without adapter (the floor)", floor),
            ("linear probe fitted centrally on all clients' data, penalty tuned", floor["central"]),
        ):
            if metric in probe:
                out.print(_compared(told, probe[metric], final[metric]), soft_wrap=True)
    _print_samples(out, directory)
    for name in ("report.html", "adapter"):
        if (directory / name).exists():
            out.print(f"{name.removesuffix('.html') + ':':8} {escape(str(directory / name))}", soft_wrap=True)


def interrupted(directory: Path | None) -> str:
    """How a run that was stopped goes on, if there is anything to go on from."""
    if directory is None or not RunDirectory(directory).config.exists():
        return "interrupted before anything was written; there is nothing to resume"
    where = shlex.quote(str(directory))
    return f"interrupted; finished rounds are kept: continue with `fedrot run --resume --out {where}`"


def _print_samples(out: Console, directory: Path) -> None:
    """What the model said to held-out prompts before and after the run, if the recipe asked for it."""
    from fedrot.report.samples import shortened

    path = directory / "samples.json"
    if not path.exists():
        return
    for number, text in enumerate(json.loads(path.read_text("utf-8"))["texts"], start=1):
        out.print(f"\nsample {number}")
        for key in ("asked", "expected", "before", "after"):
            out.print(
                f"  {key + ':':9} {escape(shortened(' '.join(text[key].split())) or '(nothing)')}",
                soft_wrap=True,
            )


def words(metric: str) -> str:
    """A figure's name as a sentence has it."""
    return metric.replace("_", " ")


def _compared(name: str, probe: float, final: float) -> str:
    gain = 100 * (final - probe)
    return f"{name}: {probe:.4f}; the adapter is {abs(gain):.1f} points {'above' if gain >= 0 else 'below'}"
