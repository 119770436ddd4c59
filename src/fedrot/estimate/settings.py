"""A model's settings: from its config.json, or from a small table of published models where no file is at hand."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedrot.errors import ModelError
from fedrot.model import resolve_path

Settings = Mapping[str, Any]

_LLAMA: Settings = {"model_type": "llama", "hidden_act": "silu", "attention_bias": False, "mlp_bias": False}

PUBLISHED: Mapping[str, Settings] = {
    "roberta-large": {
        **{"model_type": "roberta", "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16},
        **{
            "intermediate_size": 4096,
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
        },
    },
    "roberta-base": {
        **{"model_type": "roberta", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        **{
            "intermediate_size": 3072,
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
        },
    },
    "all-minilm-l6-v2": {
        **{"model_type": "bert", "hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12},
        **{
            "intermediate_size": 1536,
            "vocab_size": 30522,
            "max_position_embeddings": 512,
            "type_vocab_size": 2,
        },
    },
    "llama-3-8b": {
        **_LLAMA,
        **{"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8},
        **{"intermediate_size": 14336, "vocab_size": 128256, "tie_word_embeddings": False},
    },
    "llama-3.2-1b": {
        **_LLAMA,
        **{"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8},
        **{"head_dim": 64, "intermediate_size": 8192, "vocab_size": 128256, "tie_word_embeddings": True},
    },
    "smollm2-135m": {
        **_LLAMA,
        **{"hidden_size": 576, "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3},
        **{"intermediate_size": 1536, "vocab_size": 49152, "tie_word_embeddings": True},
    },
    "gpt2": {
        **{"model_type": "gpt2", "n_embd": 768, "n_layer": 12, "n_head": 12, "n_positions": 1024},
        **{"vocab_size": 50257, "activation_function": "gelu_new"},
    },
    "t5-small": {
        **{"model_type": "t5", "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
        **{"vocab_size": 32128, "feed_forward_proj": "relu"},
    },
    "vit-base-patch16-224": {
        **{"model_type": "vit", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
        **{"intermediate_size": 3072, "image_size": 224, "patch_size": 16, "num_channels": 3},
    },
}
"""Settings as in the models' own config.json, by what their names contain."""

_ALIASES = (
    (r"roberta[-_]?large", "roberta-large"),
    (r"roberta[-_]?base", "roberta-base"),
    (r"minilm[-_]?l6", "all-minilm-l6-v2"),
    (r"llama[-_]?3(\.1)?[-_]8b", "llama-3-8b"),
    (r"llama[-_]?3\.2[-_]1b", "llama-3.2-1b"),
    (r"smollm2(?!.*(360m|1\.7b))", "smollm2-135m"),
    (r"(^|/)gpt2$", "gpt2"),
    (r"(^|/)t5-small$", "t5-small"),
    (r"vit-base-patch16-224", "vit-base-patch16-224"),
)


def read_settings(path: str) -> tuple[Settings, str]:
    """A model's settings and where they come from. No weights are read or fetched.

    Args:
        path: as in `model.path`: a directory, `package:NAME`, a `.gguf` file or a hub id.

    Raises:
        ModelError: neither a config.json nor a published model of that name.
    """
    if (file := _file(path)) is not None:
        try:
            return json.loads(file.read_text("utf-8")), str(file)
        except (OSError, ValueError) as error:
            raise ModelError(f"model.path = {path!r}: '{file}' cannot be read ({error})") from error
    for pattern, name in _ALIASES:
        if re.search(pattern, path, re.IGNORECASE):
            return PUBLISHED[name], f"the published settings of {name}"
    raise ModelError(
        f"model.path = {path!r}: no config.json there or in the hub's cache, and no published model of that name; "
        f"expected a directory with config.json, or one of {', '.join(PUBLISHED)}"
    )


def _file(path: str) -> Path | None:
    """The config.json of a directory, an installed package or a hub id, if it can be had."""
    try:
        path = resolve_path(path)
    except ModelError:
        return None  # a package that is not installed, or with a GGUF file alone
    here = Path(path).expanduser() / "config.json"
    if here.is_file():
        return here
    if path.endswith(".gguf") or path.count("/") != 1:
        return None
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HFValidationError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        return Path(hf_hub_download(path, "config.json"))
    except (LocalEntryNotFoundError, OfflineModeIsEnabled, HfHubHTTPError, HFValidationError, OSError):
        return None  # the caller says what was expected, or uses published settings and says so
