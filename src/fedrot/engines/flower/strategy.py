"""Any Flower strategy with fedrot on the server: it measures, and lets a method aggregate the LoRA factors."""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, final

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from fedrot.core.adapter import Adapter, Factors
from fedrot.core.initial import kept_trainable
from fedrot.core.measure import adapter_aggregation_error, adapter_broadcast_error
from fedrot.engines.flower.mod import MARKER, check_shapes
from fedrot.engines.flower.pairs import Naming, Pair, read_pairs, write_pairs
from fedrot.engines.flower.server_method import acts_on_server, check_inner, make_method, needs_mod
from fedrot.errors import AdapterError, ConfigError
from fedrot.methods import MethodState, Update

_LOG = logging.getLogger("flwr")


@dataclass(frozen=True)
class _Broadcast:
    """What a round's clients received."""

    pairs: tuple[Pair, ...]
    adapter: Adapter


@dataclass(frozen=True)
class _Sent:
    """One client's reply, with its factors read."""

    message: Message
    pairs: tuple[Pair, ...]
    adapter: Adapter
    weight: float
    aligned: bool


@final
class FedRotStrategy(Strategy):
    """Wraps a Flower strategy, which goes on doing all the rest: sampling, configuration, other arrays, metrics.

    With the default method the clients rotate: `FedRotStrategy(FedAvg())` with `ClientApp(mods=[FedRotMod()])`. The
    factors are averaged by `inner`, and this checks that the mod is there. A method that works on the server
    (`method="flexlora"`, `"auto"`, `"lora-fair"`, or `fedrot` with `reference="consensus"`, `guard="server"` or
    `refit=1`) aggregates the factors first, and `inner` then sees clients that all sent the method's result: FedAvg
    broadcasts it, FedAdam steps towards it.

    A reply that does not fit what was sent out (keys, shapes, numbers that are not finite) is left out of the round
    with a warning, and counted in the round's metrics as `fedrot-rejected`, beside `fedrot-error-of-means` and
    `fedrot-error`, the relative errors `||W - b a|| / ||W||` of averaging the factors as uploaded and of the method's
    result, `W` being the weighted mean of the clients' products. Everything is kept in memory, like the moments of
    Flower's own strategies.

    Args:
        inner: a strategy of `flwr.serverapp.strategy`, or your own subclass.
        method: a name in `fedrot.methods()`.
        pattern: see `Naming`.
        names: see `Naming`.
        weighted_by_key: of the replies' metrics; default that of `inner`, else `"num-examples"`.
        measure: False leaves out the errors, which take time and memory for all uploads.
        **options: of the method.

    Raises:
        ConfigError: a method that a strategy cannot carry out, an option out of range, or an `inner` whose own work
            the method would undo.
    """

    def __init__(
        self,
        inner: Strategy,
        method: str = "fedrot",
        *,
        pattern: str | None = None,
        names: Sequence[str] | None = None,
        weighted_by_key: str | None = None,
        measure: bool = True,
        **options: object,
    ) -> None:
        self.inner = inner
        self.method = make_method(method, options)
        check_inner(inner, self.method)
        self._naming = Naming(pattern=pattern, names=names)
        self._weight_key = weighted_by_key or getattr(inner, "weighted_by_key", "num-examples")
        self._measure = measure
        self._broadcast: _Broadcast | None = None
        self._state = MethodState()

    def __getattr__(self, name: str) -> Any:
        if name == "inner":  # not there yet, as while unpickling
            raise AttributeError(name)
        return getattr(self.inner, name)

    def start(self, *args: Any, **kwargs: Any) -> Result:
        """`inner`'s own `start`, also where a subclass has one, with its steps going through this strategy."""
        hooks = {name: getattr(self, name) for name in ("configure_train", "aggregate_train", "summary")}
        vars(self.inner).update(hooks)
        try:
            return self.inner.start(*args, **kwargs)
        finally:
            for name in hooks:
                del vars(self.inner)[name]

    def summary(self) -> None:
        """Log the method, then what `inner` logs."""
        if acts_on_server(self.method):
            where = "on the server"
        else:
            where = "by FedRotMod on the clients" if needs_mod(self.method) else "plain averages"
        chosen = {f.name: (getattr(self.method, f.name), f.default) for f in fields(self.method)}
        options = {name: value for name, (value, default) in chosen.items() if value != default}
        _LOG.info(
            "\t├──> FedRotStrategy: %s%s, %s", self.method.name, f" {options}" if options else "", where
        )
        type(self.inner).summary(self.inner)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """`inner`'s messages; keeps the factors that they carry.

        Raises:
            AdapterError: `arrays` hold no pairs of factors.
        """
        where = "the arrays to send"
        pairs = self._naming.pairs(arrays, where)
        self._broadcast = _Broadcast(pairs, read_pairs(arrays, pairs, where))
        return type(self.inner).configure_train(self.inner, server_round, arrays, config, grid)

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """`inner`'s result on the replies that fit, with the method's factors where it works on the server.

        Raises:
            ConfigError: clients should rotate and some do not.
            AdapterError: not one reply fits.
        """
        if self._broadcast is None:
            raise ConfigError("aggregate_train before configure_train: call them in turn, as `start` does")
        received = self._broadcast.adapter
        failed, sent, rejected = self._sort(replies, received)
        passed = [one.message for one in sent]
        figures: dict[str, float] = {}
        if sent:
            self._check_mod(sent)
            updates = [Update(index, one.adapter, one.weight) for index, one in enumerate(sent)]
            result = None
            if acts_on_server(self.method):
                result, self._state = self.method.aggregate(updates, received, self._state, server_round)
                result = kept_trainable(result, received)
                passed = [_with_factors(one, result) for one in sent]
            if self._measure:
                figures = _errors(updates, result)
        arrays, metrics = type(self.inner).aggregate_train(self.inner, server_round, [*failed, *passed])
        if metrics is not None and sent:
            for name, value in {**figures, "fedrot-rejected": float(rejected)}.items():
                metrics[name] = value
        return arrays, metrics

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """`inner`'s."""
        return self.inner.configure_evaluate(server_round, arrays, config, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """`inner`'s."""
        return self.inner.aggregate_evaluate(server_round, replies)

    def _sort(self, replies: Iterable[Message], received: Adapter) -> tuple[list[Message], list[_Sent], int]:
        """Replies with errors, those that fit in the order of their nodes, and how many do not."""
        failed: list[Message] = []
        sent: list[_Sent] = []
        reasons: list[str] = []
        for message in sorted(replies, key=lambda reply: reply.metadata.src_node_id):
            if message.has_error():
                failed.append(message)
                continue
            try:
                sent.append(self._read(message, received))
            except AdapterError as error:
                reasons.append(str(error))
                _LOG.warning("FedRotStrategy: left out of the round: %s", error)
        if reasons and not sent:
            raise AdapterError(f"none of {len(reasons)} replies can be used; the first: {reasons[0]}")
        return failed, sent, len(reasons)

    def _read(self, message: Message, received: Adapter) -> _Sent:
        content, where = message.content, f"the reply of node {message.metadata.src_node_id}"
        counts = len(content.array_records), len(content.metric_records)
        if counts != (1, 1):
            raise AdapterError(
                f"{where} has {counts[0]} ArrayRecords and {counts[1]} MetricRecords, expected one of each"
            )
        record = next(iter(content.array_records.values()))
        metrics = next(iter(content.metric_records.values()))
        pairs = self._naming.pairs(record, where)
        adapter = read_pairs(record, pairs, where)
        check_shapes(adapter, received, where)
        if not adapter.finite():
            raise AdapterError(f"{where} has factors with numbers that are not finite; look at its training")
        weight = metrics.get(self._weight_key)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise AdapterError(
                f"{where}: metric {self._weight_key!r} = {weight!r}, expected a number >= 0, such as a sample count"
            )
        return _Sent(message, pairs, _as(adapter, received), float(weight), MARKER in metrics)

    def _check_mod(self, sent: Sequence[_Sent]) -> None:
        without = [one.message.metadata.src_node_id for one in sent if not one.aligned]
        if without and needs_mod(self.method):
            raise ConfigError(
                f"{len(without)} of {len(sent)} replies (first: node {without[0]}) carry no {MARKER!r}: the clients "
                "do not rotate. Give them ClientApp(mods=[FedRotMod()]), or a method that needs no mod: 'auto' refits "
                "on the server, 'fedit' averages plainly"
            )


def _with_factors(one: _Sent, result: Adapter) -> Message:
    """The reply with the method's factors in place of its own."""
    name, record = next(iter(one.message.content.array_records.items()))
    reply = copy.copy(one.message)
    reply.content = RecordDict({**one.message.content, name: write_pairs(record, one.pairs, result)})
    return reply


def _as(adapter: Adapter, like: Adapter) -> Adapter:
    """In the order and the types of `like`."""
    kinds = {site: (f.a.dtype, f.b.dtype) for site, f in like.sites.items()}
    sites = adapter.sites
    return replace(
        adapter,
        sites={site: Factors(sites[site].a.to(a), sites[site].b.to(b)) for site, (a, b) in kinds.items()},
    )


def _errors(updates: Sequence[Update], result: Adapter | None) -> dict[str, float]:
    """Relative errors of averaging the factors as they came, and of what goes out instead."""
    adapters, weights = [update.adapter for update in updates], [update.weight for update in updates]
    means = float(adapter_aggregation_error(adapters, weights).relative)
    after = means if result is None else float(adapter_broadcast_error(adapters, weights, result).relative)
    sent_out = "" if result is None else f", {after:.3g} of the method's factors"
    _LOG.info("\t├──> relative aggregation error: %.3g of averaging the factors%s", means, sent_out)
    return {"fedrot-error-of-means": means, "fedrot-error": after}
