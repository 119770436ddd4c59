"""Stacks of clients beside each other on the cores of a CPU: one base model, several threads, each with its own layers.

A product of matrices gains little from a second core where rows are few, and what lies between products (activations,
norms, attention of short texts) gains less still. Several stacks at once, a core each, keep all cores at work. The
threads share every weight of the base model; what they have of their own is the modules around the weights, in which
each holds its clients. What a stack computes depends on nothing but the stack, so the order of threads changes no bit.
"""

from __future__ import annotations

import copy
import itertools
import queue
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TypeVar

import torch

from fedrot.core.adapter import Adapter
from fedrot.core.beside import threads_each
from fedrot.model import BaseModel
from fedrot.model.quantization import quantized_state
from fedrot.stacked import StackedModel

Item = TypeVar("Item")
Result = TypeVar("Result")

Halted = Callable[[], bool]
"""Asked between steps; true once nobody waits for the result any more."""


@dataclass(frozen=True)
class Crew:
    """Models that train or evaluate beside each other; the first is the base model itself."""

    models: tuple[StackedModel, ...]
    threads: int
    """Of each model's own operations while all work."""

    @classmethod
    def of(cls, base: BaseModel, initial: Adapter, workers: int, *, dropout: float = 0.0) -> Crew:
        """`workers` stacked models on one base model, which must not be wrapped yet."""
        bases = [base, *(_twin(base) for _ in range(workers - 1))]
        models = tuple(StackedModel(each, initial, dropout=dropout) for each in bases)
        return cls(models, max(1, torch.get_num_threads() // workers))

    @property
    def lead(self) -> StackedModel:
        """The model for what is not shared out."""
        return self.models[0]

    def map(
        self, work: Callable[[StackedModel, Item, Halted], Result], items: Iterable[Item]
    ) -> Generator[Result]:
        """`work(model, item, halted)` of every item, in their order; at most two results a worker are waited with.

        An error of `work` is raised here. When the generator is closed early, items that were not begun are dropped,
        `halted` tells those under way to give up, and they are waited for. Whoever does more than collect the results
        holds it in `contextlib.closing`: else, after an error of theirs, threads are at work until it is collected.
        """
        if len(self.models) == 1:
            for item in items:
                yield work(self.lead, item, _never)
            return
        free: queue.SimpleQueue[StackedModel] = queue.SimpleQueue()
        for model in self.models:
            free.put(model)
        halt = threading.Event()

        def run(item: Item) -> Result:
            model = free.get()
            try:
                return work(model, item, halt.is_set)
            finally:
                free.put(model)

        waiting: deque[Future[Result]] = deque()
        with threads_each(self.threads), ThreadPoolExecutor(len(self.models), "crew") as pool:
            try:
                rest = iter(items)
                waiting.extend(
                    pool.submit(run, item) for item in itertools.islice(rest, 2 * len(self.models))
                )
                while waiting:
                    done = waiting.popleft().result()
                    waiting.extend(pool.submit(run, item) for item in itertools.islice(rest, 1))
                    yield done
            finally:
                halt.set()
                pool.shutdown(cancel_futures=True)

    def unload(self) -> None:
        """Hold no client and no residual, in any model."""
        for model in self.models:
            model.unload()


def _twin(base: BaseModel) -> BaseModel:
    """The same model with modules of its own around the very same parameters and buffers."""
    tensors = itertools.chain(base.module.parameters(), base.module.buffers())
    held = itertools.chain(tensors, quantized_state(base.module) if base.quantized else ())
    return replace(base, module=copy.deepcopy(base.module, {id(one): one for one in held}))


def _never() -> bool:
    return False
