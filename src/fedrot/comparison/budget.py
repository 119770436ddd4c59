"""How long a comparison will take, from a few steps and one evaluation of its own recipes."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch

from fedrot.client import plan_group, train_group
from fedrot.comparison.design import Arm, Design
from fedrot.comparison.run import expected_cells, remaining_cells
from fedrot.comparison.store import Store
from fedrot.config import RunConfig
from fedrot.engines.local import run_round
from fedrot.engines.observer import Observer
from fedrot.engines.setup import Federation, prepare
from fedrot.evaluate import evaluate
from fedrot.server import ServerState, choose_clients

STEPS = 3
"""Local steps timed, after one to warm up."""


@dataclass(frozen=True)
class Pace:
    """Seconds that the parts of a run take."""

    setup: float
    step: float
    """One local step of one client, trained in the recipe's groups."""
    round: float
    """A round beside its local steps and evaluation: uploads, aggregation, measuring."""
    evaluation: float

    def seconds(self, config: RunConfig, clients: int, steps: float) -> float:
        """A run with `clients` a round that take `steps` local steps on average."""
        rounds, every = config.federation.rounds, config.federation.evaluate_every
        evaluations = math.ceil(rounds / every)
        return (
            self.setup + rounds * (clients * steps * self.step + self.round) + evaluations * self.evaluation
        )


@dataclass(frozen=True)
class Budget:
    """What a comparison costs. Seconds are for one worker after another; `wall` shares them among `jobs`."""

    cells: int
    done: int
    jobs: int
    seconds: float
    by_arm: dict[str, float]
    """Seconds of one run, by variant and grid point."""

    @property
    def wall(self) -> float:
        """Seconds that remain with `jobs` workers, if they do not slow each other down."""
        return self.seconds / min(self.jobs, max(1, self.cells - self.done))


def estimate_budget(
    design: Design, store: Store | None = None, *, jobs: int = 1, note: Callable[[str], None] = lambda _: None
) -> Budget:
    """Time the parts of every distinct recipe for some seconds and extrapolate to what is not done yet.

    Runs that differ in method, learning rate, rounds or numbers of clients and steps share one probe; it is taken with
    the threads that a worker has. Methods are not probed one by one: their aggregation is taken to cost what that of
    the first does.
    """
    threads, before = max(1, torch.get_num_threads() // jobs), torch.get_num_threads()
    paces: dict[str, tuple[Pace, float]] = {}
    by_arm: dict[str, float] = {}
    seconds = 0.0
    total, done = expected_cells(design, store)
    torch.set_num_threads(threads)
    try:
        for arm, count in remaining_cells(design, store):
            config = design.config(arm.variant, arm.point, arm.candidates[0], design.seeds[0])
            one = _one_run(config, arm, paces, note)
            by_arm[arm.name] = one
            seconds += count * one
    finally:
        torch.set_num_threads(before)
    return Budget(total, done, jobs, seconds, by_arm)


def _one_run(
    config: RunConfig, arm: Arm, paces: dict[str, tuple[Pace, float]], note: Callable[[str], None]
) -> float:
    key = _alike(config)
    if key not in paces:
        note(f"timing {arm.name}")
        paces[key] = probe(config)
    pace, steps = paces[key]
    clients = config.federation.clients
    taking_part = len(choose_clients(0, 1, clients, config.federation.fraction)) if clients else 1
    return pace.seconds(config, taking_part, config.train.steps or steps)


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


def probe(config: RunConfig) -> tuple[Pace, float]:
    """Time the parts of a run, and count its mean local steps."""
    start = time.perf_counter()
    federation = prepare(config)
    setup = time.perf_counter() - start
    try:
        evaluation, filled = _time_evaluation(federation)
        step, steps = _time_steps(federation)
        short = config.model_copy(
            update={
                "train": config.train.model_copy(update={"local_steps": 1, "local_epochs": None}),
                "federation": config.federation.model_copy(update={"rounds": 2, "evaluate_every": 2}),
            }
        )
        start = time.perf_counter()
        _, record = run_round(
            replace(federation, config=short), ServerState(0, federation.initial), Observer()
        )
        round = time.perf_counter() - start - record["client_steps"] * step
    finally:
        federation.model.close()
    return Pace(setup + filled, step, max(0.0, round), evaluation), steps


def _time_evaluation(federation: Federation) -> tuple[float, float]:
    """Seconds of one evaluation, and of filling the cache of frozen states for all splits, if there is one."""
    splits = [split for name, split in federation.splits.items() if name != "train"]
    batch = federation.config.federation.evaluate_batch

    def once() -> float:
        start = time.perf_counter()
        for split in splits:
            evaluate(federation.model, federation.initial, split.data, batch=batch, cache=split.cache)
        return time.perf_counter() - start

    first, second = once(), once()
    if federation.train.cache is None:
        return second, 0.0
    tokens = sum(int(split.data.lengths.sum()) for split in splits)
    return second, max(0.0, first - second) * (1 + int(federation.train.data.lengths.sum()) / tokens)


def _time_steps(federation: Federation) -> tuple[float, float]:
    """Seconds of one client's local step in a group, and the mean number of steps of a client in a round."""
    config = federation.config
    chosen = choose_clients(config.seed, 1, federation.clients, config.federation.fraction)
    group = chosen[: federation.group_size]
    rows = [federation.partition.rows[client] for client in group]
    lengths = federation.train.data.lengths if config.train.bucket else None
    whole = plan_group(group, rows, config.train, seed=config.seed, round=1, lengths=lengths)
    seconds = 0.0
    for count in (1, STEPS):
        settings = config.train.model_copy(update={"local_steps": count, "local_epochs": None})
        plan = plan_group(group, rows, settings, seed=config.seed, round=1, lengths=lengths)
        start = time.perf_counter()
        train_group(
            federation.model,
            federation.train.data,
            federation.initial,
            plan,
            settings,
            federation.method.trainable(1),
            federation.train.cache,
        )
        federation.model.unload()
        seconds = time.perf_counter() - start
    return seconds / (STEPS * len(group)), float(whole.steps.float().mean())
