"""What the owner of a node decides: which clients it hosts, on which data, with which model, on which device.

The server sends a recipe, and a recipe may name files. Rule: a server can never make a node read a file, or fetch
anything, that the node's owner did not name. `NodeSettings.admit` holds to it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from fedrot.config import RunConfig, load_as
from fedrot.config.sections import Section
from fedrot.errors import DataError, ModelError

NODE_FILE = "node.toml"
FORMATS = (".csv", ".jsonl", ".parquet")
ColumnKey = Literal["text", "text_pair", "label", "prompt", "response", "image", "partition_by"]
"""The keys of a recipe that name columns of the data."""


@dataclass(frozen=True)
class NodeSettings:
    """A node, as far as training is concerned."""

    name: str
    clients: tuple[int, ...]
    """Numbers of the federation's clients that this node hosts."""
    data: str | None = None
    """Its own data: the path of a `.csv`, `.jsonl` or `.parquet` file, or whatever else `task.data` takes. None: the
    recipe's bundled corpus."""
    sharding: Literal["own", "recipe"] = "own"
    """`own`: all of `data` belongs to this node's clients. `recipe`: `data` is the whole corpus of the recipe, of which
    the clients take the shards that the recipe deals them."""
    model: str | None = None
    """A folder or `package:NAME` that stands for the recipe's `model.path`. None: installed model packages alone are
    loaded."""
    rank: int | None = None
    """This node's clients train at this rank. None: as the recipe says."""
    device: str = "auto"
    trusts_recipe: bool = False
    """The recipe was written by whoever runs this node (all on one machine): it may name files."""
    epsilon: float | None = None
    """What each of its clients may spend of its privacy, over all runs. None: what the recipe says is done."""
    delta: float = 1e-5
    """Goes with `epsilon`."""
    ledger: str | None = None
    """The file in which what they have spent is kept; needed with `epsilon`."""
    columns: Mapping[str, str] | None = None
    """The columns of `data` that a recipe has to name, by its keys `text`, `text_pair`, `label`, `prompt`, `response`,
    `image` and `partition_by`, and no others. None: whichever it names."""
    labels: Sequence[str] | None = None
    """The classes that a recipe has to have, in any order. None: whichever it has."""
    kept: str | None = None
    """The folder of what its clients keep to themselves from round to round. None: it ends with the process."""

    def admit(self, config: RunConfig) -> RunConfig:
        """The recipe as this node runs it: its own data, model and device, and no file that the server named.

        Raises:
            ModelError, DataError: the recipe names a model or data that the owner did not.
        """
        if self.trusts_recipe:
            return config.model_copy(update={"train": self._train(config)})
        model = config.model.model_copy(update={"path": self._model(config), "adapter": None})
        task = config.task.model_copy(update={"data": self._data(config), "test_data": None})
        output = config.output.model_copy(update={"dir": None})
        update = {"model": model, "task": task, "output": output, "train": self._train(config)}
        return config.model_copy(update=update)

    def _train(self, config: RunConfig) -> object:
        return config.train.model_copy(update={"device": self.device})

    def _model(self, config: RunConfig) -> str:
        if self.model is not None:
            return self.model
        if config.model.path.startswith("package:"):
            return config.model.path
        raise ModelError(
            f"node {self.name!r}: the recipe asks for model.path = {config.model.path!r}, which the node's owner did "
            f"not name; give its local path as `model` in {NODE_FILE}"
        )

    def _data(self, config: RunConfig) -> str:
        from fedrot.tasks.catalogue import BUNDLED

        if self.data is not None:
            return self.data
        if config.task.data in BUNDLED:
            return config.task.data
        raise DataError(
            f"node {self.name!r}: the recipe asks for task.data = {config.task.data!r}, which the node's owner did "
            f"not name; give the node's own file as `data` in {NODE_FILE}"
        )


class NodeFile(Section):
    """The keys of `node.toml`. Paths are relative to its folder."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")
    clients: list[Annotated[int, Field(ge=0)]] = Field(min_length=1)
    superlink: str = Field(pattern=r"^(\[[0-9a-fA-F:.]+\]|[^\s:/\[\]]+):[0-9]{1,5}$")
    """Address of the server, `host:port`; the host must be one that the server's certificate names."""
    data: str | None = None
    sharding: Literal["own", "recipe"] = "own"
    columns: dict[ColumnKey, str] | None = None
    """Columns of `data` that the recipe has to name, by its keys, and no others."""
    labels: list[str] | None = Field(default=None, min_length=2)
    """The classes that the recipe has to have."""
    model: str | None = None
    rank: int | None = Field(default=None, gt=0)
    device: str = Field(default="auto", pattern=r"^(auto|cpu|cuda(:[0-9]+)?)$")
    epsilon: float | None = Field(default=None, gt=0)
    """Each client sends messages with noise of their own alone (`privacy.mechanism = "local"`), and only until it has
    spent this much, over all runs; whatever the recipe says."""
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """Goes with `epsilon`."""
    key: str = "node.key"
    """The private key that identifies the node."""
    ca: str = "ca.crt"
    """The certificate that vouches for the server's."""
    state: str = "state"
    """Folder for what the node writes."""
    poll: float = Field(default=0.2, ge=0.05, le=60)
    """Seconds between two questions to the server in a run; after a minute without messages there are three."""

    @model_validator(mode="after")
    def _consistent(self) -> NodeFile:
        if repeated := sorted({client for client in self.clients if self.clients.count(client) > 1}):
            raise ValueError(f"clients names {repeated[0]} more than once")
        if self.sharding == "recipe" and self.data is None:
            raise ValueError("sharding = 'recipe' is for a node with `data`; give it, or leave sharding out")
        for key in ("columns", "labels"):
            if getattr(self, key) is not None and self.data is None:
                raise ValueError(f"{key} is for a node with `data`; give it, or leave {key} out")
        if self.epsilon is not None and self.data is not None and len(self.clients) > 1:
            raise ValueError(
                f"epsilon = {self.epsilon:g} and data for {len(self.clients)} clients: the recipe's seed decides to "
                "which of them a row belongs, so that another seed would give it another budget; give one client, or "
                "a node with a file of its own to each"
            )
        return self


@dataclass(frozen=True)
class Node:
    """A node as its folder describes it: what it trains, and how it reaches the server."""

    settings: NodeSettings
    directory: Path
    superlink: str
    key: Path
    ca: Path
    state: Path
    poll: float


def load_node(directory: str | Path) -> Node:
    """Read a node's folder.

    Args:
        directory: holds `node.toml`, and whatever that names.

    Raises:
        ConfigError: no such file, bad TOML, an unknown key (the nearest is offered), a value out of range, or a key or
            certificate that is not there.
    """
    directory = Path(directory).absolute()
    path = directory / NODE_FILE
    file = load_as(NodeFile, path, "give the folder that `fedrot deploy init` wrote for the node")
    data, model = file.data, file.model
    if data is not None and (data.endswith(FORMATS) or (directory / data).is_dir()):
        data = _beside(directory, data)
    if model is not None and not model.startswith("package:"):
        model = _beside(directory, model)
    settings = NodeSettings(
        name=file.name,
        clients=tuple(file.clients),
        data=data,
        sharding=file.sharding,
        columns=None if file.columns is None else {str(key): name for key, name in file.columns.items()},
        labels=file.labels,
        model=model,
        rank=file.rank,
        device=file.device,
        epsilon=file.epsilon,
        delta=file.delta,
        ledger=str(directory / file.state / "privacy.json"),
        kept=str(directory / file.state / "kept"),
    )
    return Node(
        settings=settings,
        directory=directory,
        superlink=file.superlink,
        key=directory / file.key,
        ca=directory / file.ca,
        state=directory / file.state,
        poll=file.poll,
    )


def _beside(directory: Path, name: str) -> str:
    return str(directory / Path(name).expanduser())
