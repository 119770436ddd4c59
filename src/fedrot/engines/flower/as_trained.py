"""Adapters as they were trained, which nodes send beside their uploads where a recipe asks for diagnostics.

A server over Flower sees uploads, and those are aligned. The error without alignment, the rotation of each site and
`output.diagnostics` are properties of the adapters before that. Rotations alone would be a smaller record, but taking
them back rounds, and the rounding is not small beside a short drift; so the factors travel twice.

Node and server each read in their own copy of the recipe whether they do. A node sends nothing of this kind unasked.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from flwr.app import RecordDict
from torch import Tensor

from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter
from fedrot.core.alignment import SiteRotation
from fedrot.engines.flower.messages import array_record
from fedrot.engines.flower.records import from_arrays, message_bytes, shapes
from fedrot.errors import ConfigError
from fedrot.methods import Method
from fedrot.wire import uploaded

_NAME = "trained-"
_SIZES = "rotation"
"""The key of `||R - I||_F` at every site, `(S,)`, where the client rotated."""


def goes_along(config: RunConfig, method: Method) -> bool:
    """Whether clients also send what they trained: diagnostics are asked for, and the method changes what it uploads.

    Elsewhere the upload itself is what was trained.
    """
    return config.output.diagnostics and type(method).before_upload is not Method.before_upload


def check_open(config: RunConfig, where: str) -> None:
    """Refuse diagnostics of what has to stay secret; `where` names the node, in messages.

    Raises:
        ConfigError: the recipe has both.
    """
    privacy = config.privacy
    if config.output.diagnostics and (privacy.mechanism != "none" or privacy.secure_aggregation):
        hidden = (
            "secure_aggregation = true"
            if privacy.secure_aggregation
            else f"mechanism = {privacy.mechanism!r}"
        )
        raise ConfigError(
            f"{where}: output.diagnostics = true has clients send what they trained, which privacy.{hidden} is there "
            "to keep from others; leave one of them out of the recipe"
        )


def trained_name(client: int) -> str:
    """Of the record with what a client trained."""
    return f"{_NAME}{client}"


def as_trained(
    method: Method, trained: Adapter, rotation: SiteRotation | None, round: int
) -> dict[str, Tensor]:
    """What one client sends of what it trained: the factors that it uploads, before the method changed them.

    Args:
        method: says which factors travel; none other leaves the node.
        trained: the client's adapter.
        rotation: the client's, if it rotated.
        round: counted from 1.
    """
    factors = _factors(method, trained, round)
    return factors if rotation is None else {**factors, _SIZES: rotation.size.float()}


def unpack_trained(
    content: RecordDict, client: int, method: Method, received: Adapter, round: int, turned: bool, where: str
) -> tuple[Adapter, Tensor | None]:
    """What a client trained, and the size of its rotation at every site, `(S,)`, if it rotated.

    Args:
        content: the node's reply.
        client: its number.
        method: as in `as_trained`.
        received: what the client received; it stands for factors that did not travel, and for the head.
        round: counted from 1.
        turned: the client says that it rotated.
        where: node and client, for messages.

    Raises:
        AdapterError: it is not there, or not of the form of an upload.
    """
    expected = shapes(_factors(method, received, round))
    if turned:
        expected[_SIZES] = (len(received.sites),)
    record = array_record(content, trained_name(client), where)
    arrays = from_arrays(record, expected, f"{where}, as trained")
    sizes = arrays.pop(_SIZES, None)
    return Adapter.from_tensors({**received.tensors(), **arrays}, received.scale), sizes


def told_apart(traffic: Mapping[str, int], replies: Iterable[RecordDict | str]) -> dict[str, int]:
    """The bytes of a round, those of these records apart from what the method itself needs (`bytes_diagnostics`)."""
    extra = sum(
        message_bytes(record)
        for reply in replies
        if not isinstance(reply, str)
        for name, record in reply.array_records.items()
        if name.startswith(_NAME)
    )
    return {**traffic, "bytes_up": traffic["bytes_up"] - extra, "bytes_diagnostics": extra}


def _factors(method: Method, adapter: Adapter, round: int) -> dict[str, Tensor]:
    return {key: t for key, t in uploaded(method, adapter, round).items() if key.startswith("sites/")}
