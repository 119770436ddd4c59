"""How long a comparison will take, from a few steps and one evaluation of its own recipes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedrot.client import Plan, Trained, plan_group, train_group
from fedrot.comparison.cells import expected_cells, remaining_cells
from fedrot.comparison.design import Design
from fedrot.comparison.server_step import step_seconds, timed_uploads
from fedrot.comparison.store import Store
from fedrot.config import RunConfig, TrainConfig
from fedrot.core.adapter import Adapter
from fedrot.crew import Halted
from fedrot.engines.local import in_process
from fedrot.engines.observer import Observer
from fedrot.engines.parts import Split
from fedrot.engines.rounds import run_round
from fedrot.engines.setup import Federation, prepare
from fedrot.engines.shared import frozen_key
from fedrot.evaluate import predict
from fedrot.server import ServerState, choose_clients
from fedrot.stacked import StackedModel

STEPS = 3
"""Local steps timed, after one to warm up."""


@dataclass(frozen=True)
class Pace:
    """Seconds that the parts of a run take."""

    setup: float
    """Data, base model and frozen states: once a worker and seed, since runs that follow share them."""
    step: float
    """One local step of one client, trained in the recipe's groups."""
    round: float
    """A round beside its local steps and evaluation: uploads, aggregation, measuring."""
    evaluation: float
    steps: float
    """Mean local steps of a client in a round, in the recipe that was timed."""
    shapes: Adapter
    """An adapter as the server holds it."""

    def seconds(self, config: RunConfig, clients: int, dearer: float = 0.0) -> float:
        """A run with `clients` a round, once it is set up.

        Args:
            config: the recipe.
            clients: of a round.
            dearer: by how much its server's step takes longer than that of the recipe that was timed.
        """
        rounds, every = config.federation.rounds, config.federation.evaluate_every
        steps = clients * (config.train.steps or self.steps)
        round = max(0.0, self.round + dearer)
        return rounds * (steps * self.step + round) + math.ceil(rounds / every) * self.evaluation


@dataclass(frozen=True)
class Budget:
    """What a comparison costs. Seconds are for one worker after another; `wall` shares them among `jobs`."""

    cells: int
    done: int
    jobs: int
    seconds: float
    by_arm: dict[str, float]
    """Seconds of one run that is set up, by variant and grid point."""
    setups: int
    """How often data, base model and frozen states are made ready."""
    setup: float
    """Seconds of that, each time, on average."""

    @property
    def wall(self) -> float:
        """Seconds that remain with `jobs` workers, if they do not slow each other down."""
        return self.seconds / min(self.jobs, max(1, self.cells - self.done))


def estimate_budget(
    design: Design, store: Store | None = None, *, jobs: int = 1, note: Callable[[str], None] = lambda _: None
) -> Budget:
    """Time the parts of every distinct recipe for some seconds and extrapolate to what is not done yet.

    Runs that differ in method, learning rate, rounds or numbers of local steps share one probe; it is taken with the
    threads that a worker has. Methods are not probed one by one: of each the server's step alone is timed, on drawn
    factors (see `step_seconds`), and the difference to that of the probed one is added to every round.
    """
    threads, before = max(1, torch.get_num_threads() // jobs), torch.get_num_threads()
    paces: dict[str, Pace] = {}
    steps: dict[str, float] = {}
    probed: dict[str, RunConfig] = {}
    by_arm: dict[str, float] = {}
    setups: dict[str, float] = {}
    seconds = 0.0
    total, done = expected_cells(design, store)
    torch.set_num_threads(threads)
    try:
        for arm, count in remaining_cells(design, store):
            config = design.config(arm.variant, arm.point, arm.candidates[0], design.seeds[0])
            if (key := _alike(config)) not in paces:
                note(f"timing {arm.name}")
                paces[key], probed[key] = probe(config), config
            clients = config.federation.clients
            taking_part = len(choose_clients(0, 1, clients, config.federation.fraction)) if clients else 1
            pace = paces[key]
            for one in (probed[key], config):
                if (method := key + _method(one)) not in steps:
                    note(_timing(one, timed_uploads(pace.shapes, taking_part), taking_part))
                    steps[method] = step_seconds(one, pace.shapes, taking_part)
            dearer = steps[key + _method(config)] - steps[key + _method(probed[key])]
            by_arm[arm.name] = pace.seconds(config, taking_part, dearer)
            seconds += count * by_arm[arm.name]
            for seed in design.seeds if count else ():
                shared = frozen_key(config.model_copy(update={"seed": seed}))
                setups.setdefault(shared, paces[key].setup)
    finally:
        torch.set_num_threads(before)
    times = (
        len(setups) + min(jobs, total - done) - 1 if setups else 0
    )  # at the end, workers help each other out
    setup = sum(setups.values()) / max(1, len(setups))
    return Budget(total, done, jobs, seconds + times * setup, by_arm, times, setup)


def _alike(config: RunConfig) -> str:
    """What decides the cost of a step, a round's overhead and an evaluation."""
    data = config.model_dump(include={"model", "lora", "task", "train", "partition", "federation"})
    for free in ("lr", "head_lr", "local_steps", "momentum", "weight_decay", "clip"):
        del data["train"][free]
    for free in ("rounds", "evaluate_every"):
        del data["federation"][free]
    if config.train.local_epochs is None:
        del data["partition"]
    return json.dumps(data, sort_keys=True)


def _method(config: RunConfig) -> str:
    """What decides the cost of a server's step, beside the adapter's shape and the number of uploads."""
    return json.dumps(config.model_dump(include={"method", "compat"}), sort_keys=True)


def _timing(config: RunConfig, timed: int, uploads: int) -> str:
    scaled = f" with {timed:,} of {uploads:,} uploads, taken in proportion" if timed < uploads else ""
    return f"timing the server's step of {config.method.name}{scaled}"


def probe(config: RunConfig) -> Pace:
    """Time the parts of a run."""
    start = time.perf_counter()
    federation = prepare(config)
    setup = time.perf_counter() - start
    filling = _Filling()
    try:
        evaluation = _time_evaluation(federation, filling)
        step, steps = _time_steps(federation, filling)
        short = config.model_copy(
            update={
                "train": config.train.model_copy(update={"local_steps": 1, "local_epochs": None}),
                "federation": config.federation.model_copy(update={"rounds": 2, "evaluate_every": 2}),
            }
        )
        chosen = choose_clients(config.seed, 1, federation.clients, config.federation.fraction)
        filling.rows(federation.train, _plan(federation, chosen, 1).rows)
        start = time.perf_counter()
        brief = replace(federation, config=short)
        _, record = run_round(brief, ServerState(0, brief.initial), in_process(brief, Observer()))
        round = time.perf_counter() - start - record["client_steps"] * step
    finally:
        federation.model.close()
    setup += filling.all(federation)
    return Pace(setup, step, max(0.0, round), evaluation, steps, federation.initial)


class _Filling:
    """Fills caches of frozen states ahead of what is timed, and times that by itself."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def rows(self, split: Split, rows: Tensor) -> None:
        """Have the states of these rows, if the recipe caches them."""
        if split.cache is not None:
            start = time.perf_counter()
            split.cache.ensure(rows.flatten())
            self.seconds += time.perf_counter() - start

    def all(self, federation: Federation) -> float:
        """Seconds for every row of every split, at the pace of those filled so far."""
        splits = federation.splits.values()
        filled = sum(int(s.data.lengths[s.cache.filled].sum()) for s in splits if s.cache is not None)
        return self.seconds * sum(int(s.data.lengths.sum()) for s in splits) / filled if filled else 0.0


def _time_evaluation(federation: Federation, filling: _Filling) -> float:
    """Seconds of one evaluation on the splits that are evaluated."""
    splits = list(federation.tested.values())
    for split in splits:
        filling.rows(split, torch.arange(len(split.data)))
    batch, seconds = federation.config.federation.evaluate_batch, 0.0
    for _ in range(2):  # the first warms up
        start = time.perf_counter()
        for split in splits:
            predict(
                federation.crew,
                federation.objective,
                federation.initial,
                split.data,
                batch=batch,
                cache=split.cache,
            )
        seconds = time.perf_counter() - start
    return seconds


def _plan(federation: Federation, clients: Sequence[int], steps: int | None) -> Plan:
    config = federation.config
    train = config.train
    if steps is not None:
        train = train.model_copy(update={"local_steps": steps, "local_epochs": None})
    rows = [federation.partition.rows[client] for client in clients]
    lengths = federation.train.data.lengths if train.bucket else None
    return plan_group(clients, rows, train, seed=config.seed, round=1, lengths=lengths)


def _time_steps(federation: Federation, filling: _Filling) -> tuple[float, float]:
    """Seconds of a client's local step while all workers train, and the mean number of steps of a client in a round."""
    config, crew, size = federation.config, federation.crew, federation.group_size
    chosen = choose_clients(config.seed, 1, federation.clients, config.federation.fraction)
    timed, seconds = chosen[: size * len(crew.models)], 0.0
    for count in (1, STEPS):
        plans = [_plan(federation, timed[at : at + size], count) for at in range(0, len(timed), size)]
        for plan in plans:
            filling.rows(federation.train, plan.rows)
        settings = config.train.model_copy(update={"local_steps": count, "local_epochs": None})

        def train(
            model: StackedModel, plan: Plan, halted: Halted, settings: TrainConfig = settings
        ) -> Trained:
            return train_group(
                model,
                federation.objective,
                federation.train.data,
                federation.initial,
                plan,
                settings,
                federation.method.trainable(1),
                federation.train.cache,
                halted=halted,
            )

        start = time.perf_counter()
        list(crew.map(train, plans))
        seconds = time.perf_counter() - start
        crew.unload()
    return seconds / (STEPS * len(timed)), float(_plan(federation, chosen, None).steps.float().mean())
