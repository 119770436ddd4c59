"""What a recipe may hold: its sections, their keys, types, bounds and defaults."""

from __future__ import annotations

from typing import Any, Literal, cast

import tomli_w
from pydantic import Field, model_validator

from fedrot.config.compat import CompatConfig
from fedrot.config.private import PrivacyConfig
from fedrot.config.section import OpenSection, Section
from fedrot.config.task import TaskConfig


class ModelConfig(Section):
    """The frozen base model."""

    path: str
    """A directory, an installed model package (`package:NAME`), or a hub id."""
    pooling: Literal["model", "mean", "cls"] = "model"
    """Which vector the head sees: the model's own choice, the mean over tokens, or the first token."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    quantization: Literal["none", "8bit", "4bit"] = "none"
    """Of the frozen weights, by bitsandbytes: 8-bit integers, or 4-bit NormalFloat (QLoRA). Adapters stay in
    float32."""
    adapter: str | None = None
    """A PEFT adapter directory to start from; its rank, alpha and targets must agree with `[lora]`."""


class LoraSettings(Section):
    """Which layers are adapted, and how."""

    rank: int = Field(default=4, gt=0)
    alpha: float = Field(default=8.0, gt=0)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: str | list[str] = "all-linear"
    """Module names (suffixes), one regular expression over full names, or `all-linear`."""
    layers: str = Field(default="all", pattern=r"^(all|last:[1-9][0-9]*|first:[1-9][0-9]*)$")
    rslora: bool = False
    train_head: bool = True
    modules_to_save: list[str] | None = None
    """Names of the modules trained whole (the head). None: the task's own head."""
    ranks: list[int] | dict[str, float] | None = None
    """Clients of unequal rank: one rank each, or a table of rank and share such as `{ 2 = 0.5, 8 = 0.5 }`, dealt by the
    seed. `rank` is then the server's, and none may exceed it. Needs a method that mixes ranks."""
    residual_rank: int | None = Field(default=None, gt=0)
    """Largest rank of the residual that some methods leave in the base weights; beyond it the best approximation is
    kept, and `residual_lost` says what that cost. Unset: as many directions as the layer has, so that nothing is lost.
    """

    @model_validator(mode="after")
    def _ranks_fit(self) -> LoraSettings:
        ranks = self.ranks
        if ranks is None:
            return self
        if isinstance(ranks, dict):
            for name, share in ranks.items():
                if not name.isdecimal() or not 1 <= int(name) <= self.rank:
                    raise ValueError(f"ranks has {name!r}: expected ranks from 1 to lora.rank = {self.rank}")
                if share <= 0:
                    raise ValueError(f"ranks: share of rank {name} is {share:g}: expected a number > 0")
            if abs(sum(ranks.values()) - 1) > 1e-6:
                raise ValueError(f"ranks: shares add up to {sum(ranks.values()):g}, expected 1")
            return self
        for client, rank in enumerate(ranks):
            if not 1 <= rank <= self.rank:
                raise ValueError(
                    f"ranks gives client {client} rank {rank}: expected 1 to lora.rank = {self.rank}, the server's; "
                    "raise lora.rank or lower the client's"
                )
        return self

    @property
    def scale(self) -> float:
        """`alpha / rank`, or `alpha / sqrt(rank)` for rsLoRA."""
        return self.alpha / (self.rank**0.5 if self.rslora else self.rank)


class PartitionConfig(OpenSection):
    """How training examples are dealt to clients; further keys are the partitioner's own options."""

    kind: str = "iid"
    min_size: int = Field(default=1, ge=1)
    """Smallest number of training examples a client may have."""


class MethodConfig(OpenSection):
    """The aggregation method; further keys are its own options."""

    name: str = "fedrot"


class TrainConfig(Section):
    """Local training on each client."""

    optimizer: Literal["sgd", "momentum", "adamw"] = "adamw"
    lr: float = Field(default=3e-3, gt=0)
    head_lr: float | None = Field(default=None, gt=0)
    momentum: float = Field(default=0.9, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    local_steps: int | None = Field(default=None, gt=0)
    local_epochs: int | None = Field(default=None, gt=0)
    batch_size: int = Field(default=8, gt=0)
    accumulate: int = Field(default=1, gt=0)
    clip: float | Literal["off"] = 1.0
    prox: float = Field(default=0.0, ge=0)
    """FedProx (Li et al., MLSys 2020): `prox / 2 ||w - w_received||^2` is added to every client's loss, as a gradient,
    before clipping. The loss reported is without it."""
    precision: Literal["float32", "bfloat16"] = "float32"
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")
    bucket: bool = True
    """Deal each client's draws of a round into batches of like length: less padding, same examples."""
    checkpointing: bool = False
    """Keep only the input of every block and compute the block again for its gradient: less memory, more time, the same
    numbers."""
    cache_frozen: bool = False
    cache_limit_mb: int = Field(default=2048, gt=0)

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if self.local_steps is not None and self.local_epochs is not None:
            raise ValueError("give local_steps or local_epochs, not both")
        if self.clip != "off" and self.clip <= 0:
            raise ValueError("clip: expected a positive norm or 'off'")
        return self

    @property
    def steps(self) -> int | None:
        """Local optimiser steps a round, 10 unless set; None when `local_epochs` decides."""
        return (
            self.local_steps
            if self.local_steps is not None
            else (None if self.local_epochs is not None else 10)
        )


class FederationConfig(Section):
    """Who takes part, for how long, and when the result is evaluated."""

    clients: int | None = Field(default=None, gt=0)
    """None only for partitioners that fix the number themselves (`natural-id`)."""
    rounds: int = Field(default=10, gt=0)
    fraction: float = Field(default=1.0, gt=0, le=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a client chosen for a round does not report."""
    stale: float = Field(default=0.0, ge=0, le=1)
    """Probability that a client's update was computed from an earlier broadcast. Needs a method that admits it."""
    stale_rounds: int = Field(default=1, gt=0)
    """A stale update comes from 1 to so many rounds back, each equally likely."""
    stale_weight: float = Field(default=1.0, gt=0, le=1)
    """A stale client's weight is multiplied by this once per round of lag."""
    weighting: Literal["samples", "uniform"] = "samples"
    group_size: int | Literal["auto"] = "auto"
    """Clients that train in one stack; `auto` goes by the caches of a CPU, or by the free memory of a GPU."""
    workers: int | Literal["auto"] = "auto"
    """Groups that train beside each other on a CPU, each on its share of the threads; 1 where a GPU trains."""
    evaluate_every: int = Field(default=1, gt=0)
    evaluate_batch: int = Field(default=64, gt=0)
    upload_frame: Literal["own", "svd", "random"] = "own"
    """A stress: before the method's own upload step each client writes its update in other factors of the same product,
    those of its singular value decomposition or randomly rotated ones. Only for methods that send both factors."""

    @model_validator(mode="after")
    def _positive(self) -> FederationConfig:
        for key in ("group_size", "workers"):
            value = getattr(self, key)
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{key}: expected a positive integer or 'auto'")
        return self


class ServerConfig(Section):
    """What the server makes of the method's aggregate (FedOpt, Reddi et al., ICLR 2021; FedAvgM, Hsu et al., 2019)."""

    optimizer: Literal["none", "avgm", "adam", "yogi", "adagrad"] = "none"
    """Broadcast the method's aggregate as it is, or take its difference to the last broadcast as a gradient; see
    [Optimisers on the server](server-optimizers.md)."""
    lr: float | None = Field(default=None, gt=0)
    """Its learning rate. Unset: 1 for `avgm`, 0.01 for the others, which move a number by about that a round."""
    momentum: float = Field(default=0.9, ge=0, lt=1)
    """Decay of its first moment."""
    beta2: float = Field(default=0.99, ge=0, lt=1)
    """Decay of the second moment, for `adam` and `yogi`."""
    tau: float = Field(default=1e-3, gt=0)
    """How far the adaptive optimisers adapt: smaller is more."""

    @property
    def rate(self) -> float:
        """`lr`, or its default for the optimiser."""
        return self.lr if self.lr is not None else (1.0 if self.optimizer == "avgm" else 0.01)


class EngineConfig(Section):
    """What runs the recipe."""

    name: Literal["local", "flower"] = "local"
    backend: Literal["inline", "ray"] = "inline"
    """Of `flower`: nodes in this process, or in processes of their own, started by Ray. A deployed federation has
    neither."""
    nodes: int | None = Field(default=None, gt=0)
    """Of `flower` on one machine: nodes that share the clients. Unset: `inline` has one for each group of clients that
    train stacked, `ray` one for each GPU, or for each processor where there is none."""
    wait: float = Field(default=600.0, gt=0)
    """Seconds that the server waits for nodes, at the start and when none is left, before it gives up."""
    deadline: float = Field(default=600.0, gt=0)
    """Seconds that nodes have to answer in a round; who is later is dropped from the round."""
    start_clients: int | None = Field(default=None, gt=0)
    """Clients whose nodes must have joined before the first round; unset, all of them."""


class OutputConfig(Section):
    """What is written, and where."""

    dir: str | None = None
    """Run directory; `runs/<method>-<seed>-<n>` unless set."""
    report: bool = True
    probe: bool = False
    """Also fit linear probes on the frozen encoder, in the same federation and centrally: what an adapter must beat."""
    keep_checkpoints: int = Field(default=2, ge=2)
    trackers: list[str] = Field(default_factory=list[str])
    """Send every round's figures there as well: `tensorboard`, `wandb`, `mlflow`, `trackio` and others, see
    [Trackers](quickstart.md#trackers)."""
    personal: bool = False
    """Write every client's own adapter to `personal/client-000/` and so on, for methods that leave a part there. Over
    Flower each node writes its clients' own, see [Flower](flower.md#parts-that-stay-with-clients)."""
    samples: int = Field(default=0, ge=0)
    """Of the task `generate`: complete so many test prompts before the run and after it, for `samples.json` and the
    report, which then hold texts of the test split."""
    sample_tokens: int = Field(default=32, gt=0)
    """Most tokens of such a completion."""
    diagnostics: bool = False
    """Of `fedrot`, also record the quantities of the paper's bound and the error that each strength would have had, see
    [Theory](theory.md#diagnostics); costs about one more measurement of the aggregation error a round. Over Flower
    clients then also send what they trained, see [Flower](flower.md#diagnostics)."""


class RunConfig(Section):
    """One recipe. Every engine runs the same one."""

    seed: int = Field(default=0, ge=0)
    model: ModelConfig
    lora: LoraSettings = LoraSettings()
    task: TaskConfig
    partition: PartitionConfig = PartitionConfig()
    method: MethodConfig = MethodConfig()
    train: TrainConfig = TrainConfig()
    federation: FederationConfig = FederationConfig()
    server: ServerConfig = ServerConfig()
    privacy: PrivacyConfig = PrivacyConfig()
    compat: CompatConfig = CompatConfig()
    engine: EngineConfig = EngineConfig()
    output: OutputConfig = OutputConfig()

    def to_toml(self) -> str:
        """The recipe fully resolved; unset optional keys are left out, since TOML has no null."""
        return tomli_w.dumps(_without_none(self.model_dump()))


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        table = cast(dict[str, Any], value)
        return {key: _without_none(item) for key, item in table.items() if item is not None}
    return value
