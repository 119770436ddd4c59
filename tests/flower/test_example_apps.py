"""The example apps run as they are; aligned, they upload not one byte more and stand clients with other frames."""

from __future__ import annotations

import importlib
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import Context, Message, RecordDict
from flwr.cli.config_utils import load_and_validate
from flwr.clientapp import ClientApp
from flwr.common.config import flatten_dict
from flwr.serverapp import ServerApp

from fedrot.core import Adapter, Factors, rotate
from fedrot.core.frames import haar
from fedrot.core.measure import adapter_aggregation_error
from fedrot.core.rng import generator
from fedrot.engines.flower.pairs import Naming, read_pairs, write_pairs
from fedrot.flower import FedRotMod, peft_to_record
from tests.flower.loopback import Loopback

EXAMPLES = Path(__file__).parents[2] / "examples" / "flower"


@dataclass
class App:
    name: str
    client: Any
    """The module of the client app."""
    server: Any
    config: dict[str, Any]

    def run(self, client: ClientApp, folder: Path) -> Loopback:
        """Runs the server app as Flower would; returns the grid, with what clients sent."""
        outputs = {"adapter-path": str(folder / "adapter"), "save-path": str(folder)}
        config = {key: outputs.get(key, value) for key, value in self.config.items()}
        grid = Loopback(client, nodes=3, run_config=config)
        server: ServerApp = self.server.app
        server(grid, Context(1, 0, {}, RecordDict(), config))
        assert not grid.raised
        return grid

    def client_app(self, mods: list[Any]) -> ClientApp:
        """The same client functions with other mods."""
        app = ClientApp(mods=mods)
        app.train()(self.client.train)
        if hasattr(self.client, "evaluate"):
            app.evaluate()(self.client.evaluate)
        return app


@pytest.fixture(scope="module", params=["classify", "llm"])
def app(request: pytest.FixtureRequest) -> Iterator[App]:
    folder = EXAMPLES / request.param
    settings = tomllib.loads((folder / "pyproject.toml").read_text("utf-8"))["tool"]["flwr"]["app"]
    parts = {kind: settings["components"][kind].partition(":")[0] for kind in ("clientapp", "serverapp")}
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        modules = {kind: importlib.import_module(part) for kind, part in parts.items()}
        yield App(request.param, modules["clientapp"], modules["serverapp"], flatten_dict(settings["config"]))


@dataclass
class Finished:
    grid: Loopback
    folder: Path


@pytest.fixture(scope="module")
def as_it_is(app: App, tmp_path_factory: pytest.TempPathFactory) -> Finished:
    """The app run once, unchanged."""
    folder = tmp_path_factory.mktemp(app.name)
    return Finished(app.run(app.client.app, folder), folder)


STEPS = {"local-steps": 5, "train.max-steps": 5}
MOD = FedRotMod(strength=1.0, anchor="joint")


@pytest.fixture(scope="module")
def by_mods(app: App, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Loopback]:
    """Two rounds of it with plain FedAvg and other mods on the clients."""
    short = replace(app, config=app.config | {"num-server-rounds": 2, **STEPS})
    kinds = {"plain": [], "mod": [MOD], "turned": [turning], "turned, mod": [MOD, turning]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app.server, "FedRotStrategy", lambda inner: inner, raising=False)
        return {
            kind: short.run(app.client_app(mods), tmp_path_factory.mktemp("run"))
            for kind, mods in kinds.items()
        }


def train_replies(grid: Loopback) -> list[Message]:
    return [message for message in grid.sent if message.metadata.message_type == "train"]


def uploads(grid: Loopback, last: int) -> list[Adapter]:
    found = []
    for message in train_replies(grid)[-last:]:
        (record,) = message.content.array_records.values()
        found.append(read_pairs(record, Naming().pairs(record, "reply"), "reply"))
    return found


def metric(message: Message, name: str) -> float:
    (values,) = message.content.metric_records.values()
    return values[name]


def turning(message: Message, context: Context, call_next: Any) -> Message:
    """A mod under which every client sends its factors in a frame of its own; the products stay."""
    reply = call_next(message, context)
    if message.metadata.message_type == "train":
        record = reply.content.array_records["arrays"]
        pairs = Naming().pairs(record, "reply")
        sites: dict[str, Factors] = {}
        for site, f in read_pairs(record, pairs, "reply").sites.items():
            turn = haar(f.rank, generator(5, site, client=int(context.node_config["partition-id"]))).float()
            sites[site] = Factors(*rotate(f.a, f.b, turn))
        reply.content["arrays"] = write_pairs(record, pairs, Adapter(sites))
    return reply


def test_flower_accepts_the_apps_description(app: App):
    config, warnings = load_and_validate(EXAMPLES / app.name / "pyproject.toml", check_module=False)
    assert config["project"]["name"] == f"{app.name}-app"
    assert warnings == []


def test_the_app_learns_and_its_clients_rotate_from_the_second_round_on(app: App, as_it_is: Finished):
    replies = train_replies(as_it_is.grid)
    losses = [sum(metric(m, "train_loss") for m in replies[i : i + 3]) for i in range(0, len(replies), 3)]
    assert len(losses) == app.config["num-server-rounds"]
    assert losses[-1] < 0.7 * losses[0]
    rotations = [metric(message, "fedrot-rotation") for message in replies]
    assert rotations[:3] == [0, 0, 0]
    assert all(size > 0 for size in rotations[3:])


def test_what_the_app_saves_loads_with_peft(app: App, as_it_is: Finished):
    saved = {"classify": ["adapter"], "llm": ["peft_2", "peft_4"]}[app.name]
    assert sorted(path.name for path in as_it_is.folder.iterdir()) == saved
    last = as_it_is.folder / saved[-1]
    sent = uploads(as_it_is.grid, 3)
    stored = peft_to_record(last)
    mean = read_pairs(stored, Naming().pairs(stored, "adapter"), "adapter")
    for site, f in mean.sites.items():  # partitions are of one size
        torch.testing.assert_close(f.b, sum(one.sites[site].b for one in sent) / 3, rtol=1e-4, atol=1e-5)


def test_uploads_are_not_one_byte_longer_but_for_the_metrics(by_mods: dict[str, Loopback]):
    plain, aligned = ([lengths(m) for m in train_replies(by_mods[kind])] for kind in ("plain", "mod"))
    assert [arrays for arrays, _ in aligned] == [arrays for arrays, _ in plain]
    assert max(m for _, m in aligned) - min(m for _, m in plain) < 1000


def lengths(message: Message) -> tuple[int, int]:
    (arrays,), (metrics,) = message.content.array_records.values(), message.content.metric_records.values()
    return arrays.count_bytes(), metrics.count_bytes()


def test_frames_of_their_own_spoil_the_average_of_clients_without_the_mod_only(by_mods: dict[str, Loopback]):
    errors = {
        kind: float(adapter_aggregation_error(uploads(grid, 3), [1.0, 1.0, 1.0]).relative)
        for kind, grid in by_mods.items()
    }
    assert errors["turned"] > 0.5
    assert errors["turned, mod"] < 0.25 * errors["turned"]
