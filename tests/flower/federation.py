"""A federation in this process whose nodes misbehave as a test says."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from flwr.app import Message, RecordDict

from fedrot.config import RunConfig
from fedrot.engines.flower.grid import InProcessGrid
from fedrot.engines.flower.messages import FACTS, Order, pack_broadcast, written
from fedrot.engines.flower.run import in_process_grid, serve
from fedrot.engines.flower.versions import version
from fedrot.engines.observer import Observer
from fedrot.engines.rounds import RunResult
from fedrot.engines.setup import Federation, prepare
from fedrot.model import fingerprint
from fedrot.rundir import RunDirectory

Disturb = Callable[[Message], Message | None]
"""What becomes of a reply; None: it never comes."""


class Disturbed(InProcessGrid):
    """An in-process grid that loses, delays or changes replies."""

    disturb: Disturb

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        found = [self.disturb(reply) for reply in super().pull_messages(message_ids)]
        return [reply for reply in found if reply is not None]


class Heard(Observer):
    """Keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.waits: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def preparing(self, what: str) -> None:
        self.waits.append(what)


def disturbed_run(
    config: RunConfig, out: Path, disturb: Disturb, *, observer: Observer | None = None, **options: Any
) -> RunResult:
    """Run a recipe over a grid whose replies pass through `disturb`."""
    federation = prepare(config)
    grid = in_process_grid(federation)
    grid.__class__ = Disturbed
    assert isinstance(grid, Disturbed)
    grid.disturb = disturb
    return serve(grid, federation, RunDirectory(out), observer or Observer(), **options)


def round_of(reply: Message) -> int:
    """The round a reply belongs to; 0 for the handshake."""
    return int(reply.metadata.group_id or 0)


def later(seconds: float) -> float:
    """A moment to come."""
    return time.monotonic() + seconds


def asked_to_train(federation: Federation, config: RunConfig, round: int) -> RecordDict:
    """What a server sends a node that is to train client 0, by this recipe, from where the federation starts."""
    order = Order(
        version=version(),
        base=fingerprint(federation.base),
        recipe=config.to_toml(),
        labels=list(federation.task.labels),
        run="",
        round=round,
        clients=[0],
        kept=[0],
        scale=federation.initial.scale,
    )
    return RecordDict({FACTS: written(order), **pack_broadcast(federation.initial, None)})
