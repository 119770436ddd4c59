"""Adapters and messages as somebody else's Flower app would make them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict

from fedrot.core import Adapter, Factors

SHAPES = {"layers.0.q_proj": (12, 10), "layers.0.v_proj": (6, 10), "layers.1.q_proj": (12, 10)}
RANK = 3
CONTEXT = Context(1, 1, {}, RecordDict(), {})

NAMINGS: dict[str, Callable[[str, str], str]] = {
    "peft": lambda site, f: f"base_model.model.{site}.lora_{f.upper()}.weight",
    "peft with the adapter's name": lambda site, f: (
        f"base_model.model.{site}.lora_{f.upper()}.default.weight"
    ),
    "embedding": lambda site, f: f"base_model.model.{site}.lora_embedding_{f.upper()}",
    "torchtune": lambda site, f: f"{site}.lora_{f}.weight",
    "fedrot": lambda site, f: f"sites/{site}/{f}",
}


def random_adapter(seed: int, scale: float = 1.0, rank: int = RANK) -> Adapter:
    draws = torch.Generator().manual_seed(seed)
    return Adapter(
        {
            site: Factors(
                scale * torch.randn(rank, d_in, generator=draws),
                scale * torch.randn(d_out, rank, generator=draws),
            )
            for site, (d_out, d_in) in SHAPES.items()
        }
    )


def moved(adapter: Adapter, seed: int, size: float = 0.5) -> Adapter:
    other = random_adapter(seed, size).sites
    return Adapter({s: Factors(f.a + other[s].a, f.b + other[s].b) for s, f in adapter.sites.items()})


def named(adapter: Adapter, naming: str = "peft", dtype: Any = np.float32) -> dict[str, np.ndarray]:
    """Factors in PEFT's order, then an array of a head."""
    name = NAMINGS[naming]
    arrays = {name(s, f): getattr(p, f).numpy().astype(dtype) for s, p in adapter.sites.items() for f in "ab"}
    return arrays | {"base_model.model.score.weight": np.arange(6, dtype=np.float32).reshape(2, 3)}


def record(arrays: dict[str, np.ndarray]) -> ArrayRecord:
    return ArrayRecord({key: Array(value) for key, value in arrays.items()})


def train_message(
    arrays: ArrayRecord, config: dict[str, Any] | None = None, kind: str = "train", node: int = 1
) -> Message:
    values = {"server-round": 2} if config is None else config
    return Message(RecordDict({"arrays": arrays, "config": ConfigRecord(values)}), node, kind)


def answering(
    arrays: ArrayRecord, metrics: dict[str, float] | None = None
) -> Callable[[Message, Context], Message]:
    """A client function that ignores what it received."""
    values = MetricRecord({"num-examples": 4, "train_loss": 0.5} if metrics is None else metrics)

    def answer(message: Message, context: Context) -> Message:
        return Message(RecordDict({"arrays": arrays, "metrics": values}), reply_to=message)

    return answer


def reply_arrays(message: Message) -> dict[str, np.ndarray]:
    (found,) = message.content.array_records.values()
    return {key: array.numpy() for key, array in found.items()}


def reply_metrics(message: Message) -> dict[str, Any]:
    (found,) = message.content.metric_records.values()
    return dict(found)


def factors(arrays: dict[str, np.ndarray], naming: str = "peft") -> Adapter:
    name = NAMINGS[naming]
    return Adapter(
        {s: Factors(*(torch.from_numpy(arrays[name(s, f)]).clone() for f in "ab")) for s in SHAPES}
    )
