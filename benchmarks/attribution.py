"""Which part of a training step an operation belongs to: ranges around a model's modules, read back from a profile.

An operation of the forward pass belongs to the range it ran in, one of the backward pass to the range of the operation
whose gradient it forms (autograd numbers both alike). In an adapted layer dense products are those of the base model,
and everything else is of low rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn
from torch.profiler import record_function

import fedrot.client
from fedrot.stacked import StackedDense, StackedLoRA, StackedModel

PARTS = {
    "data": "batches, kept states",
    "frozen": "embeddings, frozen blocks",
    "base_forward": "base products, forward",
    "base_backward": "base products, backward",
    "low_rank": "low-rank products",
    "attention": "attention",
    "elementwise": "norms, activations, sums",
    "head": "head and loss",
    "optimiser": "clipping, optimiser",
    "other": "other operations",
    "between": "between operations",
}
"""The last is time in which no operation ran: Python, and on a GPU launches that it waited for."""

MARK, NODE = "part:", "autograd::engine::evaluate_function: "
PRODUCTS, SUMS = ("aten::mm", "aten::addmm"), ("aten::add", "aten::add_")


def ranged(part: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, its operations marked as that part's."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with record_function(MARK + part):
            return function(*args, **kwargs)

    return run


class Marked:
    """Another object, one method of which is marked."""

    def __init__(self, inner: Any, method: str, part: str) -> None:
        self._inner = inner
        setattr(self, method, ranged(part, getattr(inner, method)))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@contextmanager
def marked(model: StackedModel) -> Iterator[None]:
    """Within, the model's modules and the clipping of gradients say which part they are."""
    modules, clip = dict(kinds(model)), fedrot.client.clip_per_client
    for module, part in modules.items():
        module.forward = ranged(part, module.forward)
    fedrot.client.clip_per_client = ranged("optimiser", clip)
    try:
        yield
    finally:
        fedrot.client.clip_per_client = clip
        for module in modules:
            del module.forward


def kinds(model: StackedModel) -> Iterator[tuple[nn.Module, str]]:
    """Modules and what they are; the innermost of nested ones decides, but what is frozen stays so."""
    whole: Any = model.module
    yield whole, "elementwise"
    for block in model.prefix.below if model.prefix else ():
        yield block, "frozen"
    wrapped = {layer.base for layer in (*model.layers.values(), *model.dense.values())}
    for name, module in whole.named_modules():
        kind = type(module).__name__
        if module in wrapped or module is whole:
            continue
        if isinstance(module, StackedLoRA):
            yield module, "stacked"
        elif isinstance(module, StackedDense) or name in model.base.head:
            yield module, "head"
        elif isinstance(module, nn.Linear):
            yield module, "dense"
        elif kind.endswith(("Embeddings", "RotaryEmbedding")) or isinstance(module, nn.Embedding):
            yield module, "frozen"
        elif kind.endswith("Attention") and not any(
            type(child).__name__.endswith("Attention") for child in module.modules() if child is not module
        ):
            yield module, "attention"


def attribute(events: Iterable[Any], wall: float, gpu: bool) -> dict[str, float]:
    """Microseconds of every part, which add up to `wall`.

    Args:
        events: of `torch.profiler.profile().events()`.
        wall: microseconds that were profiled.
        gpu: count the time of kernels instead of that of operations on the CPU.

    Raises:
        ValueError: operations took longer than the whole.
    """
    here = [event for event in events if event.device_type.name == "CPU"]
    makers: dict[int, Any] = {}
    for event in sorted(here, key=lambda event: event.time_range.start):
        # The last that bears a number makes the node of that number; those before saw the number to come.
        if event.sequence_nr >= 0 and event.scope == 0 and not event.name.startswith((MARK, NODE)):
            makers[event.sequence_nr] = event
    found = dict.fromkeys(PARTS, 0.0)
    for event in here:
        own = event.self_cpu_time_total if event.name.startswith("aten::") else 0.0
        if cost := event.self_device_time_total if gpu else own:
            found[part_of(event, makers)] += cost
    found["between"] = wall - sum(found.values())
    if found["between"] < -0.01 * wall:
        raise ValueError(f"operations took {wall - found['between']:.0f} of {wall:.0f} microseconds")
    return found


def part_of(event: Any, makers: dict[int, Any]) -> str:
    """The part an operation belongs to."""
    kind, way = place(event, makers)
    if kind == "dense" or (kind == "stacked" and event.name in PRODUCTS):
        return f"base_{way}"
    if kind == "stacked":
        return "elementwise" if event.name in SUMS else "low_rank"
    return kind


def place(event: Any, makers: dict[int, Any]) -> tuple[str, str]:
    """Which mark decides about an operation, and whether it is of the forward or of the backward pass."""
    kind = None
    while event is not None:
        if event.name.startswith(NODE):
            if "StackedLinear" in event.name:
                return "stacked", "backward"
            maker = makers.get(event.sequence_nr)
            return place(maker, makers)[0] if maker is not None else "other", "backward"
        mark = event.name.removeprefix(MARK)
        if event.name.startswith("Optimizer."):
            kind = kind or "optimiser"
        elif mark != event.name and (kind is None or mark == "frozen"):
            kind = mark
        event = event.cpu_parent
    return kind or "other", "forward"
