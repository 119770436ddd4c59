"""What server and nodes say to each other, and how it is written into Flower's records."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar, cast

from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict

from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter
from fedrot.engines.flower.records import broadcast_shapes, from_arrays, to_arrays
from fedrot.errors import AdapterError

HELLO = "query.hello"
TRAIN = "train"
EXAMINE = "evaluate"
WRITE = "query.write"
REFUSED = "refused"
"""The record that says, by client, why it does not do as it was asked."""
FACTS = "fedrot"
"""The record that holds everything but arrays and measurements."""


@dataclass(frozen=True)
class Hello:
    """The server introduces itself and its recipe."""

    version: str
    """Of fedrot."""
    recipe: str
    """TOML."""
    labels: list[str]
    """Names of the classes, in the order of their numbers."""


@dataclass(frozen=True)
class Welcome:
    """A node says what it has; it has loaded everything and is ready to train."""

    name: str
    version: str
    base: str
    """Digest of its base model, see `fedrot.model.fingerprint`."""
    clients: list[int]
    examples: list[int]
    """Of each of them."""
    ranks: list[int]
    """Of each of them; 0 for whatever the recipe says."""
    device: str


@dataclass(frozen=True)
class Order:
    """Train these clients, or examine or write down their own models. It names all that a node must have, so that one
    which just started can begin."""

    version: str
    base: str
    recipe: str
    labels: list[str]
    run: str
    """The name under which clients keep parts of the model to themselves; empty where the method leaves them none."""
    round: int
    """To train, counted from 1; of all else the last finished one."""
    clients: list[int]
    kept: list[int]
    """Of each client the round whose parts it goes on from, 0 for none."""
    scale: float


@dataclass(frozen=True)
class Told:
    """What a client measured, beside the adapter that it uploads; less than a kilobyte."""

    loss: float
    steps: int
    examples: int
    drift: float
    rotation: Mapping[str, float] = field(default_factory=dict[str, float])
    """`rotation`, `rotation_angle`, `degenerate` and `flips`, if the client rotated."""


Facts = TypeVar("Facts", Hello, Welcome, Order)


def written(facts: Hello | Welcome | Order) -> ConfigRecord:
    """Facts as a record."""
    return ConfigRecord({item.name: getattr(facts, item.name) for item in fields(facts)})


def read(kind: type[Facts], content: RecordDict, where: str) -> Facts:
    """The facts of a message.

    Raises:
        AdapterError: the record or a key is missing, or of another type.
    """
    record = content.config_records.get(FACTS)
    if record is None:
        raise AdapterError(
            f"{where}: no record {FACTS!r}; is the other side fedrot, and of the same version?"
        )
    for name, value, expected in unlike(kind, record):
        raise AdapterError(
            f"{where}: {name} = {value!r}: expected {expected}; is the other side fedrot of the same version?"
        )
    return kind(**{item.name: cast(Any, record[item.name]) for item in fields(kind)})


def unlike(kind: type[Any], record: ConfigRecord) -> Iterator[tuple[str, Any, str]]:
    """Key, value and type expected, of all that a record lacks or holds otherwise than the fields of `kind` say.

    Fields are strings, whole numbers, floats, bytes, truth values, or lists of one of these.
    """
    kinds = {"str": str, "int": int, "float": float, "bytes": bytes, "bool": bool}
    for item in fields(kind):
        expected, value = str(item.type), record.get(item.name)
        several = isinstance(value, list)
        kind_of_one = kinds[expected.removeprefix("list[").removesuffix("]")]
        values: list[Any] = cast(list[Any], value) if several else [value]
        if several != expected.startswith("list[") or any(type(v) is not kind_of_one for v in values):
            yield item.name, value, expected


def pack_broadcast(received: Adapter, reference: Adapter | None) -> dict[str, ArrayRecord]:
    """The arrays of a training message; those of one cohort are packed once, for all nodes.

    Args:
        received: the broadcast, at the rank of the clients, with its residual.
        reference: what uploads are aligned to, where that is another broadcast.
    """
    records = {"received": to_arrays(received.tensors())}
    if reference is not None:
        records["reference"] = to_arrays(reference.tensors())
    return records


def unpack_adapter(content: RecordDict, name: str, like: Adapter, scale: float, where: str) -> Adapter | None:
    """The adapter of a training message, or None if there is none under that name.

    Raises:
        AdapterError: it does not fit `like`.
    """
    record = content.array_records.get(name)
    if record is None:
        return None
    tensors = from_arrays(record, broadcast_shapes(record, like), f"{where}: {name}")
    return Adapter.from_tensors(tensors, scale)


def upload_name(client: int) -> str:
    """Of the record with a client's arrays."""
    return f"upload-{client}"


def metrics_name(client: int) -> str:
    """Of the record with what a client measured."""
    return f"metrics-{client}"


def pack_told(told: Told) -> MetricRecord:
    """A client's measurements as a record."""
    values = {"loss": told.loss, "steps": told.steps, "examples": told.examples, "drift": told.drift}
    return MetricRecord({**values, **told.rotation})


ROTATION = ("rotation", "rotation_angle", "degenerate", "flips")
COUNTS = ("steps", "examples", "degenerate", "flips")


def unpack_told(record: MetricRecord | None, where: str) -> Told:
    """The inverse of `pack_told`. Loss, drift and rotation may be NaN, as they are where training diverged.

    Raises:
        AdapterError: a measurement is missing, or is no number; or what is counted is not a whole number from 0 on.
    """
    if record is None:
        raise AdapterError(f"{where}: no measurements")
    named = [item.name for item in fields(Told) if item.name != "rotation"]
    turned = [name for name in ROTATION if name in record]
    for name in (*named, *(ROTATION if turned else ())):
        value = record.get(name)
        if not isinstance(value, int | float):
            raise AdapterError(f"{where}: {name} = {value!r}: expected a number")
        if name in COUNTS and not (float(value).is_integer() and value >= 0):
            raise AdapterError(f"{where}: {name} = {value!r}: expected a whole number from 0 on")
    numbers = cast(Mapping[str, float], record)
    return Told(
        loss=float(numbers["loss"]),
        steps=int(numbers["steps"]),
        examples=int(numbers["examples"]),
        drift=float(numbers["drift"]),
        rotation={name: float(numbers[name]) for name in turned},
    )


def failure(reply: Message) -> str:
    """Why a reply is an error, in words. Flower writes what an app raised as `<class 'x.Y'>:<'message'>`."""
    reason = reply.error.reason or f"error {reply.error.code}"
    if reason.startswith("Reply message objects are unavailable"):
        return "its answer was announced, but not all of it arrived in time"
    found = re.fullmatch(r"<class '([\w.]+)'>:<'(.*)'>", reason, re.DOTALL)
    if found is None:
        return reason
    kind, told = found.groups()
    return told if kind.startswith("fedrot.errors.") else f"{kind.removeprefix('builtins.')}: {told}"


def recipe_digest(config: RunConfig) -> str:
    """Of what a node must build anew when it changes: all of the recipe but output, engine and number of rounds."""
    federation = config.federation.model_copy(update={"rounds": 1})
    plain = config.model_copy(update={"federation": federation})
    return hashlib.sha256(plain.model_dump_json(exclude={"output", "engine"}).encode()).hexdigest()


def array_record(content: RecordDict, name: str, where: str) -> ArrayRecord:
    """A record of arrays.

    Raises:
        AdapterError: it is not there.
    """
    record = content.array_records.get(name)
    if record is None:
        raise AdapterError(f"{where}: no arrays {name!r}")
    return record


def pack_refusals(refusals: Mapping[int, str]) -> ConfigRecord:
    """Why clients of a node do not do as they were asked."""
    return ConfigRecord({str(client): why for client, why in refusals.items()})


def unpack_refusals(content: RecordDict, clients: Sequence[int]) -> dict[int, str]:
    """Which of `clients` do not do as they were asked, and why."""
    record = content.config_records.get(REFUSED)
    found = {} if record is None else {client: record.get(str(client)) for client in clients}
    return {client: str(why)[:300] for client, why in found.items() if why is not None}
