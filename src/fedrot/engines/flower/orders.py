"""What the server asks of nodes, and whom: to train their clients, or to examine these clients' own models."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from flwr.app import ArrayRecord, ConfigRecord

from fedrot.core.adapter import Adapter
from fedrot.engines.flower.messages import Order, pack_broadcast, written
from fedrot.engines.flower.messenger import Messenger
from fedrot.engines.flower.roster import Peer, Roster
from fedrot.engines.flower.versions import version
from fedrot.engines.setup import Federation
from fedrot.participation import Cohort
from fedrot.server import Apart, ServerState, bare, truncated


class Orders:
    """Writes the orders of a run."""

    def __init__(self, federation: Federation, roster: Roster, messenger: Messenger) -> None:
        self._federation, self._roster, self._messenger = federation, roster, messenger
        self._recipe = federation.config.to_toml()

    def hosts(
        self, clients: Sequence[int], drop: Callable[[int, str], None]
    ) -> Mapping[Peer, tuple[int, ...]]:
        """Clients by the node that hosts them; those whose node is away or busy are dropped with the reason."""
        busy = self._messenger.busy
        found: dict[Peer, list[int]] = {}
        for client in clients:
            peer = self._roster.host(client)
            if peer is None:
                drop(client, "no node hosts it now")
            elif peer.node in busy:
                drop(client, f"node {peer.name!r} has not answered an earlier round yet")
            else:
                found.setdefault(peer, []).append(client)
        return {peer: tuple(members) for peer, members in found.items()}

    def broadcast(self, cohort: Cohort, state: ServerState) -> tuple[Adapter, dict[str, ArrayRecord]]:
        """What a cohort receives, without its residual, and the arrays to send."""
        lag = self._federation.method.reference_lag
        received = truncated(state.broadcast(cohort.lag), cohort.rank)
        # A stale update is aligned to what its fellows hold now, not to what it was computed from.
        target = truncated(state.broadcast(0 if cohort.lag else lag), cohort.rank)
        arrays = pack_broadcast(received, bare(target) if cohort.lag or lag else None)
        return bare(received), arrays

    def order(
        self, clients: Sequence[int], received: Adapter, number: int, apart: Apart | None
    ) -> ConfigRecord:
        """The order beside the arrays.

        Args:
            clients: of one node and rank.
            received: what they receive.
            number: of the round.
            apart: where they keep parts of their own, what is known of these.
        """
        rounds = {} if apart is None else apart.rounds
        order = Order(
            version=version(),
            base=self._roster.base,
            recipe=self._recipe,
            labels=list(self._federation.task.labels),
            run="" if apart is None else apart.run,
            round=number,
            clients=list(clients),
            kept=[rounds.get(client, 0) for client in clients],
            scale=received.scale,
        )
        return written(order)
