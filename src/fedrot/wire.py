"""Adapters as bytes: the message a client and a server exchange, and the tensors of a checkpoint. No pickle."""

from __future__ import annotations

import json

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from fedrot.core.adapter import Adapter
from fedrot.errors import AdapterError
from fedrot.methods import Method


def encode(adapter: Adapter, *, a: bool = True, b: bool = True, head: bool = True) -> bytes:
    """Serialise an adapter as safetensors: the chosen factors of every site, the head if chosen, and any residual.

    Tensors travel in their own dtype (float32), contiguous, with `scale` in the header.
    """
    sent = travelling(adapter, a=a, b=b, head=head)
    chosen = {key: tensor.detach().contiguous().cpu() for key, tensor in sent.items()}
    return safetensors.torch.save(chosen, metadata={"scale": repr(adapter.scale)})


def decode(message: bytes, like: Adapter) -> Adapter:
    """The inverse of `encode`: an adapter with the names and the order of `like`.

    What did not travel is taken from `like`, which is the adapter the sender received.

    Raises:
        AdapterError: not an encoded adapter, or one that does not fit `like`.
    """
    try:
        tensors: dict[str, Tensor] = safetensors.torch.load(message)
        scale = float(_metadata(message)["scale"])
    except (SafetensorError, KeyError, ValueError) as error:
        raise AdapterError(f"message of {len(message)} bytes: not an encoded adapter ({error})") from error
    ordered = {key: tensors.pop(key, tensor) for key, tensor in like.tensors().items()} | tensors
    adapter = Adapter.from_tensors(ordered, scale)
    adapter.check_like(like, "the sender")
    return adapter


def travelling(adapter: Adapter, *, a: bool = True, b: bool = True, head: bool = True) -> dict[str, Tensor]:
    """The tensors of an adapter that a message holds: the chosen factors, the head if chosen, and any residual."""
    return {key: tensor for key, tensor in adapter.tensors().items() if _travels(key, a, b, head)}


def uploaded(method: Method, adapter: Adapter, round: int) -> dict[str, Tensor]:
    """The tensors of an adapter that clients of a method upload in a round, counted from 1."""
    sent = method.uploads(round)
    return travelling(adapter, a=sent.a, b=sent.b, head=method.shares_head)


def _travels(key: str, a: bool, b: bool, head: bool) -> bool:
    if key.startswith("head/"):
        return head
    return not key.startswith("sites/") or (a if key.endswith("/a") else b)


def _metadata(message: bytes) -> dict[str, str]:
    length = int.from_bytes(message[:8], "little")
    return json.loads(message[8 : 8 + length]).get("__metadata__", {})
