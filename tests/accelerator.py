"""A pretended accelerator: tensors that count as another device's, hold their numbers on the CPU, and note who waits.

Without a GPU at hand, code for one runs here as far as Python sees it: operands on two devices are refused as CUDA
refuses them, generators of the CPU draw nothing for it, and every operation after which a program would have to wait
for the device is noted with the place that asked for it. What it does not show are kernels, memory and speed.

The device is registered once and for good, and torch counts devices at its first backward pass. So this belongs into a
process of its own (`tests/on_accelerator.py`).
"""

from __future__ import annotations

import itertools
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

NAME = "pretended"
aten = torch.ops.aten

MIXED = {
    *[aten._to_copy.default, aten.copy_.default, aten.index.Tensor],
    *[aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default],
}
"""Operations that CUDA allows between its own tensors and those of the CPU."""

WAITING = {
    *[aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default],
    *[aten.nonzero.default, aten.masked_select.default, aten.bincount.default],
    *[aten._unique2.default, aten.unique_consecutive.default, aten.unique_dim.default],
    *[aten.repeat_interleave.Tensor, aten._linalg_check_errors.default],
    *[aten._linalg_svd.default, aten._linalg_eigh.default, aten._linalg_solve_ex.default],
}
"""Operations whose result, its size or its error the host has to know."""


class _Device(_DummyBackendModule):
    """What torch asks of a device's module."""

    def current_device(self) -> int:
        return 0

    def device_count(self) -> int:
        return 1

    def is_available(self) -> bool:
        return True

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16]

    def get_rng_state(self, device: object = None) -> Tensor:
        return torch.zeros(16, dtype=torch.uint8)

    def set_rng_state(self, state: Tensor, device: object = None) -> None:
        pass

    def manual_seed_all(self, seed: int) -> None:
        pass

    def _is_in_bad_fork(self) -> bool:
        return False


def register() -> torch.device:
    """Make the device known to torch, once in a process and before its first backward pass."""
    _setup_privateuseone_for_python_backend(NAME, backend_module=_Device())
    return torch.device(NAME, 0)


class Held(torch.Tensor):
    """A tensor of the pretended device; `raw` has its numbers."""

    raw: Tensor

    @staticmethod
    def __new__(cls, raw: Tensor) -> Held:
        """Around a tensor of the CPU."""
        options: dict[str, Any] = {"strides": raw.stride(), "storage_offset": raw.storage_offset()}
        held: Held = torch.Tensor._make_wrapper_subclass(
            cls, raw.size(), dtype=raw.dtype, device=torch.device(NAME, 0), **options
        )
        held.raw = raw
        return held

    def tolist(self) -> Any:
        """Of the numbers, which the host waits for."""
        if _WATCH:
            _WATCH[-1].note("tolist")
        return self.raw.tolist()

    @classmethod
    def __torch_dispatch__(
        cls, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        """Outside of `watched`, as in the backward pass' own threads."""
        return _run(func, args, kwargs or {})


@dataclass
class Waits:
    """Every wait: what for, and the functions that were under way, the innermost last."""

    seen: list[tuple[str, list[str]]] = field(default_factory=list)

    def note(self, what: str) -> None:
        stack = [(frame.f_code, line) for frame, line in traceback.walk_stack(None)]
        places = [f"{code.co_filename}:{line} {code.co_name}" for code, line in reversed(stack)]
        self.seen.append((what, [place for place in places if "accelerator" not in place]))

    def within(self, function: str) -> list[str]:
        """What was waited for in a function of fedrot: the operation and the innermost line of it."""
        asked = [
            (what, [place for place in places if "/torch/" not in place])
            for what, places in self.seen
            if any("/fedrot/" in place and place.endswith(f" {function}") for place in places)
        ]
        return [f"{what} at {places[-1]}" for what, places in asked]


_WATCH: list[Waits] = []


@contextmanager
def watched() -> Iterator[Waits]:
    """Within, tensors can be made on the device, and waits are noted."""
    waits, tensor = Waits(), torch.tensor

    def on_device(data: Any, *, device: Any = None, **options: Any) -> Tensor:
        made = tensor(data, **options)  # torch's own writes to the device without asking its kernels
        return made if device is None else made.to(device)

    _WATCH.append(waits)
    torch.tensor = on_device  # type: ignore[assignment]
    try:
        with _Mode():
            yield waits
    finally:
        torch.tensor = tensor
        _WATCH.pop()


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return _run(func, args, kwargs or {})


def _run(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    values = [*args, *kwargs.values()]
    within = [value for value in values if isinstance(value, (list, tuple))]
    tensors = [value for value in itertools.chain(values, *within) if isinstance(value, Tensor)]
    ours = [tensor for tensor in tensors if isinstance(tensor, Held)]
    asked = kwargs.get("device")
    stays = bool(ours) if asked is None else torch.device(asked).type == NAME
    if ours:
        _refuse(func, [tensor for tensor in tensors if not isinstance(tensor, Held)])
    if (ours or stays) and kwargs.get("generator") is not None:
        raise RuntimeError(f"{func}: a generator of the CPU draws nothing for '{NAME}'")
    if _WATCH and (ours or stays) and (what := _wait(func, args, kwargs, bool(ours), stays)):
        _WATCH[-1].note(what)
    options = dict(kwargs) if asked is None or not stays else {**kwargs, "device": torch.device("cpu")}
    out = func(*map(_raw, args), **{key: _raw(value) for key, value in options.items()})
    return return_and_correct_aliasing(func, args, kwargs, _held(out)) if stays else out


def _raw(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_raw(item) for item in value]
    return value.raw if isinstance(value, Held) else value


def _held(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_held(item) for item in value)
    return Held(value) if isinstance(value, Tensor) else value


def _refuse(func: Any, others: Sequence[Tensor]) -> None:
    if func not in MIXED and any(tensor.ndim for tensor in others):
        shapes = [tuple(tensor.shape) for tensor in others]
        raise RuntimeError(
            f"{func}: expected all tensors on '{NAME}', but those of shape {shapes} are on the CPU"
        )


def _wait(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], ours: bool, stays: bool) -> str | None:
    """What the host waits for in this operation, if it does."""
    if func is aten._to_copy.default and ours != stays:
        return "copy to the host" if ours else None if kwargs.get("non_blocking") else "copy to the device"
    if func is aten.copy_.default and isinstance(args[0], Held) != isinstance(args[1], Held):
        return "copy to the device" if isinstance(args[0], Held) else "copy to the host"
    if func in MIXED and ours and len(args) > 1 and not isinstance(args[1], Tensor):
        chosen = [index for index in args[1] if isinstance(index, Tensor)]
        if any(index.dtype in (torch.bool, torch.uint8) for index in chosen):
            return "how many numbers a mask chooses"
        return None if all(isinstance(index, Held) for index in chosen) else "row numbers from the host"
    return str(func) if ours and func in WAITING else None
