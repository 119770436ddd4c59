"""A PEFT adapter put on a loaded base model, without a second copy of the weights."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedrot.errors import ModelError
from fedrot.model.base import BaseModel
from fedrot.model.quantization import settle
from fedrot.model.words import first_line


def attach_peft(base: BaseModel, directory: str | Path) -> nn.Module:
    """The base model with the adapter's updates.

    In float32 they are added to the weights in place, so that generating costs what it does without an adapter.
    Narrower or quantised weights would round small updates away: there the adapter stays beside them. Either way
    `base.module` is no longer the base model alone.

    Raises:
        ModelError: not a PEFT adapter, or one of another base model.
    """
    from peft import PeftModel

    module: Any = base.module
    try:
        with warnings.catch_warnings():
            # PEFT still asks by the old name of a property that transformers has renamed.
            warnings.filterwarnings("ignore", "`is_gradient_checkpointing`", FutureWarning)
            attached = PeftModel.from_pretrained(module, str(directory))
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise ModelError(
            f"'{directory}': this adapter does not go onto '{base.path}' ({first_line(error)}); give its own base "
            "model with --base"
        ) from error
    if base.dtype == torch.float32 and not base.quantized:
        return attached.merge_and_unload().eval()
    attached.eval()
    if base.quantized:
        settle(attached)
    return attached
