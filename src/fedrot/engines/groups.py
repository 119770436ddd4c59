"""How many clients to train at once: in one stack, and in how many stacks beside each other."""

from __future__ import annotations

import math

import torch

from fedrot.client import plan_group, train_group
from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter
from fedrot.crew import Crew
from fedrot.engines.stack_check import check_stack
from fedrot.errors import ConfigError
from fedrot.methods.base import Trainable
from fedrot.server import cohort_size
from fedrot.stacked import StackedModel
from fedrot.tasks.batch import Encoded
from fedrot.tasks.objective import Objective

CPU_EXAMPLES = 40
"""Examples in a stacked batch beyond which a CPU gains nothing, as activations leave its caches
(benchmarks/stacked.py)."""


MOST_WORKERS = 8
"""Beyond, `auto` gives each more threads instead: all of them share one interpreter."""


def choose_workers(config: RunConfig, device: torch.device) -> int:
    """The recipe's `workers`, or for `auto` one for each of torch's threads on a CPU, as long as there are clients.

    Raises:
        ConfigError: more than one on a GPU, which one stack fills.
    """
    asked, clients = config.federation.workers, config.federation.clients
    if asked != "auto":
        if asked > 1 and device.type == "cuda":
            raise ConfigError(
                f"federation.workers = {asked}: one stack of clients keeps a GPU at work; set 1 or 'auto', and "
                "federation.group_size for how many clients it holds"
            )
        return asked
    if device.type == "cuda" or config.engine.name != "local":
        return 1
    chosen = MOST_WORKERS if clients is None else cohort_size(clients, config.federation.fraction)
    return min(torch.get_num_threads(), chosen, MOST_WORKERS)


def choose_group_size(
    config: RunConfig,
    clients: int,
    crew: Crew,
    objective: Objective,
    initial: Adapter,
    data: Encoded,
) -> int:
    """The recipe's `group_size`, or for `auto` what the CPU profits from or the GPU's free memory holds.

    Raises:
        ConfigError: several clients in one stack would not stay apart in this model.
    """
    asked = config.federation.group_size
    if asked != "auto":
        size = min(asked, clients)
    elif data.device.type == "cuda":
        size = min(clients, _fits_memory(config, crew.lead, objective, initial, data))
    else:
        size = group_on_cpu(config, clients, len(crew.models))
    if size > 1:
        check_stack(crew.lead, objective, initial, data, asked)
    return size


def group_on_cpu(config: RunConfig, clients: int, workers: int) -> int:
    """What `auto` is on a CPU whose workers train beside each other.

    The clients of a round are dealt to as few groups of like size as keep every worker busy to the end.
    """
    most = max(1, CPU_EXAMPLES // config.train.batch_size)
    if workers == 1:
        return min(clients, most)
    chosen = cohort_size(clients, config.federation.fraction)
    turns = math.ceil(chosen / (most * workers))
    return math.ceil(chosen / (turns * workers))


def _fits_memory(
    config: RunConfig, model: StackedModel, objective: Objective, initial: Adapter, data: Encoded
) -> int:
    """Extrapolate the peak memory of one step on the longest examples from one client to as many as fit in 80%."""
    longest = data.lengths.argsort(descending=True)[: config.train.batch_size * config.train.accumulate]
    settings = config.train.model_copy(update={"local_steps": 1, "local_epochs": None})
    peaks: list[int] = []
    for count in (1, 2):
        plan = plan_group(range(count), [longest] * count, settings, seed=config.seed, round=0)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(data.device)
        train_group(model, objective, data, initial, plan, settings, Trainable())
        model.unload()
        peaks.append(torch.cuda.max_memory_allocated(data.device))
    free, _ = torch.cuda.mem_get_info(data.device)
    per_client = max(peaks[1] - peaks[0], 1)
    budget = 0.8 * (free + torch.cuda.memory_allocated(data.device)) - (peaks[0] - per_client)
    return max(1, int(budget // per_client))
