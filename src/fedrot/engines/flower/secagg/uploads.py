"""A round whose uploads the server does not see: what takes the place of taking them in."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence

from flwr.app import ConfigRecord, RecordDict

from fedrot.core.adapter import Adapter
from fedrot.engines.flower.messages import metrics_name, unpack_told
from fedrot.engines.flower.secagg.driver import Exchange, SecureRound
from fedrot.engines.flower.secagg.layout import Layout
from fedrot.engines.flower.secagg.wire import Rules, pack_rules
from fedrot.engines.round import Round
from fedrot.engines.setup import Federation
from fedrot.errors import AdapterError, ConfigError, SecureAggregationError
from fedrot.methods import Update
from fedrot.secagg import Aggregate, FixedPoint, Session, threshold_of
from fedrot.secagg.session import NONCE_BYTES
from fedrot.wire import uploaded


class SecureUploads:
    """One round of secure aggregation, from the message that asks for training to the mean.

    Attributes:
        rules: goes along with the message that asks for training.
    """

    def __init__(
        self,
        federation: Federation,
        round: Round,
        received: Adapter,
        hosts: Mapping[int, int],
        weights: Sequence[float],
        exchange: Exchange,
    ) -> None:
        """Settle the rules.

        Args:
            federation: the server's.
            round: to be filled.
            received: the broadcast without residual, at the server's rank.
            hosts: by client that is to train, its node.
            weights: of these clients.
            exchange: the network.

        Raises:
            ConfigError: numbers of so many clients with such weights would be rounded too coarsely.
            SecureAggregationError: fewer than two clients.
        """
        self._round, self._received = round, received
        self._told: dict[int, dict[str, float]] = {}
        self._losses: dict[int, float] = {}
        self._silent: set[int] = set()
        self._session = _session(federation, round.number, received, tuple(sorted(hosts)), weights)
        self._secure = SecureRound(self._session, hosts, exchange)
        self.rules: ConfigRecord = pack_rules(Rules.of(self._session))

    def take(self, content: RecordDict, clients: Sequence[int], where: str) -> None:
        """Take in a node's reply to the message that asked for training: keys and measurements, and no uploads."""
        for client in self._secure.join(content, clients, where):
            try:
                self._told[client] = self._measured(client, content, f"{where}, client {client}")
            except AdapterError as error:
                self._secure.leave(client, str(error))

    def _measured(self, client: int, content: RecordDict, where: str) -> dict[str, float]:
        record = content.metric_records.get(metrics_name(client))
        if self._round.mechanism == "local":
            if record is not None:
                raise AdapterError(f"{where} sent measurements: with privacy.mechanism = 'local' it may not")
            return {}
        told = unpack_told(record, where)
        if not all(math.isfinite(value) for value in (told.loss, told.drift, *told.rotation.values())):
            raise AdapterError(f"{where}: non-finite measurements")
        self._losses[client] = told.loss
        return {"steps": told.steps, "drift": told.drift, **told.rotation}

    def lose(self, client: int, reason: str) -> None:
        """A client did not reply to the message that asked for training."""
        self._silent.add(client)
        self._secure.lost[client] = reason

    def finish(self) -> Mapping[str, str]:
        """Unmask the sum, and write the mean, or that there is none, into the round.

        Returns:
            Why clients left after training, by who they are, and why there is no mean.
        """
        secure, round = self._secure, self._round
        try:
            aggregate = secure.finish()
        except SecureAggregationError as error:
            if secure.refused.keys() == set(self._session.clients):
                round.rejected |= secure.refused
            else:
                for client in self._session.clients:
                    round.drop(client, secure.refused.get(client) or secure.lost.get(client) or str(error))
            return self._left() | {"no mean": str(error)}
        for client, why in secure.lost.items():
            round.drop(client, why)
        round.rejected |= secure.refused
        self._receive(aggregate)
        return self._left()

    def _left(self) -> dict[str, str]:
        left = self._secure.lost | self._secure.refused | self._secure.late
        return {f"client {client}": why for client, why in left.items() if client not in self._silent}

    def _receive(self, aggregate: Aggregate) -> None:
        tensors = Layout.read(self._session.layout).unpack(aggregate.mean)
        before = self._received.tensors()
        own = {key: tensor.to(before[key].device) for key, tensor in tensors.items()}
        mean = Adapter.from_tensors({**before, **own}, self._received.scale)
        clients = aggregate.clients
        losses = [self._losses[client] for client in clients if client in self._losses]
        metrics = {"loss": sum(losses) / len(losses)} if losses else {}
        update = Update(clients[0], mean, 1.0, metrics)
        self._round.receive_mean(update, {client: self._told[client] for client in clients}, aggregate.error)


def _session(
    federation: Federation, number: int, received: Adapter, clients: tuple[int, ...], weights: Sequence[float]
) -> Session:
    config, settings = federation.config, federation.config.privacy
    layout = Layout.of(uploaded(federation.method, received, number))
    # Rounded up to a power of two: nodes need not hear how many examples the largest client has.
    largest = 1 << (int(max(weights, default=1)) - 1).bit_length()
    try:
        numbers = FixedPoint(max(1, len(clients)), settings.secure_range, largest, settings.secure_bits)
    except SecureAggregationError as error:
        raise ConfigError(
            f"privacy.secure_bits = {settings.secure_bits}, privacy.secure_range = {settings.secure_range:g}: {error}; "
            "set privacy.secure_bits = 64, a smaller range, or federation.weighting = 'uniform'"
        ) from error
    return Session(
        run=f"seed {config.seed}",
        round=number,
        clients=clients,
        threshold=threshold_of(settings.secure_threshold, len(clients), signed=False),
        length=layout.length,
        numbers=numbers,
        nonce=os.urandom(NONCE_BYTES),
        layout=layout.text(),
    )
