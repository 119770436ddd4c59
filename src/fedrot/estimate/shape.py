"""The layers of a base model with their sizes, from its settings: no weights, no transformers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fedrot.config import LoraSettings, RunConfig
from fedrot.errors import ModelError, nearest
from fedrot.estimate.settings import Settings, read_settings
from fedrot.model.sites import chosen


@dataclass(frozen=True)
class Layer:
    """A dense layer: its full name, `d_in`, `d_out`, and whether it has a bias."""

    name: str
    d_in: int
    d_out: int
    bias: bool = True

    @property
    def parameters(self) -> int:
        """`d_in d_out`, and `d_out` for a bias."""
        return self.d_out * (self.d_in + self.bias)


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A base model with its head, as the recipe builds it.

    Attributes:
        source: where the settings come from.
        width, inner, blocks: hidden size, size within the feed-forward part, number of blocks.
        heads, kv_heads, head_dim: of attention.
        vocabulary: tokens.
        gated: a feed-forward part of three layers with a gate (Llama), instead of two.
        causal: a decoder.
        layers: all dense layers but those of the head and the output layer, in module order.
        head: layers of the classification head; empty for a language model.
        other: parameters that are in no dense layer: embeddings, norms, an output layer that is not tied.
    """

    source: str
    width: int
    inner: int
    blocks: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    gated: bool
    causal: bool
    layers: tuple[Layer, ...]
    head: tuple[Layer, ...]
    other: int

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


def shape_of(config: RunConfig, labels: int) -> Shape:
    """The base model of a recipe, from its settings.

    Args:
        config: the recipe.
        labels: outputs of a classification head.

    Raises:
        ModelError: no settings, or an architecture that is not known here.
    """
    settings, source = read_settings(config.model.path)
    kind = str(settings.get("model_type", ""))
    if kind not in _BUILDERS:
        raise ModelError(
            f"model.path = {config.model.path!r}: its model_type is {kind!r}, whose layers are not known to the "
            f"estimate; {nearest(kind, _BUILDERS)}"
        )
    try:
        return _BUILDERS[kind](settings, source, config, labels)
    except KeyError as error:
        raise ModelError(f"{source}: lacks {error}, which the estimate needs") from None


def _encoder(settings: Settings, source: str, config: RunConfig, labels: int) -> Shape:
    """BERT and RoBERTa: four dense layers of attention, two of the feed-forward part, two norms a block.

    Parameters outside dense layers: `(vocabulary + positions + types) h` of embeddings and `2 h` of each norm, one
    after the embeddings and two a block.
    """
    h, m, n = settings["hidden_size"], settings["intermediate_size"], settings["num_hidden_layers"]
    kind, pooled = settings["model_type"], config.model.pooling != "model"
    own = "bert" if kind == "bert" else "roberta"
    stem = "backbone" if pooled else own
    layers: list[Layer] = []
    for block in range(n):
        at = f"{stem}.encoder.layer.{block}"
        layers += [Layer(f"{at}.attention.self.{name}", h, h) for name in ("query", "key", "value")]
        layers += [
            Layer(f"{at}.attention.output.dense", h, h),
            Layer(f"{at}.intermediate.dense", h, m),
            Layer(f"{at}.output.dense", m, h),
        ]
    head = [Layer("classifier", h, labels)]
    if not pooled and own == "bert":
        layers.append(Layer("bert.pooler.dense", h, h))
    elif not pooled:
        head = [Layer("classifier.dense", h, h), Layer("classifier.out_proj", h, labels)]
    embeddings = (
        settings["vocab_size"] + settings["max_position_embeddings"] + settings.get("type_vocab_size", 2)
    )
    return Shape(
        source=source,
        width=h,
        inner=m,
        blocks=n,
        heads=settings["num_attention_heads"],
        kv_heads=settings["num_attention_heads"],
        head_dim=h // settings["num_attention_heads"],
        vocabulary=settings["vocab_size"],
        gated=False,
        causal=False,
        layers=tuple(layers),
        head=tuple(head),
        other=embeddings * h + 2 * h * (2 * n + 1),
    )


def _decoder(settings: Settings, source: str, config: RunConfig, labels: int) -> Shape:
    """Llama, Mistral, Qwen: four dense layers of attention, three gated ones, two norms a block.

    Parameters outside dense layers: `vocabulary h` of embeddings, the same again for an output layer that is not tied
    (a classifier has none), and `h` of each norm, two a block and one at the end; in Qwen3 also `2 head_dim` a block.
    """
    h, m, n = settings["hidden_size"], settings["intermediate_size"], settings["num_hidden_layers"]
    heads = settings["num_attention_heads"]
    kv = settings.get("num_key_value_heads") or heads
    d = settings.get("head_dim") or h // heads
    kind = settings["model_type"]
    bias = bool(settings.get("attention_bias", False))
    language = config.task.name != "classify"
    layers: list[Layer] = []
    for block in range(n):
        at = f"{'model' if language or config.model.pooling == 'model' else 'backbone'}.layers.{block}"
        layers += [
            Layer(f"{at}.self_attn.q_proj", h, heads * d, bias or kind == "qwen2"),
            Layer(f"{at}.self_attn.k_proj", h, kv * d, bias or kind == "qwen2"),
            Layer(f"{at}.self_attn.v_proj", h, kv * d, bias or kind == "qwen2"),
            Layer(f"{at}.self_attn.o_proj", heads * d, h, bias),
        ]
        mlp = bool(settings.get("mlp_bias", False))
        layers += [Layer(f"{at}.mlp.{name}", h, m, mlp) for name in ("gate_proj", "up_proj")]
        layers.append(Layer(f"{at}.mlp.down_proj", m, h, mlp))
    tied = bool(settings.get("tie_word_embeddings", False))
    pooled = config.model.pooling != "model"
    head = () if language else (Layer("classifier" if pooled else "score", h, labels, pooled),)
    tables = 1 if tied or not language else 2
    return Shape(
        source=source,
        width=h,
        inner=m,
        blocks=n,
        heads=heads,
        kv_heads=kv,
        head_dim=d,
        vocabulary=settings["vocab_size"],
        gated=True,
        causal=True,
        layers=tuple(layers),
        head=head,
        other=tables * settings["vocab_size"] * h + h * (2 * n + 1) + (2 * d * n if kind == "qwen3" else 0),
    )


_BUILDERS: Mapping[str, Callable[[Settings, str, RunConfig, int], Shape]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _encoder),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _decoder),
}


def named(layers: tuple[Layer, ...]) -> dict[str, Any]:
    """Shapes of a head's parameters by name, as an adapter holds them."""
    found: dict[str, Any] = {}
    for layer in layers:
        found[f"{layer.name}.weight"] = (layer.d_out, layer.d_in)
        if layer.bias:
            found[f"{layer.name}.bias"] = (layer.d_out,)
    return found
