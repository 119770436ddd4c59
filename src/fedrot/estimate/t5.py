"""The layers of T5, an encoder and a decoder."""

from __future__ import annotations

from fedrot.config import RunConfig
from fedrot.estimate.settings import Settings
from fedrot.estimate.shape import Activation, Layer, Shape, Stack, function_of


def t5(settings: Settings, source: str, config: RunConfig, labels: int) -> Shape:
    """T5: an encoder, and a decoder whose blocks attend to it as well.

    As a classifier, both read the whole text. As a language model, half of an example's tokens are taken to be the
    prompt's and half the answer's. Parameters outside dense layers: `vocabulary h` of embeddings, which are the output
    layer too; `h` of each norm, two a block of the encoder, three of the decoder, and one at the end of each; a bias
    for each bucket of distances and head, of encoder and decoder.
    """
    h, heads, n = settings["d_model"], settings["num_heads"], settings["num_layers"]
    decoder = settings.get("num_decoder_layers") or n
    language = config.task.name == "generate"
    share, stem = (0.5, "") if language else (1.0, "transformer.")
    layers: list[Layer] = []
    for stack, count in (("encoder", n), ("decoder", decoder)):
        for block in range(count):
            at = f"{stem}{stack}.block.{block}.layer"
            layers += _attention(f"{at}.0.SelfAttention", settings, share, share)
            if stack == "decoder":
                layers += _attention(f"{at}.1.EncDecAttention", settings, share, share)
            layers += _feed_forward(f"{at}.{2 if stack == 'decoder' else 1}", settings, share)
    name = "classification_head"
    return Shape(
        source=source,
        width=h,
        inner=settings["d_ff"],
        heads=heads,
        head_dim=settings["d_kv"],
        vocabulary=settings["vocab_size"],
        stacks=(
            Stack(f"{stem}encoder.block", n, share),
            Stack(f"{stem}decoder.block", decoder, share, reads=share),
        ),
        activation=_activation(settings.get("feed_forward_proj", "relu")),
        wide_norms=True,
        biased_attention=True,
        layers=tuple(layers),
        head=() if language else (Layer(f"{name}.dense", h, h), Layer(f"{name}.out_proj", h, labels)),
        other=(settings["vocab_size"] + 2 * n + 3 * decoder + 2) * h
        + 2 * settings.get("relative_attention_num_buckets", 32) * heads,
    )


def _activation(form: str) -> Activation:
    """`gated-gelu` stands for the gate of T5 1.1, which computes `gelu_new`."""
    if form == "gated-gelu":
        return "gated-gelu_new"
    return "gated" if form.startswith("gated") else function_of(form)


def _attention(at: str, settings: Settings, own: float, read: float) -> list[Layer]:
    h, d = settings["d_model"], settings["num_heads"] * settings["d_kv"]
    shares = {"q": own, "k": read, "v": read}
    inner = [Layer(f"{at}.{name}", h, d, bias=False, share=share) for name, share in shares.items()]
    return [*inner, Layer(f"{at}.o", d, h, bias=False, share=own)]


def _feed_forward(at: str, settings: Settings, share: float) -> list[Layer]:
    h, m = settings["d_model"], settings["d_ff"]
    gated = "gated" in settings.get("feed_forward_proj", "relu")
    into = [
        Layer(f"{at}.DenseReluDense.{name}", h, m, bias=False, share=share)
        for name in (("wi_0", "wi_1") if gated else ("wi",))
    ]
    return [*into, Layer(f"{at}.DenseReluDense.wo", m, h, bias=False, share=share)]
