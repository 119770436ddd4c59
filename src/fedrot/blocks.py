"""What happens inside a base model's forward pass: frozen blocks left out, blocks recomputed, tokens picked out."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fedrot.core.token_loss import TokenScores, frozen_cross_entropy
from fedrot.errors import ModelError
from fedrot.model import block_of
from fedrot.model.attention import padding_is
from fedrot.tasks.batch import Batch


def model_inputs(module: nn.Module, batch: Batch) -> dict[str, Any]:
    """The model's keyword arguments for a batch: pixels in the precision of its weights, and no cache for generating.

    Decoders keep keys and values unless told otherwise, and a block that is recomputed would append to them again.
    """
    dtype = next(module.parameters()).dtype
    inputs = {name: t.to(dtype) if t.is_floating_point() else t for name, t in batch.inputs.items()}
    return {**inputs, "use_cache": False} if _generates(type(getattr(module, "backbone", module))) else inputs


def forward(module: nn.Module, batch: Batch) -> Any:
    """The model's output for a batch, whose padding it need not look for."""
    with padding_is(batch.padding):
        return module(**model_inputs(module, batch))


@cache
def _generates(model: type[nn.Module]) -> bool:
    return "use_cache" in inspect.signature(model.forward).parameters


class FrozenPrefix:
    """The blocks below the first adapted one, which give the same hidden states for an example in every round."""

    def __init__(self, module: nn.Module, stack: str, first: int) -> None:
        blocks = module.get_submodule(stack)
        assert isinstance(blocks, nn.ModuleList)
        self.module = module
        self.below: Sequence[nn.Module] = list(blocks)[:first]
        self.first = blocks[first]
        self.depth = first

    @torch.no_grad()
    def compute(self, batch: Batch) -> Tensor:
        """Hidden states `(n, length, width)` that enter the first adapted block."""
        seen: list[Tensor] = []

        def stop(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(args[0] if args else kwargs["hidden_states"])
            raise _Stop

        handle = self.first.register_forward_pre_hook(stop, with_kwargs=True)
        try:
            with suppress(_Stop):  # the rest of the forward pass is not needed
                forward(self.module, batch)
        finally:
            handle.remove()
        return seen[0]

    @contextmanager
    def replaced(self, hidden: Tensor) -> Iterator[None]:
        """Within, the blocks below pass their input on, and the first adapted block receives `hidden`."""

        def enter(
            _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
        ) -> tuple[tuple[Any, ...], dict[str, Any]]:
            return ((hidden, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": hidden})

        def skip(hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
            return hidden_states

        handle = self.first.register_forward_pre_hook(enter, with_kwargs=True)
        try:
            with _forwards(self.below, lambda _: skip):
                yield
        finally:
            handle.remove()


class TokenHead:
    """The frozen output layer of a language model, asked only for the tokens that are to be predicted.

    The forward pass is stopped before the output layer, and loss and gradient are formed from it chunk by chunk. A
    model that does more with its scores afterwards (caps or scales them) runs to its end, on the picked tokens alone.
    """

    def __init__(self, module: nn.Module, name: str) -> None:
        self.module = module
        layer = module.get_submodule(name)
        if not isinstance(layer, nn.Linear):
            raise ModelError(
                f"the model's output layer {name!r} is a {type(layer).__name__}; expected nn.Linear"
            )
        self.layer = layer
        self.plain = _gives_scores(module, layer)

    def scores(self, batch: Batch) -> TokenScores:
        """Of every token that `batch` asks for; differentiable in what lies below the output layer."""
        assert batch.asked is not None
        inputs, asked, picked = batch.inputs, batch.asked, list[Tensor]()
        said = inputs["decoder_input_ids"] if "decoder_input_ids" in inputs else inputs["input_ids"]
        target = said.flatten()[asked.place]

        def take(_: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # A token is predicted from the one before it.
            picked.append(args[0].flatten(0, 1)[asked.place - 1])
            if self.plain:
                raise _Stop
            return (picked[0], *args[1:])

        handle, logits = self.layer.register_forward_pre_hook(take), None
        try:
            with suppress(_Stop):
                logits = forward(self.module, batch).logits
        finally:
            handle.remove()
        if logits is None:
            return frozen_cross_entropy(picked[0], self.layer.weight, self.layer.bias, target)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = nn.functional.cross_entropy(wide, target, reduction="none")
        return TokenScores(loss, wide.argmax(1) == target)


@torch.no_grad()
def _gives_scores(module: nn.Module, layer: nn.Linear) -> bool:
    """Whether a model's scores are what its output layer gives: tried on a few tokens.

    What is done to them afterwards, and which of its settings say so, differs from model to model.
    """
    seen: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _, __, output: seen.append(output.clone()))
    config: Any = module.config
    tokens = torch.arange(1, 5, device=next(module.parameters()).device).remainder(layer.weight.shape[0])[
        None
    ]
    inputs = {"input_ids": tokens} | ({"decoder_input_ids": tokens} if config.is_encoder_decoder else {})
    if _generates(type(module)):
        inputs |= {"use_cache": False}
    try:
        logits = module(**inputs).logits
    finally:
        handle.remove()
    return torch.equal(seen[-1].to(logits.dtype), logits)


class Recomputed:
    """Blocks whose inner states are not kept for the backward pass but computed again (Chen et al., 2016)."""

    def __init__(self, module: nn.Module, sites: Sequence[str]) -> None:
        stacks = {block[0] for site in sites if (block := block_of(site))}
        lists = [stack for name in stacks if isinstance(stack := module.get_submodule(name), nn.ModuleList)]
        if not lists:
            raise ModelError(
                "train.checkpointing = true: the adapted layers lie in no stack of blocks; set train.checkpointing = "
                "false"
            )
        self.blocks = [block for stack in lists for block in stack]

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Within, and until gradients are taken within, the blocks are recomputed."""
        with _forwards(self.blocks, _recomputed):
            yield


@contextmanager
def _forwards(blocks: Sequence[nn.Module], wrap: Callable[[Any], Any]) -> Iterator[None]:
    """Within, every block's forward is replaced by what `wrap` makes of it."""
    before = [vars(block).get("forward") for block in blocks]
    for block in blocks:
        block.forward = wrap(block.forward)
    try:
        yield
    finally:
        for block, own in zip(blocks, before, strict=True):
            if own is None:
                del block.forward
            else:
                block.forward = own


def _recomputed(forward: Any) -> Any:
    def run(*args: Any, **kwargs: Any) -> Any:
        # Nothing in a block draws random numbers: our dropout is a function of the step's seeds.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    return run


class _Stop(Exception):
    """Ends a forward pass once what is needed of it has run."""


def first_block(module: nn.Module, sites: Sequence[str]) -> tuple[str, int] | None:
    """The stack of blocks and the number of the first adapted one, if all adapted blocks lie in one stack."""
    blocks = [block for site in sites if (block := block_of(site))]
    stacks = {stack for stack, _ in blocks}
    if len(stacks) != 1:
        return None
    stack = stacks.pop()
    if not isinstance(module.get_submodule(stack), nn.ModuleList):
        return None
    names = list(dict(module.named_modules()))
    if any(block_of(site) is None and names.index(site) < names.index(stack) for site in sites):
        return None  # an adapted layer below the blocks: nothing is frozen
    return stack, min(number for _, number in blocks)
