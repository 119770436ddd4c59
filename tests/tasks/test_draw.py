"""A client's batches: full, fair, and a function of the generator alone."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrot.core.rng import generator
from fedrot.errors import DataError
from fedrot.tasks import draw_epochs, draw_rows

sizes = st.integers(1, 40)


@settings(deadline=None, max_examples=60)
@given(count=sizes, steps=sizes, batch=st.integers(1, 16), seed=st.integers(0, 2**31))
def test_each_example_is_drawn_equally_often_give_or_take_one(
    count: int, steps: int, batch: int, seed: int
) -> None:
    rows = torch.arange(count) * 3 + 100
    drawn = draw_rows(rows, steps, batch, generator(seed, "batches"))
    assert drawn.shape == (steps, batch)
    times = (drawn.flatten().unsqueeze(1) == rows).sum(0)
    assert int(times.sum()) == steps * batch
    assert int(times.max() - times.min()) <= 1
    whole_passes = drawn.flatten()[: steps * batch // count * count].view(-1, count)
    assert torch.equal(whole_passes.sort(1).values, rows.expand_as(whole_passes))


@settings(deadline=None, max_examples=60)
@given(count=sizes, epochs=st.integers(1, 4), batch=st.integers(1, 16), seed=st.integers(0, 2**31))
def test_an_epoch_meets_every_example_once(count: int, epochs: int, batch: int, seed: int) -> None:
    rows = torch.arange(count) * 3 + 100
    drawn, valid = draw_epochs(rows, epochs, batch, generator(seed, "batches"))
    steps = -(-count // batch)
    assert drawn.shape == valid.shape == (epochs * steps, batch)
    for epoch_rows, epoch_valid in zip(drawn.split(steps), valid.split(steps), strict=True):
        assert torch.equal(epoch_rows[epoch_valid].sort().values, rows)
        assert bool(epoch_valid[:, 0].all())
    assert bool(torch.isin(drawn, rows).all())


def test_the_generator_alone_decides() -> None:
    rows = torch.arange(30)
    torch.manual_seed(1)
    once = draw_rows(rows, 5, 8, generator(3, "batches", 2, 7))
    torch.manual_seed(2)
    assert torch.equal(once, draw_rows(rows, 5, 8, generator(3, "batches", 2, 7)))
    assert not torch.equal(once, draw_rows(rows, 5, 8, generator(3, "batches", 2, 8)))


def test_passes_are_reshuffled() -> None:
    first, second = draw_rows(torch.arange(30), 2, 30, generator(3, "batches"))
    assert not torch.equal(first, second)


def test_a_client_without_examples_is_refused() -> None:
    empty = torch.empty(0, dtype=torch.long)
    with pytest.raises(DataError, match=r"without examples.*partition\.min_size"):
        draw_rows(empty, 1, 1, generator(0, "batches"))
    with pytest.raises(DataError, match=r"without examples"):
        draw_epochs(empty, 1, 1, generator(0, "batches"))
    with pytest.raises(DataError, match="steps = 0: expected at least 1"):
        draw_rows(torch.arange(3), 0, 1, generator(0, "batches"))
