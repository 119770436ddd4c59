"""Uploads that are loaded one by one: memory stays flat however many there are."""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import overload

import pytest
import torch

from fedrot.core import weighted_mean
from fedrot.errors import AdapterError
from fedrot.methods import Method, MethodState, Update, build
from tests.methods.rounds import received, same, train


class Stored(Sequence[Update]):
    """Updates that exist only while somebody holds them; counts how many do."""

    def __init__(self, method: Method, count: int, numbers: Sequence[int] | None = None) -> None:
        self.method, self.numbers = method, numbers or range(count)
        self.start = received()
        self.alive = self.most = self.loads = 0

    def __len__(self) -> int:
        return len(self.numbers)

    @overload
    def __getitem__(self, index: int) -> Update: ...
    @overload
    def __getitem__(self, index: slice) -> list[Update]: ...
    def __getitem__(self, index: int | slice) -> Update | list[Update]:
        if isinstance(index, slice):
            return [self[i] for i in range(len(self))[index]]
        client = self.numbers[index]
        adapter = train(self.method, self.start, client % 7)
        self.alive += 1
        self.loads += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(adapter.sites["layers.0.q"].a, self._gone)
        return Update(client, adapter, 1.0 + client % 3)

    def _gone(self) -> None:
        self.alive -= 1


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fedit", {}),
        ("ffa", {}),
        ("fedrot", {}),
        ("fedsa", {}),
        ("fedit", {"refit": 1}),
        ("hetlora", {}),
        ("lora-fair", {}),
    ],
)
def test_memory_does_not_grow_with_the_number_of_clients(name: str, options: dict[str, object]) -> None:
    method = build(name, options, seed=11)
    few, many = Stored(method, 5), Stored(method, 60)
    for stored in (few, many):
        method.aggregate(stored, stored.start, MethodState(), 2)
        assert stored.alive == 0
    assert many.most == few.most <= 4


def test_a_lazy_sequence_averages_like_a_list_and_is_read_twice() -> None:
    method = build("fedit", {}, seed=11)
    stored = Stored(method, 9, numbers=(4, 2, 8, 0, 1, 7, 3))
    lazily, _ = method.aggregate(stored, stored.start, MethodState(), 2)
    assert stored.loads == 2 * len(stored)
    at_once, _ = method.aggregate(list(stored), stored.start, MethodState(), 2)
    assert same(lazily, at_once)


def test_an_update_that_does_not_fit_is_refused_when_it_is_loaded() -> None:
    method = build("fedit", {}, seed=11)

    class Broken(Stored):
        def __getitem__(self, index: int | slice) -> Update | list[Update]:  # type: ignore[override]
            update = super().__getitem__(index)
            if isinstance(update, Update) and update.client == 3:
                return Update(3, update.adapter.map(torch.Tensor.double), 1.0)
            return update

    stored = Broken(method, 5)
    with pytest.raises(AdapterError, match="client 3 sent"):
        method.aggregate(stored, stored.start, MethodState(), 2)
    with pytest.raises(AdapterError, match="client 2 sent two"):
        method.aggregate(Stored(method, 2, (2, 2)), stored.start, MethodState(), 2)


def test_the_streamed_mean_is_the_mean() -> None:
    method = build("fedit", {}, seed=11)
    stored = Stored(method, 6)
    updates = list(stored)
    mean = weighted_mean([u.adapter for u in updates], [u.weight for u in updates])
    assert same(method.aggregate(stored, stored.start, MethodState(), 2)[0], mean, 1e-6)
