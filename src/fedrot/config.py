"""Recipes: typed, strict, loaded from TOML, overridden with `section.key=value`, written back fully resolved.

A leaf: it imports no other part of fedrot but the errors. `[method]` and `[partition]` take options that belong to the
named method or partitioner; those are checked against it when it is built (`fedrot.methods.build`,
`fedrot.partition`), with the same strictness.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from fedrot.errors import ConfigError, nearest


class Section(BaseModel):
    """A section that knows all its keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class OpenSection(BaseModel):
    """A section whose further keys belong to the thing it names."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    @property
    def options(self) -> dict[str, Any]:
        """The keys that are not the section's own, as given."""
        return dict(self.__pydantic_extra__ or {})


class ModelConfig(Section):
    """The frozen base model."""

    path: str
    """A directory, an installed model package (`package:NAME`), or a hub id."""
    pooling: Literal["model", "mean", "cls"] = "model"
    """Which vector the head sees: the model's own choice, the mean over tokens, or the first token."""
    attention: Literal["auto", "eager", "sdpa", "flash_attention_2"] = "auto"
    quantization: Literal["none"] = "none"
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


class TaskConfig(Section):
    """What is learned, from which data."""

    name: Literal["classify"] = "classify"
    data: str
    """`tweets`, `bbc`, `newsgroups`, `newsgroup-pairs`, `reuters-r8`, `reuters-r52`, `glue:TASK`, `hub:ID`, or a file
    (CSV, JSONL, parquet)."""
    test_data: str | None = None
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    max_length: int = Field(default=128, gt=0)
    test_fraction: float = Field(default=0.1, gt=0, lt=1)
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    max_train: int | None = Field(default=None, gt=0)
    max_test: int | None = Field(default=None, gt=0)
    max_validation: int | None = Field(default=None, gt=0)


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
    evaluate_every: int = Field(default=1, gt=0)
    evaluate_batch: int = Field(default=64, gt=0)
    upload_frame: Literal["own", "svd", "random"] = "own"
    """A stress: before the method's own upload step each client writes its update in other factors of the same product,
    those of its singular value decomposition or randomly rotated ones. Only for methods that send both factors."""

    @model_validator(mode="after")
    def _positive_group(self) -> FederationConfig:
        if isinstance(self.group_size, int) and self.group_size < 1:
            raise ValueError("group_size: expected a positive integer or 'auto'")
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


class OutputConfig(Section):
    """What is written, and where."""

    dir: str | None = None
    """Run directory; `runs/<method>-<seed>-<n>` unless set."""
    report: bool = True
    probe: bool = False
    """Also fit linear probes on the frozen encoder, in the same federation and centrally: what an adapter must beat."""
    keep_checkpoints: int = Field(default=2, ge=2)
    personal: bool = False
    """Write every client's own adapter to `personal/client-000/` and so on, for methods that leave a part there."""
    diagnostics: bool = False
    """Of `fedrot`, also record the quantities of the paper's bound and the error that each strength would have had, see
    [Theory](theory.md#diagnostics); costs about one more measurement of the aggregation error a round."""


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
    engine: EngineConfig = EngineConfig()
    output: OutputConfig = OutputConfig()

    def to_toml(self) -> str:
        """The recipe fully resolved; unset optional keys are left out, since TOML has no null."""
        return tomli_w.dumps(_without_none(self.model_dump()))


def load_config(
    path: str | Path, overrides: Sequence[str] = (), told: Callable[[str], None] | None = None
) -> RunConfig:
    """Read a TOML recipe and apply `section.key=value` overrides in order, see `apply_overrides`.

    Args:
        path: of the recipe.
        overrides: applied to it.
        told: hears which of the recipe's options an override made meaningless.

    Raises:
        ConfigError: unreadable file, bad TOML, unknown key (the nearest name is offered) or a value out of range.
    """
    data = read_recipe(path)
    if "compare" in data:
        raise ConfigError(
            f"recipe '{path}': has a table [compare], which describes many runs; run it with `fedrot compare {path}`, "
            "or take the table out to run the recipe once"
        )
    for note in apply_overrides(data, overrides):
        if told is not None:
            told(note)
    return parse_config(data)


def read_recipe(path: str | Path) -> dict[str, Any]:
    """A recipe file as it stands, not yet validated.

    Raises:
        ConfigError: unreadable file or bad TOML.
    """
    path = Path(path)
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(
            f"recipe '{path}': cannot be read ({error.strerror}); give the path of a TOML file"
        ) from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"recipe '{path}': not valid TOML: {error}") from error


def parse_config(data: Mapping[str, Any]) -> RunConfig:
    """Validate a nested mapping as a recipe. All problems are listed in one ConfigError."""
    try:
        return RunConfig.model_validate(dict(data))
    except ValidationError as error:
        raise ConfigError("\n".join(_explain(problem) for problem in error.errors())) from None


NAMED: dict[str, tuple[str, type[OpenSection]]] = {
    "method": ("name", MethodConfig),
    "partition": ("kind", PartitionConfig),
}
"""The key that says what an open section's further keys belong to."""


def apply_overrides(data: dict[str, Any], overrides: Sequence[str]) -> list[str]:
    """Set `section.key=value` in place, in order, and leave out options that lost what they belong to.

    Where an override names another method or kind of partition, the options that the recipe itself has for the former
    one go; those that an override sets stay. Returns a line for each that went.

    >>> recipe = {"method": {"name": "fedrot", "strength": 0.5}}
    >>> apply_overrides(recipe, ["method.name=fedit"])
    ["method.strength = 0.5 belongs to 'fedrot' and is left out with 'fedit'"]
    >>> recipe
    {'method': {'name': 'fedit'}}
    """
    before = {section: dict(data.get(section) or {}) for section in NAMED if _is_table(data.get(section))}
    for override in overrides:
        apply_override(data, override)
    given = {override.partition("=")[0].strip() for override in overrides}
    left_out: list[str] = []
    for section, old in before.items():
        key, model = NAMED[section]
        table: dict[str, Any] = data[section]
        former = old.get(key, model.model_fields[key].default)
        now = table.get(key, former)
        for option in old.keys() - model.model_fields.keys() if now != former else ():
            if f"{section}.{option}" not in given:
                left_out.append(
                    f"{section}.{option} = {table.pop(option)!r} belongs to {former!r} and is left out with {now!r}"
                )
    return sorted(left_out)


def _is_table(value: object) -> bool:
    return isinstance(value, dict)


def apply_override(data: dict[str, Any], override: str) -> None:
    """Set one `section.key=value` in place. The value is TOML; a bare word is a string.

    >>> recipe = {}
    >>> apply_override(recipe, "method.strength=0.3")
    >>> apply_override(recipe, "method.anchor=joint")
    >>> recipe
    {'method': {'strength': 0.3, 'anchor': 'joint'}}
    """
    key, separator, text = override.partition("=")
    parts = key.strip().split(".")
    if not separator or not all(parts):
        raise ConfigError(f"--set {override!r}: expected section.key=value, for instance method.strength=0.3")
    try:
        value = tomllib.loads(f"value = {text.strip()}")["value"]
    except tomllib.TOMLDecodeError:
        value = text.strip()
    table = data
    for part in parts[:-1]:
        below: Any = table.setdefault(part, {})
        if not isinstance(below, dict):
            raise ConfigError(f"--set {override!r}: {part!r} is a value, not a section")
        table = cast(dict[str, Any], below)
    table[parts[-1]] = value


def differences(old: RunConfig, new: RunConfig, ignore: Sequence[str] = ()) -> list[str]:
    """Lines `section.key: old -> new` for every key that differs, except the dotted names in `ignore`."""
    before, after = _flatten(old.model_dump()), _flatten(new.model_dump())
    keys = [key for key in sorted(before.keys() | after.keys()) if key not in ignore]
    return [
        f"{key}: {before.get(key, '(unset)')!r} -> {after.get(key, '(unset)')!r}"
        for key in keys
        if before.get(key, "(unset)") != after.get(key, "(unset)")
    ]


def _explain(problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    fields = _fields_at(location[:-1])
    name = ".".join(
        part for part in location if part not in ("str", "int", "float") and not part.startswith("literal[")
    )
    if problem["type"] == "extra_forbidden":
        return f"{name}: unknown key; {nearest(location[-1], fields)}"
    if problem["type"] == "missing":
        return f"{name}: missing; add it to the recipe or give --set {name}=..."
    message = problem["msg"].removeprefix("Value error, ")
    value = problem.get("input")
    shown = "" if isinstance(value, (Mapping, BaseModel)) else f" = {value!r}"
    return f"{name}{shown}: {_reworded(message)}"


def _reworded(message: str) -> str:
    for theirs, ours in (
        ("Input should be ", "expected "),
        ("Input should ", "expected to "),
        ("String should ", "expected to "),
    ):
        if message.startswith(theirs):
            return ours + message.removeprefix(theirs)
    return message


def _fields_at(location: Sequence[str]) -> list[str]:
    model: type[BaseModel] = RunConfig
    for part in location:
        annotation = model.model_fields[part].annotation if part in model.model_fields else None
        if not (isinstance(annotation, type) and issubclass(annotation, BaseModel)):
            break
        model = annotation
    return list(model.model_fields)


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        table = cast(dict[str, Any], value)
        return {key: _without_none(item) for key, item in table.items() if item is not None}
    return value


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(_flatten(cast(Mapping[str, Any], item), f"{prefix}{key}."))
        else:
            flat[prefix + key] = item
    return flat
