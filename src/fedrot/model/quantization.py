"""Base weights stored as small integers, by bitsandbytes."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from fedrot.config import ModelConfig
from fedrot.errors import ConfigError, ModelError
from fedrot.model.words import inside

PACKAGES = ("bitsandbytes", "accelerate")


def check_quantization(config: ModelConfig, gguf: str | None) -> None:
    """Refuse quantised weights where the packages for them are missing, and of GGUF files.

    Args:
        config: of the model.
        gguf: name of the file that its weights come from, if it is one.

    Raises:
        ModelError: names the package and the extra.
        ConfigError: transformers reads a GGUF file as whole weights only.
    """
    if config.quantization == "none":
        return
    if gguf is not None:
        raise ConfigError(
            f"model.quantization = {config.quantization!r}: transformers cannot quantise weights that it reads from a "
            f"GGUF file ({gguf}); save the model as a directory and name that, or set model.quantization = 'none'"
        )
    for package in PACKAGES:
        if importlib.util.find_spec(package) is None:
            raise ModelError(
                f"model.quantization = {config.quantization!r}: the package {package} is not installed; run: "
                "pip install 'fedrot[quantized]', or set model.quantization = 'none'"
            )


def quantization(name: str, dtype: torch.dtype, whole: Sequence[str] | None) -> Any:
    """8-bit integers, or NormalFloat of 4 bits with quantised constants (QLoRA, Dettmers et al., NeurIPS 2023).

    Args:
        name: `8bit` or `4bit`.
        dtype: of the arithmetic.
        whole: names of modules that stay as they are; None for a language model's output layer.
    """
    from transformers import BitsAndBytesConfig

    # 8-bit layers would say at every product that its input is rounded.
    logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
    # On import, for a kernel of the format that `settle` keeps layers from.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
    kept = None if whole is None else list(whole)
    if name == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True, llm_int8_skip_modules=kept)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept,
    )


def quantized_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers that hold integers, by name."""
    from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt  # pyright: ignore[reportMissingImports]  # an extra

    return {name: m for name, m in module.named_modules() if isinstance(m, Linear4bit | Linear8bitLt)}


def check_quantized(config: ModelConfig, module: nn.Module, head: Sequence[str]) -> None:
    """Refuse a model of which nothing was quantised, or something that must be trained, or that is read wrongly.

    On a CPU bitsandbytes 0.50 takes the constants of a 4-bit layer from the wrong blocks where a row is no whole number
    of them.

    Raises:
        ModelError: names the model or the layer.
    """
    layers = quantized_layers(module)
    if not layers:
        raise ModelError(
            f"model.quantization = {config.quantization!r}: bitsandbytes found no layer of '{config.path}' to "
            "quantise; set model.quantization = 'none'"
        )
    for name, layer in layers.items():
        whole: Any = layer
        on_cpu, state = whole.weight.device.type == "cpu", getattr(whole.weight, "quant_state", None)
        if on_cpu and state is not None and whole.in_features % state.blocksize:
            raise ModelError(
                f"model.quantization = {config.quantization!r}: on a CPU bitsandbytes reads 4-bit layers right only if "
                f"their width is a multiple of {state.blocksize}, and {name!r} reads {whole.in_features} numbers; set "
                "model.quantization = '8bit', or train on a GPU"
            )
        if any(inside(name, trained) for trained in head):
            raise ModelError(
                f"lora.modules_to_save reaches {name!r}, whose weights are quantised and cannot be trained; name "
                "another module, or set model.quantization = 'none'"
            )


def settle(module: nn.Module) -> None:
    """Make quantised layers compute the same in training and evaluation, and share them safely between threads.

    On a CPU, bitsandbytes packs 4-bit weights anew when they are first used without a gradient, if the processor has
    AVX512-BF16: products are then rounded to bfloat16 and no gradient passes. 8-bit layers round their inputs, too, in
    evaluation and not in training. Layers in training mode do neither; dropout they have none.
    """
    for layer in quantized_layers(module).values():
        whole: Any = layer
        if whole.weight.device.type == "cpu":
            layer.train()
        if getattr(whole.weight, "CB", None) is not None:
            whole.init_8bit_state()  # else the first product takes it from the weight, which threads share


def quantized_state(module: nn.Module) -> Iterator[object]:
    """What quantised layers hold beside parameters and buffers, to be shared like these."""
    for layer in module.modules():
        for name in ("state", "quant_state"):
            if (held := getattr(layer, name, None)) is not None and not isinstance(held, nn.Module):
                yield held
