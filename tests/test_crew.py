"""Stacks that train beside each other: the same numbers to the bit, one set of weights, and a clean way out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fedrot.client import Plan, plan_group, train_group
from fedrot.config import RunConfig
from fedrot.core.adapter import Factors
from fedrot.crew import Crew, Halted
from fedrot.engines import rounds, training
from fedrot.engines.groups import choose_workers, group_on_cpu
from fedrot.engines.observer import Observer
from fedrot.engines.run import run
from fedrot.engines.setup import Federation, prepare
from fedrot.errors import ConfigError, Interrupted
from fedrot.methods.base import Trainable
from fedrot.stacked import StackedModel

Make = Callable[..., RunConfig]


@pytest.fixture
def threads(request: pytest.FixtureRequest) -> Iterator[None]:
    """Two threads for torch, so that `auto` has something to choose from; or as many as are asked for."""
    before = torch.get_num_threads()
    torch.set_num_threads(getattr(request, "param", 2))
    yield
    torch.set_num_threads(before)


def crew_of(recipe: Make, workers: int = 2, **options: Any) -> Federation:
    return prepare(recipe(federation__workers=workers, **options))


def test_workers_share_every_weight_of_the_base_model(recipe: Make) -> None:
    lead, twin = crew_of(recipe).crew.models
    one, other = dict(lead.module.named_parameters()), dict(twin.module.named_parameters())
    assert one.keys() == other.keys()
    assert all(other[name] is parameter for name, parameter in one.items())
    assert lead.module is not twin.module
    assert {id(module) for module in lead.module.modules()}.isdisjoint(map(id, twin.module.modules()))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lora__dropout": 0.3},
        {"lora__layers": "last:1", "train__cache_frozen": True},
        {"train__local_epochs": 2, "train__local_steps": None},
        {"method": {"name": "fedex"}},
        {"method": {"name": "fedsa"}},
        {"federation__stale": 0.5, "federation__dropout": 0.2, "federation__rounds": 4},
    ],
    ids=["plain", "dropout", "cached", "epochs", "residual", "personal", "stale"],
)
@pytest.mark.parametrize(
    "threads", [1], indirect=True
)  # else a single worker's products would use more of them
@pytest.mark.usefixtures("threads")
def test_the_number_of_workers_changes_no_bit(recipe: Make, tmp_path: Path, options: dict[str, Any]) -> None:
    settings = {"federation__group_size": 1, "train__local_steps": 2} | options
    alone, beside = (
        run(recipe(federation__workers=workers, **settings), out=tmp_path / str(workers))
        for workers in (1, 3)
    )
    clock = {"seconds", "training_seconds"}
    for one, other in zip(alone.records, beside.records, strict=True):
        assert {k: v for k, v in one.items() if k not in clock} == {
            k: v for k, v in other.items() if k not in clock
        }
    tensors = beside.adapter.tensors()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in alone.adapter.tensors().items())


def test_results_come_in_order_and_few_wait(recipe: Make) -> None:
    crew, begun = crew_of(recipe).crew, list[int]()

    def work(model: StackedModel, item: int, halted: Halted) -> int:
        begun.append(item)
        time.sleep(0.02 if item % 2 else 0.0)
        return item

    seen = list[int]()
    for result in crew.map(work, range(20)):
        seen.append(result)
        assert len(begun) <= len(seen) + 4, "two results a worker may wait"
    assert seen == list(range(20))


def test_every_thread_has_a_model_of_its_own(recipe: Make) -> None:
    crew, meet = crew_of(recipe).crew, threading.Barrier(2, timeout=20)

    def work(model: StackedModel, item: int, halted: Halted) -> StackedModel:
        meet.wait()
        return model

    assert set(crew.map(work, range(2))) == set(crew.models)


def test_an_error_ends_the_others_and_is_told(recipe: Make) -> None:
    crew, given_up = crew_of(recipe).crew, threading.Event()

    def work(model: StackedModel, item: int, halted: Halted) -> int:
        if item == 0:
            raise ValueError("nothing to learn")
        while not halted():
            time.sleep(0.001)
        given_up.set()
        raise Interrupted

    with pytest.raises(ValueError, match="nothing to learn"):
        list(crew.map(work, range(50)))
    assert given_up.is_set()


def test_training_gives_up_between_steps(recipe: Make) -> None:
    federation = prepare(recipe())
    plan = plan_group([0], [federation.partition.rows[0]], federation.config.train, seed=0, round=1)
    with pytest.raises(Interrupted, match="after 2 of 3 local steps"):
        train_group(
            federation.model,
            federation.objective,
            federation.train.data,
            federation.initial,
            plan,
            federation.config.train,
            Trainable(),
            halted=iter([False, False, True]).__next__,
        )


def test_an_interruption_does_not_wait_for_the_clients(
    recipe: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, begun, ended = training.train_group, list[Plan](), list[type[BaseException]]()

    def lasting(*args: Any, halted: Halted, **keys: Any) -> Any:
        """In round 2 the first client trains as ever; the others take until they are told to give up, or 20 s."""
        begun.append(args[4])
        if len(begun) > 4 and 0 not in args[4].clients:
            until = time.monotonic() + 20
            while not halted() and time.monotonic() < until:
                time.sleep(0.001)
        try:
            return original(*args, halted=halted, **keys)
        except Interrupted as error:
            ended.append(type(error))
            raise

    finish, at_work = rounds.finish, list[str]()

    def finishing(*args: Any, **keys: Any) -> Any:
        at_work.extend(thread.name for thread in threading.enumerate() if thread.name.startswith("crew"))
        return finish(*args, **keys)

    class Stop(Observer):
        def trained(self, round: int, done: int, chosen: int) -> None:
            if round == 2:
                raise KeyboardInterrupt

    monkeypatch.setattr(training, "train_group", lasting)
    monkeypatch.setattr(rounds, "finish", finishing)
    settings = {"federation__group_size": 1, "federation__workers": 2}
    with pytest.raises(KeyboardInterrupt):
        run(recipe(**settings), out=tmp_path / "run", observer=Stop())
    assert ended, "clients under way gave up"
    assert not at_work, "and were waited for before the run was brought to its end"
    monkeypatch.undo()
    whole = run(recipe(**settings), out=tmp_path / "whole")
    resumed = run(None, out=tmp_path / "run", resume=True)
    tensors = whole.adapter.tensors()
    assert all(torch.equal(tensor, tensors[key]) for key, tensor in resumed.adapter.tensors().items())


def test_a_residual_is_folded_by_every_worker(recipe: Make) -> None:
    federation = crew_of(recipe, lora__layers="last:1")
    site, factors = next(iter(federation.initial.sites.items()))
    draw = torch.Generator().manual_seed(0)  # not constant: inputs have been normed, and sum to zero
    residual = {site: Factors(*(torch.randn(t.shape, generator=draw) for t in (factors.a, factors.b)))}
    batch = federation.test.data.batch(torch.arange(4))
    start = federation.initial.expand(1)

    def logits(model: StackedModel, item: Any, halted: Halted) -> Tensor:
        model.load(start, residual=residual)
        return model.logits(batch).detach()

    for model in federation.crew.models:
        torch.testing.assert_close(logits(model, None, bool), logits(federation.model, None, bool))
    folded = logits(federation.crew.models[1], None, bool)
    federation.crew.unload()
    bare = federation.crew.models[1].logits(batch)
    assert not torch.allclose(folded, bare)
    torch.testing.assert_close(bare, federation.model.logits(batch))


@pytest.mark.usefixtures("threads")
def test_the_choice_is_recorded_and_resumed(recipe: Make, tmp_path: Path) -> None:
    result = run(recipe(train__batch_size=1), out=tmp_path / "run")
    stored = (result.directory / "config.toml").read_text("utf-8")
    assert "workers = 2" in stored
    assert "group_size = 2" in stored, "four clients, two workers"
    torch.set_num_threads(1)
    longer = run(recipe(train__batch_size=1, federation__rounds=3), out=tmp_path / "run", resume=True)
    assert len(longer.records) == 3


@pytest.mark.usefixtures("threads")
def test_workers_go_by_threads_clients_and_device(recipe: Make) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert choose_workers(recipe(), cpu) == 2
    assert choose_workers(recipe(federation__fraction=0.25), cpu) == 1, "one client a round"
    assert choose_workers(recipe(federation__workers=3), cpu) == 3
    assert choose_workers(recipe(), gpu) == 1
    assert choose_workers(recipe(engine={"name": "flower"}), cpu) == 1
    with pytest.raises(ConfigError, match=r"federation\.workers = 3: one stack .* set 1 or 'auto'"):
        choose_workers(recipe(federation__workers=3), gpu)


@pytest.mark.parametrize(
    ("clients", "batch", "workers", "size"),
    [
        (10, 4, 1, 10),
        (25, 4, 1, 10),
        (10, 4, 2, 5),
        (10, 8, 2, 5),
        (25, 4, 2, 7),
        (100, 8, 2, 5),
        (3, 8, 2, 2),
    ],
)
def test_groups_are_even(recipe: Make, clients: int, batch: int, workers: int, size: int) -> None:
    config = recipe(federation__clients=clients, train__batch_size=batch)
    assert group_on_cpu(config, clients, workers) == size


def test_an_unwrapped_base_is_left_as_it_was(recipe: Make) -> None:
    federation = crew_of(recipe)
    federation.crew.lead.close()
    again = Crew.of(federation.base, federation.initial, 2)
    batch = federation.test.data.batch(torch.arange(3))
    held = replace(federation.initial, residual={}).expand(1)
    found = []
    for model in again.models:
        model.load(held)
        found.append(model.logits(batch).detach())
    torch.testing.assert_close(found[0], found[1])
