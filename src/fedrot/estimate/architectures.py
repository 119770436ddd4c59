"""The layers of each architecture, from its settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from fedrot.config import RunConfig
from fedrot.errors import ModelError, nearest
from fedrot.estimate.settings import Settings, read_settings
from fedrot.estimate.shape import Layer, Shape, Stack, function_of
from fedrot.estimate.t5 import t5


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
        heads=settings["num_attention_heads"],
        head_dim=h // settings["num_attention_heads"],
        vocabulary=settings["vocab_size"],
        stacks=(Stack(f"{stem}.encoder.layer", n),),
        activation=function_of(settings.get("hidden_act", "gelu")),
        wide_norms=False,
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
    blocks = f"{'model' if language or config.model.pooling == 'model' else 'backbone'}.layers"
    for block in range(n):
        at = f"{blocks}.{block}"
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
        heads=heads,
        head_dim=d,
        vocabulary=settings["vocab_size"],
        stacks=(Stack(blocks, n),),
        activation="gated",
        wide_norms=True,
        layers=tuple(layers),
        head=head,
        other=tables * settings["vocab_size"] * h + h * (2 * n + 1) + (2 * d * n if kind == "qwen3" else 0),
    )


def _gpt2(settings: Settings, source: str, config: RunConfig, labels: int) -> Shape:
    """GPT-2: one layer for queries, keys and values, one behind attention, two of the feed-forward part, two norms.

    Parameters outside dense layers: `(vocabulary + positions) h` of embeddings, and `2 h` of each norm, two a block and
    one at the end. The output layer is the table of embeddings.
    """
    h, n = settings["n_embd"], settings["n_layer"]
    m = settings.get("n_inner") or 4 * h
    language, pooled = config.task.name != "classify", config.model.pooling != "model"
    blocks = f"{'backbone' if pooled and not language else 'transformer'}.h"
    layers: list[Layer] = []
    for block in range(n):
        at = f"{blocks}.{block}"
        layers += [Layer(f"{at}.attn.c_attn", h, 3 * h), Layer(f"{at}.attn.c_proj", h, h)]
        layers += [Layer(f"{at}.mlp.c_fc", h, m), Layer(f"{at}.mlp.c_proj", m, h)]
    return Shape(
        source=source,
        width=h,
        inner=m,
        heads=settings["n_head"],
        head_dim=h // settings["n_head"],
        vocabulary=settings["vocab_size"],
        stacks=(Stack(blocks, n),),
        activation=function_of(settings.get("activation_function", "gelu_new")),
        wide_norms=False,
        layers=tuple(layers),
        head=() if language else (Layer("classifier" if pooled else "score", h, labels, pooled),),
        other=(settings["vocab_size"] + settings["n_positions"]) * h + 2 * h * (2 * n + 1),
    )


def _vit(settings: Settings, source: str, config: RunConfig, labels: int) -> Shape:  # noqa: ARG001
    """ViT: four dense layers of attention, two of the feed-forward part, two norms a block.

    An image is as many tokens as it has patches, and one more. Parameters outside dense layers: `(3 p^2 + 1) h` of the
    layer that reads patches of `p x p` pixels in three channels, a position for each token and the first token itself,
    and `2 h` of each norm, two a block and one at the end.
    """
    h, m, n = settings["hidden_size"], settings["intermediate_size"], settings["num_hidden_layers"]
    bias, patch = bool(settings.get("qkv_bias", True)), settings["patch_size"]
    numbers = settings.get("num_channels", 3) * patch**2
    tokens = (settings["image_size"] // patch) ** 2 + 1
    layers: list[Layer] = []
    for block in range(n):
        at = f"vit.layers.{block}"
        layers += [Layer(f"{at}.attention.{name}_proj", h, h, bias) for name in "qkv"]
        layers.append(Layer(f"{at}.attention.o_proj", h, h))
        layers += [Layer(f"{at}.mlp.fc1", h, m), Layer(f"{at}.mlp.fc2", m, h)]
    return Shape(
        source=source,
        width=h,
        inner=m,
        heads=settings["num_attention_heads"],
        head_dim=h // settings["num_attention_heads"],
        vocabulary=0,
        stacks=(Stack("vit.layers", n),),
        activation=function_of(settings.get("hidden_act", "gelu")),
        wide_norms=False,
        layers=tuple(layers),
        head=(Layer("classifier", h, labels),),
        other=(numbers + 1 + tokens + 1) * h + 2 * h * (2 * n + 1),
        tokens=tokens,
        stem=2.0 * numbers * h,
    )


_BUILDERS: Mapping[str, Callable[[Settings, str, RunConfig, int], Shape]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "camembert"), _encoder),
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3"), _decoder),
    "gpt2": _gpt2,
    "t5": t5,
    "vit": _vit,
}
