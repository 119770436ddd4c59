"""Memory of a training step for a group of clients, part by part."""

from __future__ import annotations

from dataclasses import dataclass

from fedrot.config import RunConfig
from fedrot.engines.compat import precision
from fedrot.estimate.devices import GIB
from fedrot.estimate.shape import Layer, Shape, Stack

SIZE = {"float32": 4, "bfloat16": 2, "float16": 2}
"""Bytes of a number."""

QUANTISED = {"8bit": 1.0, "4bit": 0.5 + 0.127 / 8}
"""Bytes of a dense layer's weight: an 8-bit integer, or 4 bits with 0.127 more for the quantised constants of blocks of
64 (Dettmers et al., QLoRA, NeurIPS 2023). Biases, norms, embeddings, head and output layer stay as they are."""

ACTIVATIONS = {"gelu": 1, "relu": 1, "gelu_new": 4, "gated": 3, "gated-gelu_new": 6}
"""Numbers that the nonlinearity keeps for each one within the feed-forward part: its input (`gelu`) or result (`relu`);
what each step of `gelu_new` keeps; of a gated part also both factors."""

LOGITS = 2**24
"""Token scores of a language model that are held at a time, see `fedrot.core.token_loss`."""

OVERHEAD = {"cuda": 0.6 * GIB, "cpu": 0.0}
"""What a CUDA context and its libraries hold before anything is computed; an assumption."""


@dataclass(frozen=True)
class Memory:
    """Bytes at the peak of a local step, for a group of clients trained in one stack.

    Attributes:
        weights: the base model.
        adapters: factors and head of the group's clients in float32, those they received, and copies in the base
            model's precision that the backward pass keeps.
        gradients: of the same.
        optimizer: its moments.
        uploads: of all clients of the round, as trained and as uploaded, kept until the round is aggregated.
        activations: what the forward pass keeps for the backward pass.
        logits: token scores of a language model, a chunk at a time, and their gradient by the hidden states.
        transient: the largest intermediate result of a layer, with its gradient, and random numbers of dropout.
        overhead: of the device.
    """

    weights: float
    adapters: float
    gradients: float
    optimizer: float
    uploads: float
    activations: float
    logits: float
    transient: float
    overhead: float

    @property
    def total(self) -> float:
        """All of it."""
        return sum(vars(self).values())


def memory(config: RunConfig, shape: Shape, group: int, *, device: str = "cuda", chosen: int = 0) -> Memory:
    """The peak memory of a step of `group` clients.

    With `P` numbers in a client's adapter and head, `e` bytes a number of the base model, `G` clients and `N` in the
    round: adapters `4 P (2 G + 1)` and `e P G` if `e < 4`; gradients `4 P G`; the optimiser `4 P G` for each moment (0
    for SGD, 1 with momentum, 2 for AdamW); uploads `8 P N`. Activations as in `activations`, for
    `T = G x batch x length` tokens, every text at `task.max_length`, every image as long as the model makes it.

    Args:
        config: the recipe.
        shape: of its base model.
        group: clients trained at once.
        device: `"cuda"` or `"cpu"`.
        chosen: clients of a round; `group` if there are more of those.
    """
    sites = shape.sites(config.lora)
    numbers = trained_numbers(config, shape)
    size = SIZE[precision(config)]
    length = shape.length(config.task.max_length)
    tokens = group * config.train.batch_size * length
    moments = {"sgd": 0, "momentum": 1, "adamw": 2}[config.train.optimizer]
    asked = tokens * shape.asked
    widest = max(shape.width, shape.inner)
    scores = shape.heads * length if config.model.attention == "eager" else 0
    return Memory(
        weights=weight_bytes(config, shape),
        adapters=4 * numbers * (2 * group + 1) + (size * numbers * group if size < 4 else 0),
        gradients=4 * numbers * group,
        optimizer=4 * numbers * group * moments,
        uploads=8 * numbers * max(chosen, group),
        activations=tokens * activations(config, shape, sites),
        logits=(min(LOGITS, asked * shape.vocabulary) * (size + 4) + 2 * asked * shape.width * size)
        if config.task.name == "generate"
        else 0,
        transient=tokens * (2 * max(widest, scores) * size + (24 * widest if config.lora.dropout else 0)),
        overhead=OVERHEAD[device],
    )


def weight_bytes(config: RunConfig, shape: Shape) -> float:
    """Of the base model: `e` a number, but for dense layers that are quantised."""
    size, kind = SIZE[precision(config)], config.model.quantization
    if kind == "none":
        return float(size * shape.parameters)
    dense = sum(layer.d_in * layer.d_out for layer in shape.layers)
    return size * (shape.parameters - dense) + QUANTISED[kind] * dense


def trained_numbers(config: RunConfig, shape: Shape) -> int:
    """Of one client: `rank (d_in + d_out)` a site, and the head if it is trained."""
    sites = shape.sites(config.lora)
    factors = sum(config.lora.rank * (layer.d_in + layer.d_out) for layer in sites)
    return factors + (sum(layer.parameters for layer in shape.head) if config.lora.train_head else 0)


def activations(config: RunConfig, shape: Shape, sites: tuple[Layer, ...]) -> float:
    """Bytes a token that the forward pass keeps, over all blocks from the first adapted one on.

    Blocks below carry no gradient and keep nothing. With `train.checkpointing` every block keeps its input, and one
    block at a time all of it. Where an encoder is adapted, all blocks of its decoder carry gradients, the first one
    from its second attention on. What they read of the encoder is kept once if an adapted layer reads it.
    """
    size, total, largest = SIZE[precision(config)], 0.0, 0.0
    if any(_crosses(layer) for layer in sites):
        total += shape.stacks[-1].reads * size * shape.width
    for stack, first in zip(shape.stacks, shape.first_blocks(sites), strict=True):
        each = [
            _block(config, shape, stack, shape.of_block(sites, stack, number), entered=number == first)
            for number in range(first, stack.blocks)
        ]
        if config.train.checkpointing:
            total += stack.share * len(each) * shape.width * size
            largest = max([largest, *each])
        else:
            total += sum(each)
    return total + largest


def _block(config: RunConfig, shape: Shape, stack: Stack, sites: list[Layer], *, entered: bool) -> float:
    """Bytes a token of one block, with `h`, `m`, `d = heads x head_dim`, `e` bytes a number, context length `L`.

    Kept whatever is adapted: the inputs of both norms (`2 e h`; where norms compute in float32, 4 bytes a number);
    queries, keys, values and result of attention (`4 e d`), and with eager attention the `heads x L` weights, in
    float32 as well; between the layers of the feed-forward part, `ACTIVATIONS` times `e m`. A block that reads another
    stack has a third norm and a second attention. Where positions are a bias on the weights, bias and padding of the
    other stack's tokens are as many numbers as the weights, kept with any attention.
    Kept for an adapted layer: its input, once for all layers that share it, `rank` numbers, and with dropout a mask
    as large as the input.
    """
    e, h, m, share = SIZE[precision(config)], shape.width, shape.inner, stack.share
    weights = shape.heads * shape.length(config.task.max_length) * share
    eager = config.model.attention == "eager"
    weights *= e + (4 if e < 4 else 0) if eager else e
    norm, result = share * h * (4 if shape.wide_norms else e), e * shape.heads * shape.head_dim
    kept = norm + ACTIVATIONS[shape.activation] * e * m * share
    if stack.reads:
        kept += result * 2 * (share + stack.reads)
        kept += weights * stack.reads if eager or shape.biased_attention else 0
    if not (stack.reads and entered and all(_reads(layer) for layer in sites)):
        kept += norm * (2 if stack.reads else 1) + result * 4 * share
        kept += weights * share if eager or (shape.biased_attention and not stack.reads) else 0
    inputs = {_input_of(layer.name): layer.share * layer.d_in for layer in sites if not _crosses(layer)}
    if shape.activation == "relu" and any(layer.name.endswith(".wo") for layer in sites):
        kept -= e * m * share  # the result of it is the input of the next layer
    kept += e * sum(inputs.values()) + e * config.lora.rank * sum(layer.share for layer in sites)
    if config.lora.dropout:
        kept += e * sum(layer.share * layer.d_in for layer in sites)
    return kept


def _reads(layer: Layer) -> bool:
    """Whether a layer of a decoder lies behind its self-attention."""
    return ".SelfAttention." not in layer.name


def _crosses(layer: Layer) -> bool:
    """Whether a layer of a decoder reads the encoder's result, as its blocks all do."""
    return layer.name.endswith(("EncDecAttention.k", "EncDecAttention.v"))


def _input_of(name: str) -> str:
    """What layers that read the same input have in common."""
    path, _, last = name.rpartition(".")
    if last in ("query", "key", "value", "q_proj", "k_proj", "v_proj", "q", "k", "v"):
        return f"{path}.attention"
    return f"{path}.gate" if last in ("gate_proj", "up_proj", "wi_0", "wi_1") else name


def group_that_fits(config: RunConfig, shape: Shape, limit: float, clients: int, share: float = 0.8) -> int:
    """The largest group whose peak stays within a share of a device's memory; 0 if one client does not fit."""
    low, high = 0, clients
    while low < high:
        middle = (low + high + 1) // 2
        fits = memory(config, shape, middle, chosen=clients).total <= share * limit
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
