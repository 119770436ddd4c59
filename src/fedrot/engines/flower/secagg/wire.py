"""The protocol's messages in Flower's records. What is inside is checked by `fedrot.secagg.decode`."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal, TypeAlias, cast

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from fedrot.engines.flower.messages import unlike
from fedrot.engines.flower.secagg.layout import Layout
from fedrot.errors import SecureAggregationError
from fedrot.secagg import FixedPoint, Session

SECURE = "train.secure"
"""Type of the messages after the first stage, which goes along with training."""
RULES = "secure-rules"
STEP = "secure-step"
BYTES = "bytes"

Step: TypeAlias = Literal["share", "mask", "consent", "reveal"]


@dataclass(frozen=True)
class Rules:
    """What a server proposes for a round; a node makes a `Session` of it. The number of the round travels apart."""

    run: str
    clients: list[int]
    threshold: int
    clip: float
    max_weight: int
    bits: int
    nonce: bytes
    signed: bool
    layout: str

    @classmethod
    def of(cls, session: Session) -> Rules:
        """Those of a session."""
        numbers = session.numbers
        return cls(
            run=session.run,
            clients=list(session.clients),
            threshold=session.threshold,
            clip=numbers.clip,
            max_weight=numbers.max_weight,
            bits=numbers.bits,
            nonce=session.nonce,
            signed=session.signed,
            layout=session.layout,
        )

    def session(self, round: int) -> Session:
        """The session, with everything checked that it checks.

        Raises:
            SecureAggregationError: rules out of range.
        """
        bits = cast(Literal[32, 64], self.bits)
        numbers = FixedPoint(len(self.clients), self.clip, self.max_weight, bits)
        length = Layout.read(self.layout).length
        return Session(
            *(self.run, round, tuple(self.clients), self.threshold, length, numbers, self.nonce),
            *(self.signed, self.layout),
        )


def pack_rules(rules: Rules) -> ConfigRecord:
    """Rules as a record."""
    return ConfigRecord({item.name: getattr(rules, item.name) for item in fields(rules)})


def unpack_rules(content: RecordDict, where: str) -> Rules | None:
    """The rules in a training message; None if uploads are to travel in the clear.

    Raises:
        SecureAggregationError: a key is missing or of another type.
    """
    record = content.config_records.get(RULES)
    if record is None:
        return None
    for name, value, expected in unlike(Rules, record):
        raise SecureAggregationError(f"{where}: {RULES}.{name} = {value!r}: expected {expected}")
    return Rules(**{item.name: record[item.name] for item in fields(Rules)})  # type: ignore[arg-type]


def name_of(client: int) -> str:
    """Of the record with a message from or to a client."""
    return f"secure-{client}"


def pack_bytes(data: bytes) -> ArrayRecord:
    """Bytes as an array, which Flower sends in chunks where it is long."""
    return ArrayRecord({BYTES: Array("uint8", (len(data),), BYTES, data)})


def unpack_bytes(content: RecordDict, name: str, where: str) -> bytes:
    """The bytes under a name.

    Raises:
        SecureAggregationError: they are not there, or are something else.
    """
    record = content.array_records.get(name)
    array = None if record is None else record.get(BYTES)
    if array is None or array.stype != BYTES:
        raise SecureAggregationError(f"{where}: no message of secure aggregation under {name!r}")
    return array.data
