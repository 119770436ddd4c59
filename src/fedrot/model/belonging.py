"""The base module that belongs to a directory written by fedrot."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from fedrot.config import ModelConfig
from fedrot.errors import ModelError
from fedrot.model.base import CLASSIFIER, load_base
from fedrot.model.pooled import PooledClassifier, pooled_card
from fedrot.model.words import CARD, first_line


def load_base_for(directory: str | Path, *, path: str | None = None) -> nn.Module:
    """The base module that an exported `adapter/` belongs on, ready for `PeftModel.from_pretrained(base, directory)`.

    A merged model that pools its own way is returned whole: transformers has no class for it.

    Args:
        directory: an adapter written by fedrot; its `fedrot.json` names base model, labels and pooling.
        path: where the base model lies, if it has moved.

    Raises:
        ModelError: no such adapter, or its base model cannot be loaded.
    """
    directory = Path(directory)
    if pooled_card(directory) is not None:
        return PooledClassifier.from_pretrained(directory).requires_grad_(False).eval()
    if (directory / "config.json").is_file() and not (directory / CARD).exists():
        raise ModelError(
            f"'{directory}': a whole model and no adapter; load it with transformers alone, or name it as model.path"
        )
    try:
        facts = json.loads((directory / CARD).read_text("utf-8"))
        base, pooling, labels = facts["base_model"], facts["pooling"], facts["labels"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ModelError(
            f"'{directory}': expected an adapter written by fedrot, with a {CARD} that says base_model, labels and "
            f"pooling ({type(error).__name__}: {first_line(error)})"
        ) from error
    config = ModelConfig(path=path or base, pooling=pooling)
    return load_base(config, labels, kind=facts.get("kind", CLASSIFIER)).module
