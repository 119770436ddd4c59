"""Alignment inside a Flower client of any app: a mod that rotates the reply's LoRA factors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, final

from flwr.app import ArrayRecord, Context, Message, MessageType, MetricRecord, RecordDict

from fedrot.core.adapter import Adapter
from fedrot.core.alignment import SiteRotation
from fedrot.core.polar import Group
from fedrot.core.softening import Path
from fedrot.engines.flower.pairs import Naming, Pair, read_pairs, write_pairs
from fedrot.errors import AdapterError, ConfigError
from fedrot.methods.base import Upload
from fedrot.methods.fedrot import FedRot
from fedrot.methods.options import Schedule

MARKER = "fedrot-aligned"
"""The metric that tells the server of a mod: 1 where the factors were rotated, 0 in the first round."""

FIGURES = ("rotation", "rotation_angle", "degenerate", "flips", "kept")
_UNNUMBERED = 2
"""Any round but the first, for apps that number none."""


@final
@dataclass(frozen=True, kw_only=True)
class FedRotMod:
    """Rotates the LoRA factors a client sends onto those it received; their products stay the same.

    `ClientApp(mods=[FedRotMod()])`, with any strategy on the server. It acts on train messages, after the client's
    own function, and is `fedrot`'s client side (see `FedRot`): the first round is not rotated. Everything in the
    reply but the factors stays the same, keys and their order, types and lengths included. Mods that clip, add noise,
    mask or compress go before it in the list, so that they see aligned factors.

    Factors are computed in float32 (float64 if they are) and return in their own type: float16 then loses up to 1e-3
    of a number, which is said once.

    Attributes:
        strength: 0 (no rotation) to 1 (the full one), or a schedule by round.
        anchor: `"alternate"` (a in odd rounds, b in even ones), `"a"`, `"b"` or `"joint"`.
        path: `"chordal"` or `"geodesic"`.
        group: `"rotation"`, or `"orthogonal"` to allow reflections.
        guard: `"client"` keeps a rotation only where it lowers the joint distance to the factors received.
        round_key: where the message's `ConfigRecord` has the number of the round, counted from 1. None for apps that
            send none: the first round is then the one with every `a` or every `b` zero, and `anchor` and `strength`
            must not depend on the round.
        pattern: for names that are neither PEFT's nor torchtune's, see `Naming`.
        names: for records made of a bare list, see `Naming`.
        arrayrecord_key: which `ArrayRecord` holds the factors, if there are several.
        metrics: `"full"` adds `fedrot-rotation`, `-rotation-angle`, `-degenerate`, `-flips` and `-kept` to the reply's
            `MetricRecord`, and `fedrot-aligned`, which tells `FedRotStrategy` that the mod is there; `"marker"` adds
            only that, since the others depend on the data; `"off"` adds nothing.

    Raises:
        ConfigError: an option out of range.
    """

    strength: Schedule = 0.5
    anchor: Literal["alternate", "a", "b", "joint"] = "alternate"
    path: Path = "chordal"
    group: Group = "rotation"
    guard: Literal[False, "client"] = False
    round_key: str | None = "server-round"
    pattern: str | None = None
    names: Sequence[str] | None = None
    arrayrecord_key: str | None = None
    metrics: Literal["full", "marker", "off"] = "full"
    _method: FedRot = field(init=False, repr=False, compare=False)
    _naming: Naming = field(init=False, repr=False, compare=False)
    _said: set[str] = field(default_factory=set[str], init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.guard not in (False, "client"):
            raise ConfigError(
                f"FedRotMod guard = {self.guard!r}: expected False or 'client'; the server's is "
                "FedRotStrategy(inner, guard='server')"
            )
        if self.metrics not in ("full", "marker", "off"):
            raise ConfigError(f"FedRotMod metrics = {self.metrics!r}: expected 'full', 'marker' or 'off'")
        try:
            method = FedRot(
                strength=self.strength,
                anchor=self.anchor,
                path=self.path,
                group=self.group,
                guard=self.guard,
            )
        except ConfigError as error:
            raise ConfigError(str(error).replace("method.", "FedRotMod ")) from error
        numbered = self.anchor == "alternate" or not isinstance(self.strength, int | float)
        if self.round_key is None and numbered:
            raise ConfigError(
                f"FedRotMod round_key = None: anchor = {self.anchor!r} with strength = {self.strength!r} needs the "
                "number of the round; set anchor='joint', 'a' or 'b' and a plain strength, or name the key"
            )
        object.__setattr__(self, "_method", method)
        object.__setattr__(self, "_naming", Naming(pattern=self.pattern, names=self.names))

    def __call__(
        self, message: Message, context: Context, call_next: Callable[[Message, Context], Message]
    ) -> Message:
        """Flower's interface of a mod.

        Raises:
            AdapterError: records that do not hold pairs of factors, or a reply that does not fit what was received.
            ConfigError: no number of the round where one is needed.
        """
        if message.metadata.message_type.partition(".")[0] != MessageType.TRAIN:
            return call_next(message, context)
        where = "the message received"
        key = self._record_key(message.content, where)
        received: ArrayRecord = message.content.array_records[key]
        pairs = self._naming.pairs(received, where)
        reference = read_pairs(received, pairs, where)  # a copy, before the app can change anything
        number = self._round(message.content, reference)
        reply = call_next(message, context)
        if reply.has_error():
            return reply
        reply.content = self._aligned(reply.content, reference, number)
        return reply

    def _record_key(self, content: RecordDict, where: str) -> str:
        keys = list(content.array_records)
        if self.arrayrecord_key in keys:
            return str(self.arrayrecord_key)
        if self.arrayrecord_key is None and len(keys) == 1:
            return keys[0]
        expected = "exactly one" if self.arrayrecord_key is None else repr(self.arrayrecord_key)
        raise AdapterError(
            f"{where} has the ArrayRecords {keys}, expected {expected}; FedRotMod(arrayrecord_key=...) says which one "
            "holds the LoRA factors, and @app.train(mods=[...]) limits the mod to one function"
        )

    def _round(self, content: RecordDict, reference: Adapter) -> int:
        if self.round_key is None:
            factors = reference.sites.values()
            start = all(not f.b.any() for f in factors) or all(not f.a.any() for f in factors)
            return 1 if start else _UNNUMBERED
        for record in content.config_records.values():
            if self.round_key in record:
                value = record[self.round_key]
                if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                    raise ConfigError(
                        f"ConfigRecord key {self.round_key!r} = {value!r}: expected a round, counted from 1"
                    )
                return value
        keys = [key for record in content.config_records.values() for key in record]
        raise ConfigError(
            f"the message received has no {self.round_key!r} in its ConfigRecord (keys: {keys}); name the server's key "
            "by FedRotMod(round_key=...), or do without by FedRotMod(round_key=None, anchor='joint')"
        )

    def _aligned(self, content: RecordDict, reference: Adapter, number: int) -> RecordDict:
        """The reply's records with the factors rotated; the records given are not changed."""
        where = "the client's reply"
        key = self._record_key(content, where)
        sent: ArrayRecord = content.array_records[key]
        pairs = self._naming.pairs(sent, where)
        trained = read_pairs(sent, pairs, where)
        check_shapes(trained, reference, where)
        upload = self._method.before_upload(trained, reference, number)
        turned = _turned(upload)
        self._say_half(sent, pairs)
        records = dict(content)
        records[key] = write_pairs(sent, pairs, turned)
        if self.metrics != "off":
            name, values = self._with_figures(content, upload.rotation)
            records[name] = values
        return RecordDict(records)

    def _with_figures(self, content: RecordDict, rotation: SiteRotation | None) -> tuple[str, MetricRecord]:
        """The reply's `MetricRecord` with ours: the same keys in every round, since strategies insist on that."""
        if len(content.metric_records) != 1:
            raise AdapterError(
                f"the client's reply has the MetricRecords {list(content.metric_records)}, expected exactly one, as "
                "Flower's strategies do; or set FedRotMod(metrics='off')"
            )
        name, theirs = next(iter(content.metric_records.items()))
        values = MetricRecord(dict(theirs))
        values[MARKER] = 0.0 if rotation is None else 1.0
        if self.metrics == "full":
            figures = dict.fromkeys(FIGURES, 0.0) if rotation is None else rotation.summary()
            for figure in FIGURES:
                values[f"fedrot-{figure.replace('_', '-')}"] = figures[figure]
        return name, values

    def _say_half(self, sent: ArrayRecord, pairs: Sequence[Pair]) -> None:
        half = next((key for pair in pairs for key in (pair.a, pair.b) if sent[key].dtype == "float16"), None)
        if half is not None and "half" not in self._said:
            self._said.add("half")
            logging.getLogger("flwr").warning(
                "FedRotMod: %r travels as float16, which loses up to 1e-3 of a rotated number, and Flower's strategies "
                "average it in float16; send float32",
                half,
            )


def check_shapes(sent: Adapter, expected: Adapter, where: str) -> None:
    """Refuse factors of other sites or shapes than those that were sent out.

    Raises:
        AdapterError: naming the first site that differs.
    """
    if unlike := sorted(sent.sites.keys() ^ expected.sites.keys()):
        had = "was sent out and is missing" if unlike[0] in expected.sites else "was not sent out"
        raise AdapterError(
            f"{where} has LoRA factors at {len(sent.sites)} sites, expected {len(expected.sites)}: {unlike[0]!r} "
            f"{had}; reply with the same keys"
        )
    for site, f in sent.sites.items():
        ref = expected.sites[site]
        shapes = [tuple(f.a.shape), tuple(f.b.shape)], [tuple(ref.a.shape), tuple(ref.b.shape)]
        if shapes[0] != shapes[1]:
            raise AdapterError(
                f"{where}: {site!r} has factors of shapes {shapes[0]}, expected {shapes[1]} as sent out; server and "
                "clients need the same rank and base model"
            )


def _turned(upload: Upload) -> Adapter:
    """The sites that were rotated: the others keep what the client sent, to the bit."""
    if upload.rotation is None:
        return Adapter({})
    kept = dict(zip(upload.rotation.sites, upload.rotation.kept.tolist(), strict=True))
    return Adapter({site: f for site, f in upload.adapter.sites.items() if kept[site]})
