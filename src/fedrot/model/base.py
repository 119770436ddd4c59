"""Frozen base models and their tokenizers or image processors, from a directory, an installed package or a hub."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from fedrot.config import ModelConfig
from fedrot.core.rng import derive
from fedrot.errors import ConfigError, ModelError, nearest
from fedrot.model.complete import check_complete
from fedrot.model.locate import locate
from fedrot.model.pooled import OF_BACKBONE, PooledClassifier, pooled_card, without_pooler
from fedrot.model.positions import learned_positions
from fedrot.model.quantization import check_quantization, check_quantized, quantization, settle
from fedrot.model.vision import check_vision, read_vision
from fedrot.model.words import first_line, inside, quiet_transformers

HEAD_NAMES = ("classifier", "score", "classification_head", "pre_classifier")

CLASSIFIER, LANGUAGE, VISION = "sequence-classification", "causal-lm", "image-classification"
"""Kinds of models, as tasks name them."""
ENCODER_DECODER = "seq2seq-lm"
"""What a language model turns out to be whose settings say so: an encoder reads prompts, a decoder answers."""

_SAID = {
    CLASSIFIER: "a sequence classifier",
    LANGUAGE: "a language model",
    VISION: "an image classifier",
}


_BESIDE = {
    CLASSIFIER: "tokenizer",
    LANGUAGE: "tokenizer, a .gguf file",
    VISION: "preprocessor_config.json",
}


@dataclass(frozen=True)
class BaseModel:
    """A frozen base model with what prepares its input and the names needed to adapt it."""

    module: nn.Module
    processor: Any
    """Its tokenizer, or its image processor."""
    path: str
    labels: tuple[str, ...]
    pooling: str
    head: tuple[str, ...]
    """Names of the modules trained whole."""
    kind: str = CLASSIFIER
    """Which class of transformers it is of."""
    quantized: bool = False
    """Whether its weights are stored as small integers, so that nothing can be added to them."""

    @property
    def tokenizer(self) -> Any:
        """The processor of a model of texts."""
        return self.processor

    @property
    def device(self) -> torch.device:
        """Where the base model's parameters lie."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the base model's arithmetic."""
        return next(self.module.parameters()).dtype

    @property
    def generates(self) -> bool:
        """Whether it is a language model, with or without an encoder."""
        return self.kind in (LANGUAGE, ENCODER_DECODER)

    @property
    def opening(self) -> int | None:
        """The token that opens every answer of an encoder-decoder model; None for other models.

        Raises:
            ModelError: its settings do not name it.
        """
        if self.kind != ENCODER_DECODER:
            return None
        settings: Any = self.module.config
        if settings.decoder_start_token_id is None:
            raise ModelError(
                f"model.path = {self.path!r}: config.json lacks decoder_start_token_id, with which answers begin"
            )
        return settings.decoder_start_token_id

    @property
    def positions(self) -> int | None:
        """Tokens of the longest text that the model has learned positions for; None where there is no such limit."""
        return None if self.kind == VISION else learned_positions(self.module)

    @property
    def output_layer(self) -> str | None:
        """Name of the layer that a language model's token scores come from; it is never adapted."""
        if not self.generates:
            return None
        module: Any = self.module
        output = module.get_output_embeddings()
        return next((name for name, child in self.module.named_modules() if child is output), None)

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the head, by full name."""
        named = dict(self.module.named_parameters())
        return {name: p for name, p in named.items() if any(inside(name, head) for head in self.head)}


def load_base(
    config: ModelConfig,
    labels: Sequence[str],
    *,
    kind: str = CLASSIFIER,
    seed: int = 0,
    precision: str = "float32",
    device: str | torch.device = "cpu",
    modules_to_save: Sequence[str] | None = None,
) -> BaseModel:
    """Load a model and its tokenizer or image processor, frozen and in evaluation mode (its own dropout off).

    A head that the checkpoint lacks, or has for another number of labels, is drawn from `seed`, without touching global
    randomness; nothing else may be missing.

    Args:
        config: where it lies, how it pools, attends and is quantised.
        labels: of a classifier; empty for a language model.
        kind: `sequence-classification`, `image-classification`, or `causal-lm` for a language model of either sort.
        seed: of a new head.
        precision: of its arithmetic.
        device: to hold it.
        modules_to_save: names of modules to train whole; None for a classifier's own head.

    Raises:
        ModelError: the path cannot be read as such a model, its weights are not all there, or it has no module of a
            name in `modules_to_save`.
        ConfigError: pooling of a model that has none, or other than a merged model's.
    """
    device = torch.device(device)
    if kind == ENCODER_DECODER:
        kind = LANGUAGE  # which of the two it is, its settings say
    _check(config, kind)
    files = locate(config.path)
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(derive(seed, "base"))
        try:
            module, processor = _read(config, labels, kind, precision, device)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(
                f"model.path = {config.path!r}: cannot be loaded as {_SAID[kind]}; expected a directory with "
                f"config.json, weights and {_BESIDE[kind]}, `package:NAME`, or a reachable hub id ({first_line(error)})"
            ) from error
    if kind == CLASSIFIER and padding(processor) is None:
        raise ModelError(
            f"model.path = {config.path!r}: its tokenizer has neither a padding nor an end token; set "
            "tokenizer.pad_token and save it again"
        )
    if kind == CLASSIFIER and learned_positions(module) is not None:
        processor.padding_side = "right"  # a text begins at the first position, whoever shares its batch
    if kind == CLASSIFIER and reads_last(module):
        module.config.get_text_config().pad_token_id = padding(processor)  # whatever its config.json says
    if files.gguf is not None:
        whole: Any = module  # what transformers notes of the file would keep the model from being saved
        whole.hf_quantizer.remove_quantization_config(whole)
    quantized = config.quantization != "none"
    module.requires_grad_(False).eval()
    head = _head(module, modules_to_save, kind)
    if quantized:
        check_quantized(config, module, head)
        settle(module)
    else:
        module.to(device)
    if kind == LANGUAGE and module.config.is_encoder_decoder:
        kind = ENCODER_DECODER
    return BaseModel(module, processor, config.path, tuple(labels), config.pooling, head, kind, quantized)


def _check(config: ModelConfig, kind: str) -> None:
    merged = pooled_card(locate(config.path).path)
    if merged is not None and config.pooling != merged["pooling"]:
        raise ConfigError(
            f"model.pooling = {config.pooling!r}: '{config.path}' is a classifier merged by fedrot, which pools by "
            f"{merged['pooling']!r}; set model.pooling = {merged['pooling']!r}"
        )
    if kind == VISION:
        check_vision(config.path, config.pooling)
    if kind == LANGUAGE and config.pooling != "model":
        raise ConfigError(
            f"model.pooling = {config.pooling!r}: a language model has nothing to pool; leave the key out"
        )
    check_quantization(config, locate(config.path).gguf)


def _read(
    config: ModelConfig, labels: Sequence[str], kind: str, precision: str, device: torch.device
) -> tuple[Any, Any]:
    """Model and processor, by transformers."""
    import transformers

    files, dtype = locate(config.path), getattr(torch, precision)
    options: dict[str, Any] = {"dtype": dtype, **files.options}
    reported: dict[str, Any] = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    if config.attention != "auto":
        options["attn_implementation"] = config.attention
    if config.quantization != "none":
        options |= {
            "quantization_config": quantization(
                config.quantization, dtype, None if kind == LANGUAGE else HEAD_NAMES
            ),
            "device_map": {"": device},
        }
    if kind == VISION:
        return read_vision(config.path, files, len(labels), options)
    tokenizer = transformers.AutoTokenizer.from_pretrained(files.path, **files.options)
    if len(tokenizer) <= len(tokenizer.all_special_ids):
        # transformers makes one of nothing for some models, and every text becomes unknown tokens.
        raise ModelError(
            f"model.path = {config.path!r}: its tokenizer knows {len(tokenizer)} special tokens and no other; save the "
            "model's tokenizer there, too (`tokenizer.save_pretrained`)"
        )
    if kind == LANGUAGE:
        settings = transformers.AutoConfig.from_pretrained(files.path, **files.options)
        seq2seq, causal = transformers.AutoModelForSeq2SeqLM, transformers.AutoModelForCausalLM
        speaker: Any = seq2seq if settings.is_encoder_decoder else causal
        talker, report = speaker.from_pretrained(files.path, **options, **reported)
        check_complete(config.path, talker, report)
        return talker, tokenizer
    settings = transformers.AutoConfig.from_pretrained(files.path, num_labels=len(labels), **files.options)
    if settings.pad_token_id is None:
        # A decoder reads a text's last token that is not this one.
        settings.pad_token_id = padding(tokenizer)
    if config.pooling == "model":
        model = transformers.AutoModelForSequenceClassification
        whole, report = model.from_pretrained(files.path, config=settings, **options, **reported)
        check_complete(config.path, whole, report, len(labels))
        return whole, tokenizer
    merged = pooled_card(files.path)
    renamed: dict[str, Any] = {} if merged is None else {"key_mapping": OF_BACKBONE}
    backbone, report = transformers.AutoModel.from_pretrained(
        files.path, config=settings, **options, **reported, **renamed, **without_pooler(settings)
    )
    check_complete(config.path, backbone, report, len(labels))
    pooled = PooledClassifier(backbone, len(labels), config.pooling)
    if merged is not None and len(merged["labels"]) == len(labels):
        pooled.read_head(files.path)
    return pooled.to(dtype), tokenizer


def padding(tokenizer: Any) -> int | None:
    """The token that texts are padded with: a tokenizer without one (GPT-2's) lends its end token."""
    return tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id


def reads_last(module: nn.Module) -> bool:
    """Whether a classifier is a decoder, which scores a text's last token that is not `config.pad_token_id`.

    Encoders have no layer of this name. Some (RoBERTa) count positions from their own padding token, which must stay.
    """
    return hasattr(module, "score")


def _head(module: nn.Module, modules_to_save: Sequence[str] | None, kind: str) -> tuple[str, ...]:
    children = dict(module.named_modules())
    if modules_to_save is None:
        if kind == LANGUAGE:
            return ()
        return tuple(name for name in HEAD_NAMES if name in children)
    for name in modules_to_save:
        if name not in children:
            known = [child for child in children if child.count(".") < 2 and child]
            raise ModelError(
                f"lora.modules_to_save names {name!r}, which the model lacks; {nearest(name, known)}"
            )
    return tuple(modules_to_save)
