"""Whether clients in one stack stay apart in this model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedrot.core.adapter import Adapter, Factors, stack
from fedrot.core.rng import generator
from fedrot.errors import ConfigError
from fedrot.stacked import StackedModel
from fedrot.tasks.batch import Batch, Encoded
from fedrot.tasks.objective import Objective


@torch.no_grad()
def check_stack(
    model: StackedModel, objective: Objective, initial: Adapter, data: Encoded, asked: object
) -> None:
    """Refuse stacks of clients for a model whose adapted layers see something else than examples, client after client.

    A stack gives each client its share of a layer's rows. Layers that read a table of positions (DeBERTa's keys), or
    tokens before examples (Longformer), would get one client's factors for another's rows, and nothing would fail. Two
    clients with unlike factors, together and each alone, give it away in what their layers put out.

    Args:
        model: holds nothing before and after.
        objective: of the task.
        initial: the adapter of the first round.
        data: examples to try, two of them.
        asked: `federation.group_size`, for the message.

    Raises:
        ConfigError: clients do not stay apart.
    """
    rows = data.lengths.argsort(stable=True)[:2]
    if not len(rows):
        return
    clients = [_moved(initial, sign) for sign in (1.0, -1.0)]
    try:
        alone = [
            _put_out(model, objective, client.expand(1), initial, data.unpacked(rows)) for client in clients
        ]
        together = _put_out(model, objective, stack(clients), initial, data.unpacked(rows.repeat(2)))
    except (RuntimeError, AttributeError) as error:
        raise ConfigError(
            f"lora.target_modules: this model cannot run with adapters on the layers chosen ({error}); choose others"
        ) from error
    finally:
        model.unload()
    for site, mine in together.items():
        theirs = [torch.cat(pair) for pair in zip(*(one[site] for one in alone), strict=True)]
        if not all(_near(*pair) for pair in zip(mine, theirs, strict=True)):
            raise ConfigError(
                f"federation.group_size = {asked!r}: in this model clients of one stack would use each other's factors "
                f"at {site!r}; set federation.group_size = 1, or leave that layer out of lora.target_modules"
            )


def _put_out(
    model: StackedModel, objective: Objective, clients: Adapter, initial: Adapter, batch: Batch
) -> dict[str, list[Tensor]]:
    """What every adapted layer puts out for a batch, each time it is called."""
    seen: dict[str, list[Tensor]] = {site: [] for site in model.layers}

    def keep(site: str) -> Any:
        return lambda _, __, out: seen[site].append(out.detach().clone())

    hooks = [layer.register_forward_hook(keep(site)) for site, layer in model.layers.items()]
    try:
        model.load(clients, residual=initial.residual)
        objective.losses(model, batch, None)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _near(one: Tensor, other: Tensor) -> bool:
    """Whether two outputs are the same but for rounding, of which deep models in half precision have much."""
    tolerance = 1e-3 if one.dtype == torch.float32 else 1e-1
    if one.shape != other.shape:
        return False
    return bool((one - other).norm() <= tolerance * other.norm()) or not bool(other.isfinite().all())


def _moved(adapter: Adapter, sign: float) -> Adapter:
    """The adapter with noise on `b` that moves what a layer puts out by about a third."""
    sites: dict[str, Factors] = {}
    for number, (site, f) in enumerate(adapter.sites.items()):
        noise = torch.randn(f.b.shape, generator=generator(0, "stack", client=number)).to(f.b)
        sites[site] = Factors(f.a, f.b + sign * noise * (0.3 / (adapter.scale * f.rank**0.5)))
    return replace(adapter, sites=sites, residual={})
