"""Work on the cores of a CPU side by side, for products too narrow to fill them from within.

A product whose smaller side is a rank gains next to nothing from a second thread. Several at once, a thread each, do:
torch leaves the interpreter in its operations, so that Python's threads suffice. Between them nothing may run on
several threads of torch's own: those go on spinning for milliseconds after each operation, on cores that are needed.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

LARGE = 2**18
"""Numbers to be read from which handing work to several threads gains more than it costs."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class _Team:
    pool: ThreadPoolExecutor
    threads: int


_TEAM: ContextVar[_Team | None] = ContextVar("team", default=None)
_TURN = threading.Lock()
"""How many threads torch uses is known to the whole process, so that one caller at a time may change it."""


@contextmanager
def side_by_side(at_once: int | None = None) -> Generator[None]:
    """Within, `beside` has several at work at once, and every operation its share of torch's threads.

    Changes nothing within another one, where torch has one thread, and while another thread of Python is in one. Also
    a decorator: `@side_by_side()`.

    Args:
        at_once: how many; by default as many as torch has threads.
    """
    threads = torch.get_num_threads()
    workers = min(threads, at_once or threads)
    if workers < 2 or _TEAM.get() or not _TURN.acquire(blocking=False):
        yield
        return
    try:
        with threads_each(threads // workers), ThreadPoolExecutor(workers, "beside") as pool:
            before = _TEAM.set(_Team(pool, threads))
            try:
                yield
            finally:
                _TEAM.reset(before)
    finally:
        _TURN.release()


@contextmanager
def on_all_threads() -> Generator[None]:
    """Within, operations use all threads again: for large products and decompositions inside `side_by_side`."""
    team = _TEAM.get()
    if team is None:
        yield
        return
    before = _TEAM.set(None)
    try:
        with threads_each(team.threads):
            yield
    finally:
        _TEAM.reset(before)


def on_cpu(tensors: Iterable[Tensor]) -> int:
    """How many numbers there are in those of the tensors that lie on the CPU."""
    return sum(tensor.numel() for tensor in tensors if tensor.device.type == "cpu")


def beside(work: Callable[[Item], Result], items: Sequence[Item], reads: int = LARGE) -> list[Result]:
    """`work(item)` of every item, in their order; inside `side_by_side` several at once. The first error is raised.

    >>> with side_by_side():
    ...     beside(lambda n: n * n, [1, 2, 3])
    [1, 4, 9]

    Args:
        work: what to do.
        items: with what.
        reads: numbers on the CPU that all of it reads; with less than `LARGE` one item comes after the other.
    """
    team = _TEAM.get()
    if team is None or len(items) < 2 or reads < LARGE:
        return [work(item) for item in items]
    recorded, inference = torch.is_grad_enabled(), torch.is_inference_mode_enabled()

    def alike(item: Item) -> Result:
        with torch.inference_mode(inference), torch.set_grad_enabled(recorded):
            return work(item)

    return list(team.pool.map(alike, items))


@contextmanager
def threads_each(count: int) -> Generator[None]:
    """Within, torch's operations use `count` threads, in threads that begin within too."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
