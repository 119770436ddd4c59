"""Named tensors as a Flower `ArrayRecord` and back. Nothing that was received is used before it is checked."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from numpy.lib import format as npy
from numpy.typing import NDArray
from torch import Tensor

from fedrot.core.adapter import Adapter
from fedrot.errors import AdapterError

NUMPY = "numpy.ndarray"
"""How Flower names the one serialisation that is accepted: NumPy's format, which is read without pickle."""

HEADER = 1024
"""Bytes that an array may be longer than its numbers; NumPy's header takes 128 for such shapes."""

Shape = tuple[int | None, ...]
"""Of an expected array; None for a dimension that the sender chooses, such as a rank."""


def to_arrays(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Tensors of any shape as a record with the same keys in the same order, in float32.

    Flower averages half precision in half precision and knows no bfloat16; adapters travel in float32.

    Raises:
        AdapterError: a tensor of another type.
    """
    arrays: dict[str, Array] = {}
    for key, tensor in tensors.items():
        if tensor.dtype != torch.float32:
            raise AdapterError(
                f"tensor {key!r} is {tensor.dtype}: adapters travel as torch.float32; convert it"
            )
        arrays[key] = Array(np.ascontiguousarray(tensor.detach().cpu().numpy()))
    return ArrayRecord(arrays)


def from_arrays(record: ArrayRecord, expected: Mapping[str, Shape], where: str) -> dict[str, Tensor]:
    """The tensors of a record, in the order of `expected`.

    Args:
        record: as received.
        expected: the shape of every tensor that must be there, and no other may.
        where: who sent it and in what, for messages.

    Raises:
        AdapterError: a key too many or too few, another serialisation, type, shape or length than expected. It says
            which, and is raised before numbers are read.
    """
    if unlike := [*(f"missing {k!r}" for k in expected if k not in record), *_unexpected(record, expected)]:
        more = f" and {len(unlike) - 3} more" if len(unlike) > 3 else ""
        raise AdapterError(
            f"{where} holds {len(record)} arrays, expected {len(expected)}: {', '.join(unlike[:3])}{more} "
            "(another recipe, base model or version of fedrot?)"
        )
    return {key: _tensor(record[key], shape, f"{where}: array {key!r}") for key, shape in expected.items()}


def shapes(tensors: Mapping[str, Tensor], *, rank_free: bool = False) -> dict[str, Shape]:
    """What `from_arrays` is to expect of tensors named as in `Adapter.tensors()`.

    Args:
        tensors: of one adapter.
        rank_free: the sender chooses the rank of every site.
    """
    found: dict[str, Shape] = {}
    for key, tensor in tensors.items():
        shape: list[int | None] = list(tensor.shape)
        if rank_free and not key.startswith("head/"):
            shape[-2 if key.endswith("/a") else -1] = None
        found[key] = tuple(shape)
    return found


def broadcast_shapes(record: ArrayRecord, like: Adapter) -> dict[str, Shape]:
    """What to expect of a broadcast: sites and head of `like`, at any rank, and a residual at any of the sites."""
    expected = shapes(like.tensors(), rank_free=True)
    for site, f in like.sites.items():
        if f"residual/{site}/a" in record or f"residual/{site}/b" in record:
            expected |= {f"residual/{site}/a": (None, f.d_in), f"residual/{site}/b": (f.d_out, None)}
    return expected


def read_array(array: Array, where: str) -> NDArray[Any]:
    """The numbers of an array, copied; its header is held against its length before any memory is taken.

    Raises:
        AdapterError: another serialisation than NumPy's, objects, or a header that does not fit.
    """
    if array.stype != NUMPY:
        raise AdapterError(f"{where} came in {array.stype!r}, expected {NUMPY!r}")
    try:
        header = _header(_header_bytes(array.data))
    except ValueError as error:
        raise AdapterError(f"{where} is not in NumPy's format ({error})") from error
    shape, dtype = header.shape, header.dtype
    numbers = math.prod(shape) * dtype.itemsize
    if dtype.hasobject or min(shape, default=0) < 0 or len(array.data) - header.end != numbers:
        raise AdapterError(
            f"{where} is {len(array.data)} bytes long, which does not fit its header: {dtype} {shape}"
        )
    values = np.frombuffer(array.data, dtype, offset=header.end)
    return values.reshape(shape, order="F" if header.fortran else "C").copy()


class _Header(NamedTuple):
    shape: tuple[int, ...]
    fortran: bool
    dtype: np.dtype[Any]
    end: int


def _header_bytes(data: bytes) -> bytes:
    """The start of an array up to its first number, as far as the array says itself; at most `HEADER` bytes."""
    width = 2 if data[6:8] == b"\x01\x00" else 4
    end = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    if end > HEADER:
        raise ValueError(f"a header of {end} bytes, expected {HEADER} at most")
    return data[:end]


@lru_cache(maxsize=1024)
def _header(start: bytes) -> _Header:
    """What a header says. Headers are few and come with every message, and reading one compiles Python."""
    stream = io.BytesIO(start)
    version = npy.read_magic(stream)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    return _Header(*read(stream), stream.tell())


def message_bytes(record: ArrayRecord) -> int:
    """Bytes of a record's arrays as they travel."""
    return sum(len(array.data) for array in record.values())


def _unexpected(record: ArrayRecord, expected: Mapping[str, Shape]) -> list[str]:
    return [f"unexpected {key!r}" for key in record if key not in expected]


def _tensor(array: Array, expected: Shape, where: str) -> Tensor:
    shape = tuple(array.shape)
    fits = len(shape) == len(expected) and all(e in (None, n) for n, e in zip(shape, expected, strict=True))
    if not fits or array.dtype != "float32" or array.stype != NUMPY:
        told = tuple("any" if size is None else size for size in expected)
        raise AdapterError(
            f"{where} came as {array.dtype} {shape} in {array.stype!r}, expected float32 {told} in {NUMPY!r}"
        )
    numbers = int(np.prod(shape, dtype=np.int64)) * 4
    if not numbers < len(array.data) <= numbers + HEADER:
        raise AdapterError(
            f"{where} is {len(array.data)} bytes long, expected {numbers} and a header of {HEADER} at most"
        )
    values = read_array(array, where)
    if values.shape != shape or values.dtype != np.float32:
        raise AdapterError(
            f"{where} holds {values.dtype} {values.shape}, which its own description does not say"
        )
    return torch.from_numpy(values)
