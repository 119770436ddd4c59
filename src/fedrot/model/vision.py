"""Image classifiers and their image processors."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import torch

from fedrot.errors import ConfigError, ModelError
from fedrot.model.complete import check_complete
from fedrot.model.locate import Files
from fedrot.model.words import first_line


def check_vision(path: str, pooling: str) -> None:
    """Refuse what image classifiers do not have, before anything is read.

    Raises:
        ConfigError: a pooling.
        ModelError: Pillow is not installed.
    """
    if pooling != "model":
        raise ConfigError(
            f"model.pooling = {pooling!r}: an image classifier pools in its own way; leave the key out"
        )
    if importlib.util.find_spec("PIL") is None:
        raise ModelError(
            f"model.path = {path!r}: images are read by the package pillow, which is not installed; run "
            "`pip install 'fedrot[image]'`"
        )


def read_vision(path: str, files: Files, labels: int, options: Mapping[str, Any]) -> tuple[Any, Any]:
    """Model and image processor, by transformers.

    A head of another number of classes is replaced by a new one. Pillow resizes, whatever else is installed, so that
    pixels are the same on every machine.

    Raises:
        ModelError: other weights are missing or of an unexpected shape, or the model does not take the processor's
            images.
    """
    import transformers

    processor = transformers.AutoImageProcessor.from_pretrained(files.path, backend="pil")
    settings = transformers.AutoConfig.from_pretrained(files.path, num_labels=labels)
    module, report = transformers.AutoModelForImageClassification.from_pretrained(
        files.path, config=settings, ignore_mismatched_sizes=True, output_loading_info=True, **options
    )
    check_complete(path, module, report, labels)
    _try(path, module, processor)
    return module, processor


@torch.no_grad()
def _try(path: str, module: Any, processor: Any) -> None:
    """Put one black picture through both."""
    import numpy as np

    picture = np.zeros((64, 64, 3), dtype=np.uint8)
    weight = next(module.parameters())
    try:
        pixels = processor(picture, return_tensors="pt")["pixel_values"]
        module(pixel_values=pixels.to(weight))
    except (ValueError, RuntimeError, TypeError, KeyError) as error:
        raise ModelError(
            f"model.path = {path!r}: the model does not take the colour images that its preprocessor_config.json "
            f"makes; expected a processor and a model of one size and three channels ({first_line(error)})"
        ) from error
