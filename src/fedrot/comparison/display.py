"""How far a comparison is: a bar on a terminal, a plain line a cell elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from fedrot.comparison.design import Design
from fedrot.comparison.pool import Task
from fedrot.comparison.run import Watcher
from fedrot.comparison.store import Store
from fedrot.report.scores import Score


class Display(Watcher):
    """A line for every finished cell, with an estimate of the time left; on a terminal a bar below them."""

    def __init__(self, out: Console, err: Console) -> None:
        self.out = out
        self.err = out if out.is_terminal else err  # one console draws, or the bar would be torn
        self.store = Store(".")
        self.directory: Path | None = None
        self.total = self.done = self.later = 0
        self.under_way: dict[str, float] = {}
        self.since = time.perf_counter()
        self.finished_before = 0
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.fields[count]}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            console=out,
            transient=True,
            disable=not out.is_terminal,
        )
        self.bar = self.progress.add_task("cells", total=1, count="", left="")

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def opened(self, design: Design, directory: Path) -> None:
        """Say what is compared."""
        self.directory, self.store = directory, Store(directory)
        points = len(design.points)
        where = f" at {points} grid points" if points > 1 else ""
        self.out.print(
            f"{', '.join(map(escape, design.variants))} with {len(design.seeds)} seeds{where}, "
            f"in {escape(str(directory))}",
            soft_wrap=True,
        )

    def phase(self, name: str, tasks: int, done: int, later: int) -> None:
        """Say how many cells there are to run."""
        if not tasks and not done:
            return
        self.total, self.done, self.later = self.finished_before + tasks, self.finished_before, later
        words = {
            "tuning": "choosing settings",
            "runs": "runs with the chosen settings" if self.done else "runs",
        }
        there = f", {done} done already" if done else ""
        self.out.print(f"{words[name]}: {tasks} to run{there}", soft_wrap=True)
        self._draw()

    def began(self, task: Task) -> None:
        """A cell is under way."""
        self.under_way[task.key] = 0.0
        self._draw()

    def told(self, task: Task, news: Mapping[str, Any]) -> None:
        """A round of a cell is finished."""
        self.under_way[task.key] = news["round"] / news["rounds"]
        self._draw()

    def ended(self, task: Task) -> None:
        """Print the cell's line."""
        self.under_way.pop(task.key, None)
        self.done += 1
        self.finished_before = self.done
        cell = self.store.cell(task.key) or {}
        if "failure" in cell:
            said = f"[bold red]failed:[/] {escape(cell['failure']['message'])}"
        else:
            final = cell["final"]
            score = Score.of(cell.get("metric"))
            said = f"{score.words} {final[score.name]:.4f}"
            if score.validation in final:
                said += f"  validation {final[score.validation]:.4f}"
            said += f"  {cell['wall_seconds']:.1f} s"
        name = escape(task.payload["name"])
        self.out.print(f"{self.done}/{self.total}  {name}  {said}  {self.left()}", soft_wrap=True)
        self._draw()

    def died(self, task: Task, reason: str, *, again: bool) -> None:
        """Say so; the cell's place is taken up again or counted as done."""
        self.under_way.pop(task.key, None)
        what = "started again" if again else "given up"
        self.err.print(
            f"note: the worker of {escape(task.payload['name'])} ended ({escape(reason)}); the cell is {what}",
            soft_wrap=True,
        )
        if not again:
            self.done += 1
            self.finished_before = self.done

    def left(self) -> str:
        """An estimate from the cells done since the start, later ones included; nothing before there is a ground."""
        through = self.done + sum(self.under_way.values())
        if through < 0.05:
            return ""
        seconds = (time.perf_counter() - self.since) / through * (self.total + self.later - through)
        return f"ETA {duration(seconds)}"

    def _draw(self) -> None:
        through = self.done + sum(self.under_way.values())
        count = f"{self.done}/{self.total}" + (f" (+{self.later})" if self.later else "")
        self.progress.update(
            self.bar, total=self.total + self.later, completed=through, count=count, left=self.left()
        )


def duration(seconds: float) -> str:
    """Seconds in the unit that suits them: `45 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
