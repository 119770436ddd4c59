"""The two halves of fedrot as Flower apps: `client` for nodes, `server` for a SuperLink."""

from __future__ import annotations

import os
import tomllib
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp

from fedrot.config import RunConfig, parse_config
from fedrot.engines.flower.blocks import blocks
from fedrot.engines.flower.deploy.claims import load_claims
from fedrot.engines.flower.deploy.layout import SERVER_FOLDER, load_server
from fedrot.engines.flower.messages import FACTS
from fedrot.engines.flower.node import NodeSettings, load_node
from fedrot.engines.flower.packing import PackedGrid, pack, packed, to_bytes, unpack
from fedrot.engines.flower.roster import Vouch
from fedrot.engines.flower.worker import Worker
from fedrot.engines.observer import Observer
from fedrot.errors import ConfigError

WorkerOf = Callable[[Message, Context], Worker]

_workers: dict[str, Worker] = {}


def client_app(worker_of: WorkerOf) -> ClientApp:
    """A Flower `ClientApp` that hands every message to a worker.

    Args:
        worker_of: the worker that serves the node of a context; the same one each time, so that it stays warm.
    """
    app = ClientApp()

    def handle(message: Message, context: Context) -> Message:
        arrived = message.content
        message.content = unpack(arrived, "the server")
        content = worker_of(message, context).handle(message.metadata.message_type, message.content)
        return Message(content if packed(arrived) is None else pack(to_bytes(content)), reply_to=message)

    app.query("hello")(handle)
    app.query("write")(handle)
    app.train()(handle)
    app.evaluate()(handle)
    app.train("secure")(handle)
    return app


def worker_of_process(
    message: Message, context: Context, *, trusts_recipe: bool = False, kept: str | None = None
) -> Worker:
    """The worker of this process for a node, made when first needed and kept.

    The node's configuration is `node = "<folder with node.toml>"`; or `clients = "0-4"`; or, in Flower's simulation,
    `partition-id` and `num-partitions`, which stand for an equal share of the clients.

    Args:
        message: holds the recipe, and so the number of clients.
        context: holds the node's configuration.
        trusts_recipe: whoever wrote the recipe also runs this node, so that it may name files.
        kept: the folder of what clients keep to themselves, unless the node has a folder of its own.

    Raises:
        ConfigError: none of these is there.
    """
    config = context.node_config
    key = f"{context.node_id} {sorted(config.items())}"
    if key not in _workers:
        if "node" in config:
            settings = load_node(str(config["node"])).settings
        else:
            settings = NodeSettings(
                name=str(config.get("name", f"node-{config.get('partition-id', context.node_id)}")),
                clients=_clients(message, context),
                device=str(config.get("device", "auto")),
                trusts_recipe=trusts_recipe,
                kept=kept,
            )
        _workers[key] = Worker(settings)
    return _workers[key]


def _clients(message: Message, context: Context) -> tuple[int, ...]:
    config = context.node_config
    if "clients" in config:
        found: list[int] = []
        for part in str(config["clients"]).split(","):
            first, _, last = part.partition("-")
            if not (first.strip().isdecimal() and (not last or last.strip().isdecimal())):
                raise ConfigError(
                    f"node configuration: clients = {config['clients']!r}: expected such as '0-4' or '0,3'"
                )
            found += range(int(first), int(last or first) + 1)
        return tuple(found)
    if "partition-id" in config and "num-partitions" in config:
        recipe = message.content.config_records[FACTS]["recipe"]
        total = parse_config(tomllib.loads(str(recipe))).federation.clients
        if total is None:
            raise ConfigError("federation.clients: missing; nodes must know how many clients they share")
        return blocks(total, int(config["num-partitions"]))[int(config["partition-id"])]
    raise ConfigError(
        "node configuration: expected node = '<folder with node.toml>', or clients = '0-4'; give it to "
        "flower-supernode with --node-config"
    )


client = client_app(worker_of_process)
"""For nodes that Flower starts: it keeps its worker as long as its process lives."""

server = ServerApp()


@server.main()
def main(grid: Grid, context: Context) -> None:
    """Run a recipe over the nodes that a SuperLink knows.

    The run's configuration holds `recipe`, its TOML text; `out`, the absolute path of the run directory; and `resume`.
    """
    from fedrot.engines.flower.run import run_over
    from fedrot.engines.flower.spoken import Spoken
    from fedrot.rundir import RunDirectory

    text, out = context.run_config.get("recipe"), str(context.run_config.get("out", ""))
    if not isinstance(text, str) or not Path(out).is_absolute():
        raise ConfigError(
            "run configuration: expected recipe, the TOML text of one, and out, the absolute path of a run directory; "
            "submit runs with `fedrot deploy run`"
        )
    config: RunConfig = parse_config(tomllib.loads(text))
    resume = bool(context.run_config.get("resume", False))
    if resume:
        run, config = RunDirectory.reopen(out, config)
    else:
        run = RunDirectory(out)
        run.check_free()
    observer = Spoken()
    run_over(PackedGrid(grid), config, run, observer, resume=resume, vouch=_vouch(grid, observer))


def _vouch(grid: Grid, observer: Observer) -> Vouch | None:
    """What a deployed server holds nodes' words against; None where its folder says nothing."""
    folder = os.environ.get(SERVER_FOLDER)
    if folder is None:
        return None
    claims = load_claims(load_server(folder), grid)
    if claims is None:
        observer.note("the server has no clients.toml: any registered node may host any client that is free")
        return None
    return claims.check
