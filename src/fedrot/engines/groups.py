"""How many clients to train at once."""

from __future__ import annotations

import torch

from fedrot.client import plan_group, train_group
from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter
from fedrot.methods.base import Trainable
from fedrot.stacked import StackedModel
from fedrot.tasks.batch import Encoded
from fedrot.tasks.objective import Objective

CPU_EXAMPLES = 40
"""Examples in a stacked batch beyond which a CPU gains nothing, as activations leave its caches
(benchmarks/stacked.py)."""


def choose_group_size(
    config: RunConfig,
    clients: int,
    model: StackedModel,
    objective: Objective,
    initial: Adapter,
    data: Encoded,
) -> int:
    """The recipe's `group_size`, or for `auto` what the CPU profits from or the GPU's free memory holds."""
    asked = config.federation.group_size
    if asked != "auto":
        return min(asked, clients)
    if data.device.type != "cuda":
        return min(clients, max(1, CPU_EXAMPLES // config.train.batch_size))
    return min(clients, _fits_memory(config, model, objective, initial, data))


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
