"""PEFT adapters as state dicts under PEFT's own keys, from a directory or a model and back to a directory."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fedrot.errors import ModelError
from fedrot.model.peft_format import CONFIG, PREFIX, WEIGHTS, parse_peft, read_peft
from fedrot.model.words import CARD

if TYPE_CHECKING:
    from peft import PeftModel


@dataclass(frozen=True)
class PeftState:
    """An adapter's tensors in float32 under the keys of `get_peft_model_state_dict`, and its configuration."""

    name: str
    settings: Mapping[str, Any]
    tensors: Mapping[str, Tensor]
    directory: Path | None = None


def open_state(given: str | Path | PeftModel, key: str) -> PeftState:
    """The active adapter of a PEFT model in the model's order, or an adapter directory in its file's.

    Args:
        given: a directory with `adapter_config.json` and `adapter_model.safetensors`, or a model.
        key: what names it in messages.

    Raises:
        ModelError: no LoRA adapter, or one whose ranks, alpha or kind do not fit its tensors; see `read_peft`.
    """
    if isinstance(given, str | Path):
        files = read_peft(given, key)
        tensors: dict[str, Tensor] = {}
        for site, f in files.sites.items():
            tensors |= {f"{PREFIX}{site}.lora_A.weight": f.a, f"{PREFIX}{site}.lora_B.weight": f.b}
        tensors |= {f"{PREFIX}{name}": tensor for name, tensor in files.head.items()}
        return PeftState(f"{key} = '{given}'", files.settings, tensors, Path(given))
    from peft import PeftModel, get_peft_model_state_dict

    if not isinstance(given, PeftModel):
        raise ModelError(
            f"{key} is a {type(given).__name__}: expected the directory of a PEFT adapter or a PeftModel"
        )
    name = given.active_adapter
    if not isinstance(name, str):
        raise ModelError(f"{key}: the adapters {name} are active at once; activate one with set_adapter")
    config = {k: sorted(v) if isinstance(v, set) else v for k, v in given.peft_config[name].to_dict().items()}
    settings = json.loads(json.dumps(config | {"inference_mode": True}))
    where = f"{key}, adapter {name!r} of a {type(given).__name__}"
    if settings.get("peft_type") != "LORA":
        raise ModelError(f"{where}: it is a {settings.get('peft_type')} adapter, expected LORA")
    found = get_peft_model_state_dict(given, adapter_name=name, save_embedding_layers=False)
    tensors = {k: t.detach().float().cpu().clone() for k, t in found.items()}
    parse_peft(settings, tensors, where, Path())
    return PeftState(where, settings, tensors)


def stored_key(key: str) -> str:
    """The key under which PEFT stores a parameter: without the adapter's name.

    >>> stored_key("base_model.model.q.lora_A.default.weight"), stored_key("head.modules_to_save.default.bias")
    ('base_model.model.q.lora_A.weight', 'head.bias')
    """
    key = re.sub(r"\.lora_([AB])\.[^.]+\.weight$", r".lora_\1.weight", key)
    return re.sub(r"\.modules_to_save\.[^.]+\.", ".", key)


def write_state(directory: str | Path, tensors: Mapping[str, Tensor], like: PeftState) -> Path:
    """Write tensors with the configuration of `like`, and its `fedrot.json` if it has one; replaces an adapter there.

    Raises:
        ModelError: the tensors do not fit the configuration, or nothing can be written there.
    """
    import safetensors.torch

    directory = Path(directory)
    parse_peft(like.settings, tensors, f"the record for '{directory}'", directory)
    try:
        directory.mkdir(parents=True, exist_ok=True)
        (directory / CONFIG).write_text(json.dumps(like.settings, indent=2, sort_keys=True) + "\n", "utf-8")
        if like.directory is not None and (like.directory / CARD).exists() and like.directory != directory:
            shutil.copy(like.directory / CARD, directory / CARD)
        safetensors.torch.save_file(
            {k: t.float().contiguous() for k, t in tensors.items()}, directory / WEIGHTS
        )
    except OSError as error:
        raise ModelError(
            f"'{directory}': cannot be written ({error}); check the path and free space"
        ) from error
    return directory
