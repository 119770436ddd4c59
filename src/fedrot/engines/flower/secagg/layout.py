"""Where the tensors of an upload lie in the one vector that is masked."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fedrot.errors import AdapterError, SecureAggregationError


@dataclass(frozen=True)
class Layout:
    """Names and shapes of the tensors that travel, at the server's rank, in order.

    Attributes:
        shapes: by name, as in `Adapter.tensors()`.
    """

    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """That of some tensors."""
        return cls({key: tuple(tensor.shape) for key, tensor in tensors.items()})

    @property
    def length(self) -> int:
        """Of the vector."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    def text(self) -> str:
        """As JSON; `read` is the inverse."""
        return json.dumps([[key, list(shape)] for key, shape in self.shapes.items()])

    @classmethod
    def read(cls, text: str) -> Layout:
        """A layout that the server sent.

        Raises:
            SecureAggregationError: something else.
        """
        try:
            entries = json.loads(text)
            shapes = {str(key): tuple(int(size) for size in shape) for key, shape in entries}
        except (TypeError, ValueError) as error:
            raise SecureAggregationError(f"a layout of tensors was expected, not {text[:80]!r}") from error
        if len(shapes) != len(entries) or any(size < 1 for shape in shapes.values() for size in shape):
            raise SecureAggregationError(f"the layout {text[:80]!r} repeats a name, or has an empty tensor")
        return cls(shapes)

    def pack(self, tensors: Mapping[str, Tensor], who: str) -> NDArray[np.float32]:
        """One client's tensors as a vector; a smaller rank is filled up with zeros, as the server would.

        Raises:
            AdapterError: other names, or a shape that does not fit.
        """
        if list(tensors) != list(self.shapes):
            unlike = sorted(set(tensors) ^ set(self.shapes)) or ["their order"]
            raise AdapterError(
                f"{who} uploads {len(tensors)} tensors, the server expects {len(self.shapes)}; the difference is "
                f"{', '.join(unlike[:3])} (another recipe or version of fedrot?)"
            )
        vector = np.zeros(self.length, np.float32)
        for (start, end), (key, tensor) in zip(self._spans(), tensors.items(), strict=True):
            shape, mine = self.shapes[key], tuple(tensor.shape)
            if not _fits(key, mine, shape):
                raise AdapterError(f"{who} uploads {key!r} of shape {mine}, the server expects {shape}")
            place = vector[start:end].reshape(shape)
            place[tuple(slice(0, size) for size in mine)] = tensor.detach().cpu().numpy()
        return vector

    def unpack(self, vector: NDArray[np.float64]) -> dict[str, Tensor]:
        """The tensors of a vector, in float32."""
        return {
            key: torch.from_numpy(vector[start:end].astype(np.float32)).reshape(shape)
            for (start, end), (key, shape) in zip(self._spans(), self.shapes.items(), strict=True)
        }

    def _spans(self) -> list[tuple[int, int]]:
        ends = [0]
        for shape in self.shapes.values():
            ends.append(ends[-1] + math.prod(shape))
        return list(pairwise(ends))

    def key_of(self, position: int) -> str:
        """The name of the tensor that holds a position of the vector."""
        spans = zip(self._spans(), self.shapes, strict=True)
        return next(key for (_, end), key in spans if position < end)


def _fits(key: str, mine: tuple[int, ...], server: tuple[int, ...]) -> bool:
    """Whether a client's tensor has the server's shape, but for a smaller rank."""
    if len(mine) != len(server):
        return False
    rank = None if key.startswith("head/") else (-2 if key.endswith("/a") else -1) % len(server)
    pairs = enumerate(zip(mine, server, strict=True))
    return all(m == s or (axis == rank and 0 < m < s) for axis, (m, s) in pairs)
