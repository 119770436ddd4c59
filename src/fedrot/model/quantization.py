"""Base weights stored as small integers, by bitsandbytes."""

from __future__ import annotations

import importlib.util
from typing import Any

import torch

from fedrot.config import ModelConfig
from fedrot.errors import ConfigError, ModelError


def check_quantization(config: ModelConfig, device: torch.device) -> None:
    """Refuse quantised weights where they cannot be had.

    Raises:
        ConfigError: a device that is no GPU.
        ModelError: bitsandbytes is not installed.
    """
    if config.quantization == "none":
        return
    if device.type != "cuda":
        raise ConfigError(
            f"model.quantization = {config.quantization!r}: quantised weights need a CUDA device, and training runs on "
            f"{device.type!r}; set model.quantization = 'none', or train.device = 'cuda' where there is one"
        )
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ModelError(
            f"model.quantization = {config.quantization!r}: the package bitsandbytes is not installed; run "
            "`pip install bitsandbytes`"
        )


def quantization(name: str, dtype: torch.dtype) -> Any:
    """8-bit integers, or NormalFloat of 4 bits with quantised constants (QLoRA, Dettmers et al., NeurIPS 2023)."""
    from transformers import BitsAndBytesConfig

    if name == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
