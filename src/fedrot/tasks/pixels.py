"""Images as pixels of one size, stored as bytes, and the batches gathered from them."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from fedrot.errors import ConfigError, DataError, ModelError
from fedrot.tasks.batch import Asked
from fedrot.tasks.columns import column_values
from fedrot.tasks.images import IMAGE, ORIGIN, content_of

if TYPE_CHECKING:
    from datasets import Dataset

_CHUNK = 256


class ImageBatch(NamedTuple):
    """`n` images: `pixel_values: (n, channels, height, width)` float32, labels and row numbers `(n,)` int64."""

    pixel_values: Tensor
    labels: Tensor
    rows: Tensor
    mask: None = None
    padding: None = None
    asked: Asked | None = None

    @property
    def inputs(self) -> dict[str, Tensor]:
        """See `Batch`."""
        return {"pixel_values": self.pixel_values}

    @property
    def where(self) -> Tensor:
        """The images themselves: all their hidden states are kept or none."""
        return self.rows


@dataclass(frozen=True, eq=False)
class EncodedImages:
    """`n` images; a model sees `pixels * factor + shift`.

    Attributes:
        pixels: `(n, channels, height, width)` uint8.
        factor, shift: `(channels, 1, 1)` float32.
        labels: `(n,)` int64.
        lengths, counts: `(n,)` ones, on the CPU: all images are alike.
    """

    pixels: Tensor
    factor: Tensor
    shift: Tensor
    labels: Tensor
    truncated: int = 0
    lengths: Tensor = field(init=False)
    counts: Tensor = field(init=False)

    def __post_init__(self) -> None:
        ones = torch.ones(len(self.labels), dtype=torch.long)
        object.__setattr__(self, "lengths", ones)
        object.__setattr__(self, "counts", ones)

    def __len__(self) -> int:
        return self.labels.shape[0]

    @property
    def device(self) -> torch.device:
        """Where batches are gathered."""
        return self.pixels.device

    @property
    def longest(self) -> int:
        """See `Encoded`: an image is one sequence, as long as the model makes it."""
        return int(len(self) > 0)

    @property
    def places(self) -> int:
        """Images, over which `ImageBatch.where` counts."""
        return len(self)

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """See `Encoded`."""
        return self.pixels, self.factor, self.shift, self.labels

    def to(self, device: torch.device | str) -> EncodedImages:
        """The same on another device. `lengths` and `counts` stay where they are."""
        moved = copy(self)
        for name in ("pixels", "factor", "shift", "labels"):
            object.__setattr__(moved, name, getattr(self, name).to(device))
        return moved

    def batch(self, rows: Tensor, *, clients: int = 1) -> ImageBatch:  # noqa: ARG002
        """The images `rows: (n,)`, repeats allowed. Rows on the CPU cost no wait for the device."""
        rows = rows.to(self.device, non_blocking=True)
        values = torch.addcmul(self.shift, self.pixels[rows].to(self.factor.dtype), self.factor)
        return ImageBatch(values, self.labels[rows], rows)

    def unpacked(self, rows: Tensor) -> ImageBatch:
        """The same: images share nothing."""
        return self.batch(rows)


def encode_images(dataset: Dataset, processor: Any, limit_mb: int) -> EncodedImages:
    """Decode every image once, in colour, and resize and crop it as the model's image processor says.

    What the processor does with numbers afterwards (rescaling, normalisation) is one product and one sum, which is left
    to the batches, so that an image takes a byte for each of its numbers. EXIF orientation is applied.

    Args:
        dataset: with the columns of `image_columns`.
        processor: of transformers.
        limit_mb: largest size of a split.

    Raises:
        ConfigError: the images would exceed `limit_mb`.
        DataError: an unreadable image (named), or images that come out in different sizes.
        ModelError: a processor that does more to the numbers.
    """
    factor, shift, size = _arithmetic(processor)
    needed = len(dataset) * size.numel() / 2**20
    if needed > limit_mb:
        raise ConfigError(
            f"task.image_limit_mb = {limit_mb}: {len(dataset)} images of {_shown(size)} take {needed:.0f} MiB; "
            "raise the limit, or lower task.max_train, task.max_test or task.max_validation"
        )
    pixels = torch.empty(len(dataset), *size, dtype=torch.uint8)
    columns = dataset.select_columns([IMAGE, ORIGIN])
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(dataset), _CHUNK):
            rows = columns[start : start + _CHUNK]
            made = list(pool.map(lambda *row: _pixels(processor, *row), rows[IMAGE], rows[ORIGIN]))
            _check_sizes(made, rows[ORIGIN], size)
            pixels[start : start + len(made)] = torch.stack(made)
    labels = torch.tensor(column_values(dataset, "label"), dtype=torch.long)
    return EncodedImages(pixels, factor, shift, labels)


def _pixels(processor: Any, record: dict[str, Any], origin: str) -> Tensor:
    """An image as `(channels, height, width)` uint8."""
    return _resized(processor, _decoded(content_of(record, origin), origin))


def _decoded(content: bytes, origin: str) -> Any:
    """A picture in colour, upright."""
    from PIL import Image, ImageOps

    try:
        picture = Image.open(io.BytesIO(content))
        picture.load()
        mode = picture.mode
        upright = ImageOps.exif_transpose(picture)
    except Exception as error:  # readers of damaged files raise errors of many unrelated classes
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{origin}: not a readable image ({reason}); mend or remove it") from error
    if mode == "F" or mode.startswith("I"):
        raise DataError(
            f"{origin}: an image of more than 8 bits a channel (mode {mode!r}); save it with 8, so that nothing is "
            "clipped"
        )
    # A palette may hold transparent colours, which RGB alone cannot tell.
    return (upright.convert("RGBA") if mode == "P" else upright).convert("RGB")


def _resized(processor: Any, picture: Any) -> Tensor:
    import numpy as np

    made = processor(
        np.asarray(picture),
        input_data_format="channels_last",
        do_rescale=False,
        do_normalize=False,
        return_tensors="np",
    )["pixel_values"][0]
    return torch.from_numpy(np.ascontiguousarray(made))


def _arithmetic(processor: Any) -> tuple[Tensor, Tensor, torch.Size]:
    """What the processor does with numbers, and the size it gives, tried on a picture.

    Raises:
        ModelError: it does not agree with the processor's own result.
    """
    import numpy as np
    from PIL import Image

    picture = Image.linear_gradient("L").convert("RGB")
    made = _resized(processor, picture)
    scale = float(processor.rescale_factor) if getattr(processor, "do_rescale", False) else 1.0
    mean, deviation = torch.zeros(made.shape[0]), torch.ones(made.shape[0])
    if getattr(processor, "do_normalize", False):
        mean = torch.tensor(processor.image_mean, dtype=torch.float64).expand(made.shape[0])
        deviation = torch.tensor(processor.image_std, dtype=torch.float64).expand(made.shape[0])
    factor = (scale / deviation).float().view(-1, 1, 1)
    shift = (-mean / deviation).float().view(-1, 1, 1)
    whole = processor(np.asarray(picture), input_data_format="channels_last", return_tensors="np")[
        "pixel_values"
    ][0]
    ours = torch.addcmul(shift, made.float(), factor)
    if made.dtype != torch.uint8 or not torch.allclose(ours, torch.from_numpy(whole).float(), atol=1e-4):
        raise ModelError(
            f"model.path: its image processor ({type(processor).__name__}) does more than resize, crop, rescale and "
            "normalise; images for it cannot be prepared once and kept as bytes"
        )
    return factor, shift, made.shape


def _check_sizes(images: Sequence[Tensor], origins: Sequence[str], size: torch.Size) -> None:
    for image, origin in zip(images, origins, strict=True):
        if image.shape != size:
            raise DataError(
                f"{origin}: the model's image processor makes it {_shown(image.shape)}, others {_shown(size)}; "
                f"give images of one size, or a processor that resizes to one (do_resize, "
                "size in preprocessor_config.json)"
            )


def _shown(size: torch.Size) -> str:
    return " x ".join(map(str, size))
