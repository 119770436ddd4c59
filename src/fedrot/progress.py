"""The live display of a run: a progress bar with figures on a terminal, one plain line a round elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from fedrot.engines.observer import Observer
from fedrot.engines.setup import Federation


class Display(Observer):
    """Common to both displays: what a round's line says."""

    def __init__(self, out: Console, err: Console) -> None:
        self.out, self.err = out, err
        self.rounds = 0
        self.steps = 0
        self.metric = "accuracy"
        self.directory: Path | None = None
        self.since = time.perf_counter()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def note(self, text: str) -> None:
        self.err.print(f"note: {escape(text)}", soft_wrap=True)

    def opened(self, directory: Path) -> None:
        self.directory = directory

    def preparing(self, what: str) -> None:
        self.err.print(f"{escape(what)} ...", soft_wrap=True)

    def started(self, federation: Federation, round: int, floor: Mapping[str, Any] | None) -> None:
        config = federation.config
        self.rounds = config.federation.rounds
        self.metric = federation.objective.metric.name
        self.since = time.perf_counter()
        adapter = sum(f.a.numel() + f.b.numel() for f in federation.initial.sites.values())
        head = sum(t.numel() for t in federation.initial.head.values())
        and_head = f" and {head:,} head" if head else ""
        self.out.print(
            f"{config.method.name} on {federation.task.name}: {federation.clients} clients, "
            f"{federation.training_examples} training and {len(federation.test.data)} test examples, "
            f"{len(federation.initial.sites)} sites, {adapter:,} adapter{and_head} parameters, "
            f"{_together(federation)} on {federation.base.device}",
            soft_wrap=True,
        )
        if floor is not None:
            name = self.metric if self.metric in floor else "accuracy"
            self.out.print(
                f"linear probe on the frozen encoder: {name} {floor[name]:.4f} in this federation (the floor), "
                f"{floor['central'][name]:.4f} fitted centrally",
                soft_wrap=True,
            )

    def score(self, record: Mapping[str, Any]) -> str:
        """The task's own figure of a round, if it was evaluated."""
        return f"{self.metric} {record[self.metric]:.4f}" if self.metric in record else ""

    def line(self, record: Mapping[str, Any]) -> str:
        """One finished round in words."""
        parts = [f"round {record['round']}/{self.rounds}"]
        if "loss" in record:  # no client reported
            parts.append(f"loss {record['loss']:.4f}")
        if told := self.score(record):
            parts.append(told)
        if "aggregation_error_relative" in record:
            plain = record.get("aggregation_error_relative_unaligned")
            told = "" if plain is None else f" (unaligned {plain:.3f})"
            parts.append(f"error {record['aggregation_error_relative']:.3f}{told}")
        if record.get("epsilon") is not None:
            parts.append(f"epsilon {record['epsilon']:.3g}")
        if "client_steps" in record:
            parts.append(f"{record['client_steps'] / record['training_seconds']:.1f} client-steps/s")
        if record["dropped"]:
            parts.append(f"{record['dropped']} dropped out")
        if record["rejected"]:
            parts.append(f"[bold red]{record['rejected']} rejected[/]")
        return "  ".join(parts)


class LiveDisplay(Display):
    """On a terminal."""

    def __init__(self, out: Console, err: Console) -> None:
        super().__init__(out, err)
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("ETA"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[figures]}"),
            console=out,
            transient=True,
        )
        self.err = out  # one console draws, or the bar would be torn
        self.overall = self.clients = None
        self.last = ""

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.progress.stop()

    def started(self, federation: Federation, round: int, floor: Mapping[str, Any] | None) -> None:
        super().started(federation, round, floor)
        self.overall = self.progress.add_task("rounds", total=self.rounds, completed=round, figures="")
        self.clients = self.progress.add_task("clients", total=federation.clients, figures="")

    def trained(self, round: int, done: int, chosen: int) -> None:
        assert self.clients is not None
        self.progress.update(self.clients, total=chosen, completed=done)

    def finished(self, record: Mapping[str, Any]) -> None:
        assert self.overall is not None
        self.out.print(self.line(record), soft_wrap=True)
        # Without a loss no client reported, or none may tell.
        figures = [f"loss {record['loss']:.4f}"] if "loss" in record else []
        if "aggregation_error_relative" in record:
            figures.append(f"error {record['aggregation_error_relative']:.3f}")
        self.last = self.score(record) or self.last
        figures += [self.last] if self.last else []
        self.progress.update(self.overall, completed=record["round"], figures="  ".join(figures))


class PlainDisplay(Display):
    """Where output goes to a file or a pipe."""

    def __init__(self, out: Console, err: Console) -> None:
        super().__init__(out, err)
        self.first: int | None = None

    def started(self, federation: Federation, round: int, floor: Mapping[str, Any] | None) -> None:
        super().started(federation, round, floor)
        self.first = round

    def finished(self, record: Mapping[str, Any]) -> None:
        assert self.first is not None
        done = record["round"] - self.first
        left = (time.perf_counter() - self.since) / done * (self.rounds - record["round"])
        self.out.print(f"{self.line(record)}  ETA {left:.0f} s", soft_wrap=True)


def make_observer(out: Console, err: Console) -> Display:
    """A live display on a terminal, plain lines elsewhere."""
    return LiveDisplay(out, err) if out.is_terminal else PlainDisplay(out, err)


def _together(federation: Federation) -> str:
    """How many clients train at once."""
    stacks, each = len(federation.crew.models), federation.group_size
    return f"{stacks} times {each} clients at a time" if stacks > 1 else f"{each} clients at a time"
