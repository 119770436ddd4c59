"""A few small pictures with classes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

CLASSES = ("bright", "dark", "striped")


def draw(path: Path, count: int, seed: int = 0) -> Path:
    """A folder with one folder for each class, `count` noisy pictures of 8 x 8 in each."""
    from PIL import Image

    noise = np.random.default_rng(seed)
    for name in CLASSES:
        (path / name).mkdir(parents=True)
        for number in range(count):
            picture = noise.integers(0, 90, (8, 8, 3), dtype=np.uint8)
            if name != "dark":
                picture[:: 1 if name == "bright" else 2] += 150
            Image.fromarray(picture).save(path / name / f"{number}.png")
    return path
