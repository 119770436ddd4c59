"""Evaluation where every client has a model of its own: nodes let theirs answer and send numbers, never the models."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from fedrot.engines.evaluation import Seen, averaged, evaluate_state, recorded, see
from fedrot.engines.flower.holders import Holders
from fedrot.engines.flower.marks import unpack_marks
from fedrot.engines.flower.messages import EXAMINE
from fedrot.engines.flower.messenger import Messenger
from fedrot.engines.observer import Observer
from fedrot.engines.setup import Federation
from fedrot.errors import AdapterError
from fedrot.server import ServerState, own_model

Marks = Mapping[str, Seen]
"""What one client's model scores, by split."""


class Examiner:
    """Scores a state of a federation whose clients may keep parts of the model on their nodes."""

    def __init__(
        self, federation: Federation, holders: Holders, messenger: Messenger, observer: Observer
    ) -> None:
        self._federation, self._holders = federation, holders
        self._messenger, self._observer = messenger, observer

    def evaluate(self, state: ServerState) -> dict[str, Any]:
        """What `evaluate_state` records; where clients keep parts, from what their nodes measured.

        A client that has kept nothing yet has the broadcast for a model, which the server examines itself. One whose
        node is away, late or unable is left out of every mean, under `unevaluated_clients` with the reason. Where data
        lies with the nodes no client's own model can be tested: nothing is recorded.
        """
        federation = self._federation
        if not federation.method.laws.personal:
            return evaluate_state(federation, state)
        if federation.data_with_nodes:
            return {}
        before = dict(self._messenger.traffic)
        marks: dict[int, Marks] = dict(self._without_parts(state))
        missing: dict[int, str] = {}
        self._ask(state, marks, missing)
        for client in _odd(marks):
            missing[client] = "other scores than of most clients"
            del marks[client]
        for client, why in sorted(missing.items()):
            self._observer.note(f"round {state.round}: client {client} is not evaluated: {why}")
        traffic = sum(bytes - before[way] for way, bytes in self._messenger.traffic.items())
        record: dict[str, Any] = {"bytes_evaluation": traffic} if traffic else {}
        if missing:
            record["unevaluated_clients"] = {str(client): why for client, why in sorted(missing.items())}
        return record | self._averaged(marks)

    def _averaged(self, marks: Mapping[int, Marks]) -> dict[str, float]:
        clients = sorted(marks)
        if not clients:
            return {}
        splits = self._federation.tested
        each = {split: [marks[client][split] for client in clients] for split in splits}
        return recorded({split: averaged(self._federation, clients, seen) for split, seen in each.items()})

    def _without_parts(self, state: ServerState) -> dict[int, Marks]:
        """Of clients that keep nothing yet: one model for all of a rank."""
        federation = self._federation
        kept = {} if state.apart is None else state.apart.rounds
        by_rank: dict[int | None, Marks] = {}
        found: dict[int, Marks] = {}
        for client, rank in enumerate(federation.ranks):
            if client in kept:
                continue
            if rank not in by_rank:
                model = own_model(state.adapter, {}, client, rank)
                by_rank[rank] = {
                    name: see(federation, model, split) for name, split in federation.tested.items()
                }
            found[client] = by_rank[rank]
        federation.crew.unload()
        return found

    def _ask(self, state: ServerState, marks: dict[int, Marks], missing: dict[int, str]) -> None:
        """Have nodes examine the models of clients with parts of their own."""
        federation = self._federation
        splits, metric = list(federation.tested), federation.objective.metric.name
        for client, answer in self._holders.ask(EXAMINE, state, missing).items():
            try:
                marks[client] = unpack_marks(
                    answer.content, client, splits, metric, len(federation.task.labels)
                )
            except AdapterError as error:
                missing[client] = f"{answer.node}: {error}"


def _odd(marks: Mapping[int, Marks]) -> list[int]:
    """Clients whose scores have other names than those of most."""
    names = {
        client: tuple(frozenset(seen.scores) for seen in each.values()) for client, each in marks.items()
    }
    if not names:
        return []
    usual, _ = Counter(names.values()).most_common(1)[0]
    return [client for client, found in names.items() if found != usual]
