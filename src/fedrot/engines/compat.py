"""Deviations of published code: which of them a recipe has, where they mean something, and the hooks they need.

`CompatConfig` names them, `docs/published-code.md` says where they come from. What concerns a method is in
`engines.published`; nothing else in the project knows of them but for the calls of the functions here.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fedrot.config import CompatConfig, RunConfig, TrainConfig
from fedrot.core.adapter import Adapter
from fedrot.engines.published import OF_METHOD, half, published
from fedrot.errors import ConfigError
from fedrot.methods import Method, build, methods

WARM_UP_RATES = (5e-4, 1e-3)
"""The learning rates that the launch scripts gave a warm-up."""
WARM_UP = 5e-3

FLAGS = tuple(name for name in CompatConfig.model_fields if name != "published")

MEANT_FOR: Mapping[str, tuple[str, ...]] = {
    **OF_METHOD,
    "endless_warm_up": ("fedrot",),
    "unscaled_residual": tuple(name for name, cls in methods().items() if cls.laws.residual),
}
"""The methods that a flag means something with; those not named here do with all."""


def flags(config: RunConfig) -> frozenset[str]:
    """The deviations that this recipe has.

    Raises:
        ConfigError: one was asked for by name that means nothing here; the message says why.
    """
    compat = config.compat
    found: set[str] = set()
    for name in FLAGS:
        asked: bool | None = getattr(compat, name)
        obstacle = obstacle_to(name, config) if asked or (asked is None and compat.published) else None
        if asked and obstacle is not None:
            raise ConfigError(f"compat.{name} = true: {obstacle}")
        if (asked or (asked is None and compat.published)) and obstacle is None:
            found.add(name)
    return frozenset(found)


def obstacle_to(flag: str, config: RunConfig) -> str | None:
    """Why a deviation means nothing with a recipe, and what to do; None if it does mean something."""
    method, options = config.method.name, config.method.options
    if not suits(flag, method):
        able = " and ".join(repr(name) for name in MEANT_FOR[flag])
        return f"it means nothing with method.name = {method!r}, only with {able}; leave it out"
    if flag == "hard_reflections" and options.get("path") == "geodesic":
        return "method.path = 'geodesic': a reflection has none; set method.path = 'chordal'"
    if flag == "anchor_parity" and options.get("anchor", "alternate") != "alternate":
        return f"method.anchor = {options['anchor']!r} is the same in every round; set it to 'alternate'"
    if flag in ("anchor_parity", "half_rotations") and options.get("reference") == "consensus":
        return "method.reference = 'consensus': clients do not rotate by themselves; set it to 'previous'"
    if flag == "half_rotations" and options.get("guard") in (True, "server"):
        return (
            f"method.guard = {options['guard']!r}: clients do not rotate by themselves; use 'client' or false"
        )
    if flag == "endless_warm_up" and config.train.lr not in WARM_UP_RATES:
        rates = " and ".join(f"{rate:g}" for rate in WARM_UP_RATES)
        return (
            f"train.lr = {config.train.lr:g}: only {rates} were warmed up; set one of them, or leave it out"
        )
    if flag == "weight_by_steps" and config.federation.weighting != "samples":
        return "federation.weighting = 'uniform' leaves nothing to weigh by; set it to 'samples'"
    if flag == "weight_by_steps" and config.train.local_epochs is not None:
        return "with train.local_epochs clients read what they have, every epoch; use train.local_steps"
    return None


def suits(flag: str, method: str) -> bool:
    """Whether a deviation means something with a method."""
    return method in MEANT_FOR.get(flag, (method,))


def check_compat(config: RunConfig) -> None:
    """Refuse deviations in runs that published code has no counterpart of, and those that mean nothing.

    Raises:
        ConfigError: names the keys and what to do.
    """
    found = flags(config)
    if not found:
        return
    key = "compat.published" if config.compat.published else f"compat.{min(found)}"
    for present, name in (
        (config.engine.name != "local", f"engine.name = {config.engine.name!r}"),
        (config.privacy.mechanism != "none", f"privacy.mechanism = {config.privacy.mechanism!r}"),
        (config.privacy.secure_aggregation, "privacy.secure_aggregation = true"),
        (config.output.diagnostics, "output.diagnostics = true"),
    ):
        if present:
            raise ConfigError(
                f"{key} = true with {name}: deviations of published code are reproduced by the local engine alone, "
                "without privacy and diagnostics; leave one of the two out"
            )


def method_of(config: RunConfig) -> Method:
    """The recipe's method, with the deviations that concern it.

    Raises:
        ConfigError: an unknown method or option, or a deviation that means nothing here.
    """
    made = build(config.method.name, config.method.options, config.seed)
    return published(made, flags(config), config.lora.scale)


def notes(config: RunConfig) -> tuple[str, ...]:
    """A line for every deviation, for the run's notes."""
    return tuple(
        f"compat.{name}: as in published code, see docs/published-code.md" for name in sorted(flags(config))
    )


def precision(config: RunConfig) -> str:
    """Of the base model's weights."""
    return "float16" if "half_weights" in flags(config) else config.train.precision


def train_settings(config: RunConfig) -> TrainConfig:
    """How clients train.

    The warm-up of the published code keeps the recipe's learning rate aside at the start of every warm-up round; from
    the second one on that is the warm-up's own rate, which is then what it goes back to.
    """
    if "endless_warm_up" in flags(config):
        return config.train.model_copy(update={"lr": WARM_UP})
    return config.train


def starting(config: RunConfig, start: Adapter) -> Adapter:
    """What clients train from: with half weights, as float16 holds it."""
    return half(start) if "half_weights" in flags(config) else start


def keep_half(optimizer: torch.optim.Optimizer) -> None:
    """Have an optimiser keep what it trains in float16, held in wider tensors.

    Gradients are rounded before a step and parameters after it; a step of SGD without momentum is then one on float16
    tensors, computed in float32 and rounded once.
    """

    def parameters() -> list[Tensor]:
        return [tensor for group in optimizer.param_groups for tensor in group["params"]]

    @torch.no_grad()
    def before(*_: Any) -> None:
        for tensor in parameters():
            if tensor.grad is not None:
                tensor.grad.copy_(tensor.grad.half())

    @torch.no_grad()
    def after(*_: Any) -> None:
        for tensor in parameters():
            tensor.copy_(tensor.half())

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)


def weight(config: RunConfig, examples: int) -> float:
    """A client's unnormalised weight, from how many examples it has.

    By steps, it is the number of examples that `S` batches of at most `B` hold, which pass over the client's `n`
    examples as often as need be, each pass ending with what is left of them: with `k = ceil(n / B)` batches a pass,
    `(S // k) n + (S % k) B`. Clients with at least `S B` examples all weigh `S B`.
    """
    if config.federation.weighting == "uniform":
        return 1.0
    asked = config.compat.published or config.compat.weight_by_steps  # cheap, for it is asked of every client
    if not asked or "weight_by_steps" not in flags(config):
        return float(examples)
    steps, batch = (config.train.steps or 0) * config.train.accumulate, config.train.batch_size
    a_pass = -(-examples // batch)
    return float(steps // a_pass * examples + steps % a_pass * batch)


def reported(
    config: RunConfig, evaluated: Sequence[Mapping[str, Any]], metric: str, better: str
) -> Mapping[str, Any]:
    """Of the evaluated rounds, the one that the run is reported by: the last, or the best of them in hindsight.

    A score that is not finite is never the best; where no round has another, it is the last round all the same.
    """
    finite = [record for record in evaluated if math.isfinite(record[metric])]
    if "validation_maximum" not in flags(config) or not finite:
        return evaluated[-1]
    sign = 1 if better == "higher" else -1
    return max(finite, key=lambda record: (sign * record[metric], -record["round"]))
