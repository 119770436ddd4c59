"""The layers of a base model with their sizes: no weights, no transformers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fedrot.config import LoraSettings
from fedrot.errors import ModelError
from fedrot.model.sites import block_of, chosen

Activation = Literal["gelu", "gelu_new", "relu", "gated", "gated-gelu_new"]
"""What lies between the layers of a feed-forward part. `gelu` stands for any single function of torch, `gated` for
such a function times a second layer (Llama), `gelu_new` for the tanh approximation as GPT-2 has it, step by step."""


@dataclass(frozen=True)
class Layer:
    """A dense layer: its full name, `d_in`, `d_out`, whether it has a bias, and which share of an example's tokens it
    sees."""

    name: str
    d_in: int
    d_out: int
    bias: bool = True
    share: float = 1.0

    @property
    def parameters(self) -> int:
        """`d_in d_out`, and `d_out` for a bias."""
        return self.d_out * (self.d_in + self.bias)


@dataclass(frozen=True)
class Stack:
    """Blocks one after the other.

    Attributes:
        name: of the list of blocks, as `block_of` has it.
        blocks: how many.
        share: of an example's tokens that go through it.
        reads: share of the example's tokens of the stack before it that its blocks attend to as well; 0 for none.
    """

    name: str
    blocks: int
    share: float = 1.0
    reads: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A base model with its head, as the recipe builds it.

    Attributes:
        source: where the settings come from.
        width, inner: hidden size, size within the feed-forward part.
        heads, head_dim: of attention.
        vocabulary: tokens; 0 of a model of images.
        stacks: one, or an encoder's and a decoder's.
        activation: within the feed-forward part.
        wide_norms: whether norms compute in float32 (root mean square norms do).
        biased_attention: whether positions are a bias on attention's weights, which are then kept in any case (T5).
        layers: all dense layers but those of the head and the output layer, in module order.
        head: layers of the classification head; empty for a language model.
        other: parameters that are in no dense layer: embeddings, norms, an output layer that is not tied.
        tokens: of every example, where the model fixes it (images), else None.
        stem: operations a token before the first block.
    """

    source: str
    width: int
    inner: int
    heads: int
    head_dim: int
    vocabulary: int
    stacks: tuple[Stack, ...]
    activation: Activation
    wide_norms: bool
    layers: tuple[Layer, ...]
    head: tuple[Layer, ...]
    other: int
    biased_attention: bool = False
    tokens: int | None = None
    stem: float = 0.0

    def length(self, limit: int) -> int:
        """Tokens of an example, `limit` being `task.max_length`."""
        return limit if self.tokens is None else self.tokens

    @property
    def asked(self) -> float:
        """Share of an example's tokens that may be asked of a language model: those of the last stack."""
        return self.stacks[-1].share

    def of_block(self, layers: tuple[Layer, ...], stack: Stack, number: int) -> list[Layer]:
        """Those of some layers that lie in one block."""
        return [layer for layer in layers if block_of(layer.name) == (stack.name, number)]

    def first_blocks(self, sites: tuple[Layer, ...]) -> tuple[int, ...]:
        """Of each stack the number of the first block that gradients pass; how many blocks it has if none does.

        A stack that reads an adapted one passes them from its first block on.
        """
        firsts: list[int] = []
        for stack in self.stacks:
            found = [
                block[1] for layer in sites if (block := block_of(layer.name)) and block[0] == stack.name
            ]
            fed = bool(stack.reads) and firsts[-1] < self.stacks[len(firsts) - 1].blocks
            firsts.append(0 if fed else min(found, default=stack.blocks))
        return tuple(firsts)

    @property
    def parameters(self) -> int:
        """Of the base model and its head, each tied weight once."""
        return sum(layer.parameters for layer in (*self.layers, *self.head)) + self.other

    def sites(self, lora: LoraSettings) -> tuple[Layer, ...]:
        """The layers that the recipe adapts, by the same rule as when it runs.

        Raises:
            ModelError: none matches.
        """
        names = chosen([layer.name for layer in self.layers], lora)
        if not names:
            known = sorted({layer.name.rpartition(".")[2] for layer in self.layers})
            raise ModelError(
                f"lora.target_modules = {lora.target_modules!r}, lora.layers = {lora.layers!r}: no layer matches; "
                f"dense layers here are called {known}"
            )
        return tuple(layer for layer in self.layers if layer.name in names)


def function_of(name: str) -> Activation:
    """How a function between two layers is computed: `relu` and `gelu_new` keep other numbers than the rest."""
    return name if name in ("relu", "gelu_new") else "gelu"


def named(layers: tuple[Layer, ...]) -> dict[str, Any]:
    """Shapes of a head's parameters by name, as an adapter holds them."""
    found: dict[str, Any] = {}
    for layer in layers:
        found[f"{layer.name}.weight"] = (layer.d_out, layer.d_in)
        if layer.bias:
            found[f"{layer.name}.bias"] = (layer.d_out,)
    return found
