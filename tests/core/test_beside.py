"""Work side by side: order, errors, threads, and sums that are the same with any number of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from fedrot.core import Adapter, Factors, adapter_aggregation_error
from fedrot.core.adapter import stack
from fedrot.core.beside import LARGE, beside, on_all_threads, side_by_side
from fedrot.core.leading import leading
from fedrot.core.products import left_products, right_products
from fedrot.core.refit import refit
from fedrot.methods.base import Loading
from tests.core.strategies import normal


@pytest.fixture(autouse=True)
def _four_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def test_items_are_worked_on_at_the_same_time_in_threads_of_one_each_and_come_in_their_order() -> None:
    together = threading.Barrier(3, timeout=30)

    def work(item: int) -> tuple[int, int, str]:
        together.wait()  # breaks unless three are at work at once
        return item, torch.get_num_threads(), threading.current_thread().name

    with side_by_side(3):
        found = beside(work, [5, 6, 7])
        assert torch.get_num_threads() == 1
    assert [item for item, _, _ in found] == [5, 6, 7]
    assert {threads for _, threads, _ in found} == {1}
    assert len({name for _, _, name in found}) == 3
    assert torch.get_num_threads() == 4


def test_two_at_once_have_half_of_the_threads_each() -> None:
    with side_by_side(2):
        assert beside(lambda _: torch.get_num_threads(), [1, 2]) == [2, 2]
        with on_all_threads():
            assert torch.get_num_threads() == 4
            assert beside(lambda _: threading.current_thread(), [1, 2]) == [threading.main_thread()] * 2
        assert torch.get_num_threads() == 2


def test_outside_and_within_work_of_its_own_nothing_is_started() -> None:
    here = threading.current_thread()
    assert beside(lambda _: threading.current_thread(), [1, 2]) == [here] * 2

    def nested(_: int) -> bool:
        own = threading.current_thread()
        with side_by_side():
            return beside(lambda _: threading.current_thread(), [1, 2]) == [own, own]

    with side_by_side():
        assert beside(nested, [1, 2]) == [True, True]


def test_a_second_caller_does_its_work_alone_and_changes_nothing() -> None:
    seen: list[int] = []

    def other() -> None:
        with side_by_side(), on_all_threads():
            seen.append(torch.get_num_threads())

    with side_by_side():
        thread = threading.Thread(target=other)
        thread.start()
        thread.join()
    assert seen == [1]
    assert torch.get_num_threads() == 4


def test_an_error_is_raised_once_all_is_done_and_the_threads_come_back() -> None:
    def work(item: int) -> int:
        if item == 2:
            raise ValueError("two")
        return item

    with pytest.raises(ValueError, match="two"), side_by_side():
        beside(work, [1, 2, 3, 4])
    assert torch.get_num_threads() == 4
    with side_by_side():
        assert torch.get_num_threads() == 1


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_gradients_are_recorded_as_where_it_was_called(mode: type[torch.no_grad]) -> None:
    weight = torch.ones(1, requires_grad=True)
    with mode(), side_by_side():
        made = beside(lambda n: n * weight, [1, 2])
        assert [t.requires_grad for t in made] == [mode is torch.enable_grad] * 2
        assert [t.is_inference() for t in made] == [mode is torch.inference_mode] * 2


def clients(count: int, width: int = 768) -> list[Adapter]:
    """Large enough that threads are used."""
    made = [
        Adapter(
            {
                site: Factors(
                    normal(seed + index, 4, width).float(), normal(99 + seed + index, width, 4).float()
                )
                for index, site in enumerate("qv")
            }
        )
        for seed in range(0, 2 * count, 2)
    ]
    assert count * sum(t.numel() for t in made[0].tensors().values()) >= LARGE
    return made


def test_products_are_the_same_to_the_bit_with_any_number_of_threads() -> None:
    given = clients(53)
    shares = [(1 + index) / 1431 for index in range(53)]
    columns = {site: normal(7, 768, 6) for site in "qv"}
    rows = {site: x.mT for site, x in columns.items()}

    def both() -> list[Tensor]:
        found = [right_products(given, shares, columns), left_products(given, shares, rows)]
        return [part[site] for part in found for site in "qv"]

    with side_by_side():
        four = both()
    torch.set_num_threads(1)
    one = both()
    for mine, theirs, f in zip(four, one, ["q", "v", "q", "v"], strict=True):
        assert torch.equal(mine, theirs)
        assert mine.shape in {(768, 6), (6, 768)}
        dense = sum(
            p * c.sites[f].b.double() @ c.sites[f].a.double() for p, c in zip(shares, given, strict=True)
        )
        assert isinstance(dense, Tensor)
        expected = dense @ columns[f] if mine.shape == (768, 6) else rows[f] @ dense
        torch.testing.assert_close(mine, expected, rtol=1e-9, atol=1e-9)


def test_a_servers_step_is_the_same_with_one_thread() -> None:
    given = clients(24)

    def steps() -> list[Tensor]:
        start = given[0]
        found = [refit(given, [1.0] * 24, start), Adapter(leading(given, [1.0] * 24, start))]
        error = adapter_aggregation_error(given, [1.0] * 24)
        return [error.absolute, *(f.b @ f.a for adapter in found for f in adapter.sites.values())]

    four = steps()
    torch.set_num_threads(1)
    for mine, theirs in zip(four, steps(), strict=True):
        assert float((mine - theirs).norm() / theirs.norm()) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), float("-inf")])
def test_one_number_that_is_not_finite_is_found_in_every_precision(dtype: torch.dtype, wrong: float) -> None:
    largest = torch.finfo(dtype).max
    sound = Adapter({"q": Factors(torch.full((2, 5), largest, dtype=dtype), torch.zeros(3, 2, dtype=dtype))})
    spoiled = sound.map(torch.clone)
    spoiled.sites["q"].b[2, 1] = wrong
    assert sound.finite()
    assert not spoiled.finite()
    assert stack([sound, spoiled, sound]).finite(stacked=True).tolist() == [True, False, True]
    mixed = Adapter(sound.sites, head={"bias": torch.full((3,), 1e300, dtype=torch.float64)})
    assert mixed.finite(), "a number that only another tensor's precision cannot hold"


def test_tensors_without_numbers_are_finite() -> None:
    assert Adapter({}, head={"bias": torch.empty(0)}).finite()


def test_clients_that_are_loaded_when_asked_for_give_the_same_sums_to_the_bit() -> None:
    given, read = clients(53), []
    shares, columns = [1 / 53] * 53, {site: normal(7, 768, 6) for site in "qv"}

    def load(index: int) -> Adapter:
        read.append(index)
        return given[index]

    with side_by_side():
        held = right_products(given, shares, columns)
        loaded = right_products(Loading(load, 53), shares, columns)
    assert read == list(range(53)), "each once, in order"
    assert all(torch.equal(held[site], loaded[site]) for site in "qv")
