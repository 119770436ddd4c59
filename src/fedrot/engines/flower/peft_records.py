"""PEFT adapters as Flower's `ArrayRecord` and back."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from flwr.app import Array, ArrayRecord
from torch import Tensor

from fedrot.engines.flower.records import read_array
from fedrot.errors import AdapterError
from fedrot.model.peft_state import PeftState, open_state, stored_key, write_state

if TYPE_CHECKING:
    from fedrot.model.peft_state import PeftModel


def peft_to_record(adapter: str | Path | PeftModel) -> ArrayRecord:
    """A PEFT LoRA adapter as a record, in float32 under the keys of `get_peft_model_state_dict`.

    From a model the order is the model's, from a directory that of its file, which is sorted. Take the model's where
    clients must reply in the order they received, as Flower's clipping and noise do.

    Args:
        adapter: a directory with `adapter_config.json` and `adapter_model.safetensors`, or a model.

    Raises:
        ModelError: no LoRA adapter, or one whose ranks and alpha do not fit its tensors.
    """
    tensors = open_state(adapter, "adapter").tensors
    return ArrayRecord({key: Array(tensor.contiguous().numpy()) for key, tensor in tensors.items()})


def record_to_peft(record: ArrayRecord, directory: str | Path, like: str | Path | PeftModel) -> Path:
    """Write a record as a PEFT adapter that loads with `PeftModel.from_pretrained`; an adapter there is replaced.

    Args:
        record: what `peft_to_record` makes, or any strategy's result; keys may carry the adapter's name.
        directory: made if need be.
        like: the adapter that the federation started from, or the model: keys, shapes, rank and alpha are its.

    Returns:
        The directory.

    Raises:
        AdapterError: keys or shapes that differ from those of `like`, or numbers that are not finite.
        ModelError: `like` is no LoRA adapter, or nothing can be written.
    """
    expected = open_state(like, "like")
    where = f"the record for '{directory}'"
    found = {stored_key(key): array for key, array in record.items()}
    if unlike := sorted(found.keys() ^ expected.tensors.keys()):
        side = "the record lacks" if unlike[0] in expected.tensors else "the record alone has"
        raise AdapterError(
            f"{where} holds {len(record)} arrays, {expected.name} {len(expected.tensors)}: {side} {unlike[0]!r}; "
            "expected the keys of get_peft_model_state_dict(model); give a bare list its names first"
        )
    return write_state(
        directory, {key: _tensor(found[key], key, expected, where) for key in expected.tensors}, expected
    )


def _tensor(array: Array, key: str, expected: PeftState, where: str) -> Tensor:
    values = read_array(array, f"{where}: array {key!r}")
    shape = tuple(expected.tensors[key].shape)
    if values.shape != shape or values.dtype.kind != "f":
        raise AdapterError(
            f"{where}: {key!r} is {values.dtype} of shape {values.shape}, expected floating point numbers of shape "
            f"{shape} as in {expected.name}; was it trained with another rank or base model?"
        )
    if not np.isfinite(values).all():
        raise AdapterError(f"{where}: {key!r} holds numbers that are not finite; take an earlier round's")
    return torch.from_numpy(values.astype(np.float32))
