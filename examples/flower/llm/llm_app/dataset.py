"""Generated instructions with answers, one kind of word for every partition, and a tokenizer of characters."""

from __future__ import annotations

import random

import torch

ALPHABET = " abcdefghijklmnopqrstuvwxyz.?:\n"
ANIMALS = ["cat", "dog", "hen", "fox"]
FOODS = ["fish", "meat", "corn", "eggs"]


def texts(partition: int, count: int = 64) -> list[str]:
    """`what eats the cat?: fish.` Partitions ask about some animals more than about others."""
    draw = random.Random(partition)
    weights = [4 if partition >= 0 and i == partition % len(ANIMALS) else 1 for i in range(len(ANIMALS))]
    asked = draw.choices(range(len(ANIMALS)), weights, k=count)
    return [f"what eats the {ANIMALS[i]}?: {FOODS[i]}.\n" for i in asked]


def encode(rows: list[str], length: int) -> torch.Tensor:
    """Token ids, padded with spaces: `(rows, length)`."""
    return torch.tensor([[ALPHABET.index(c) for c in row[:length].ljust(length)] for row in rows])
