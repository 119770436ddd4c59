"""Tensors on the wire: what is sent comes back to the bit, and nothing else is let in."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedrot.engines.flower.records import from_arrays, shapes, to_arrays
from fedrot.errors import AdapterError

TENSORS = {"sites/x/a": torch.arange(6.0).reshape(2, 3), "head/w": torch.tensor([1.5, -2.0])}


def test_tensors_come_back_to_the_bit_in_order() -> None:
    odd = {**TENSORS, "sites/x/b": torch.randn(5, 4)[:, ::2].T, "head/empty": torch.zeros(0, 3)}
    back = from_arrays(to_arrays(odd), shapes(odd), "a test")
    assert list(back) == list(odd)
    for key, tensor in odd.items():
        assert torch.equal(back[key], tensor)


def test_half_precision_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"'head/w' is torch.bfloat16"):
        to_arrays({"head/w": torch.ones(2, dtype=torch.bfloat16)})


def test_a_free_rank_is_taken_from_the_sender_and_nothing_else_is() -> None:
    expected = shapes(TENSORS, rank_free=True)
    assert expected["sites/x/a"] == (None, 3)
    wider = {**TENSORS, "sites/x/a": torch.zeros(7, 3)}
    assert from_arrays(to_arrays(wider), expected, "a test")["sites/x/a"].shape == (7, 3)
    with pytest.raises(AdapterError, match=r"\(2, 4\).*expected float32 \('any', 3\)"):
        from_arrays(to_arrays({**TENSORS, "sites/x/a": torch.zeros(2, 4)}), expected, "a test")


def changed(array: Array, **facts: object) -> Array:
    parts = {"dtype": array.dtype, "shape": tuple(array.shape), "stype": array.stype, "data": array.data}
    return Array(**{**parts, **facts})  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda a: changed(a, stype="pickle"), "in 'pickle', expected float32"),
        (lambda a: changed(a, data=a.data[:-4]), "holds|bytes long"),
        (lambda a: changed(a, data=a.data + b"\0" * 4), "bytes long"),
        (lambda a: changed(a, data=b"\0" * len(a.data)), "not in NumPy's format"),
        (lambda a: changed(a, data=a.data + b"\0" * 10_000), "bytes long, expected 24"),
        (lambda a: changed(Array(np.zeros((3, 2), np.float32)), shape=(2, 3)), r"holds float32 \(3, 2\)"),
        (lambda a: changed(Array(np.zeros((2, 3), np.int32)), dtype="float32"), "holds int32"),
    ],
    ids=["pickle", "short", "long", "garbage", "far too long", "shape", "type"],
)
def test_an_array_that_is_not_what_it_says_is_refused(change: Callable[[Array], Array], said: str) -> None:
    record = to_arrays(TENSORS)
    forged = ArrayRecord({**record, "sites/x/a": change(record["sites/x/a"])})
    with pytest.raises(AdapterError, match=f"a test: array 'sites/x/a'.*({said})"):
        from_arrays(forged, shapes(TENSORS), "a test")
