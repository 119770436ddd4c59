"""FedRotMod beside Flower's own parts: every built-in strategy, and mods that clip and add noise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.client import NumPyClient
from flwr.clientapp import ClientApp
from flwr.clientapp.mod import LocalDpMod, adaptiveclipping_mod, fixedclipping_mod
from flwr.serverapp import strategy as flower

from fedrot.core import Adapter, Factors, aggregation_error, rotate
from fedrot.core.frames import haar
from fedrot.core.rng import generator
from fedrot.flower import FedRotMod
from tests.flower.loopback import Loopback
from tests.flower.records import (
    CONTEXT,
    SHAPES,
    answering,
    factors,
    moved,
    named,
    random_adapter,
    record,
    reply_arrays,
    train_message,
)

START = random_adapter(0)
MODS = {"with the mod": [FedRotMod(strength=1.0, anchor="joint")], "without": []}


def turned(adapter: Adapter, seed: int) -> Adapter:
    """The same products in a frame of the client's own."""
    turn = {site: haar(f.rank, generator(seed, site)).float() for site, f in adapter.sites.items()}
    return Adapter({s: Factors(*rotate(f.a, f.b, turn[s])) for s, f in adapter.sites.items()})


def place(context: Context) -> int:
    return int(context.node_config["partition-id"]) + 1


def train(message: Message, context: Context) -> Message:
    """Every client learns the same, and sends it in a frame of its own."""
    (received,) = message.content.array_records.values()
    number = message.content.config_records["config"]["server-round"]
    update = turned(moved(factors({k: v.numpy() for k, v in received.items()}), number), 100 * place(context))
    metrics = MetricRecord({"num-examples": place(context), "train_loss": 1.0})
    return Message(RecordDict({"arrays": record(named(update)), "metrics": metrics}), reply_to=message)


def make_app(mods: list[Any], function: Callable[[Message, Context], Message] = train) -> ClientApp:
    app = ClientApp(mods=mods)
    app.train()(function)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        values = MetricRecord({"num-examples": 1, "eval_loss": 1.0})
        return Message(RecordDict({"metrics": values}), reply_to=message)

    return app


def relative_error(clients: list[Adapter]) -> float:
    found = []
    for site in SHAPES:
        a, b = (torch.stack([getattr(c.sites[site], f) for c in clients]) for f in "ab")
        found.append(float(aggregation_error(a, b, [1.0] * len(clients)).relative))
    return max(found)


def run(strategy: flower.Strategy, mods: list[Any], rounds: int = 2, nodes: int = 3) -> Loopback:
    grid = Loopback(make_app(mods), nodes)
    result = strategy.start(grid, record(named(START)), rounds, evaluate_config=ConfigRecord())
    assert not grid.raised
    assert set(result.arrays) == set(named(START))
    assert sorted(result.train_metrics_clientapp) == list(range(1, rounds + 1))
    return grid


def uploads(grid: Loopback, number: int) -> list[Adapter]:
    """What the clients sent in the last `number` train replies."""
    sent = [m for m in grid.sent if m.metadata.message_type == "train"]
    return [factors(reply_arrays(message)) for message in sent[-number:]]


NODES = {"min_train_nodes": 3, "min_evaluate_nodes": 3, "min_available_nodes": 3}
STRATEGIES: dict[str, Callable[[], flower.Strategy]] = {
    "FedAvg": lambda: flower.FedAvg(**NODES),
    "FedAvgM": lambda: flower.FedAvgM(**NODES, server_learning_rate=1.0, server_momentum=0.5),
    "FedProx": lambda: flower.FedProx(**NODES, proximal_mu=0.1),
    "FedAdagrad": lambda: flower.FedAdagrad(**NODES),
    "FedAdam": lambda: flower.FedAdam(**NODES),
    "FedYogi": lambda: flower.FedYogi(**NODES),
    "FedTrimmedAvg": lambda: flower.FedTrimmedAvg(**NODES),
    "Krum": lambda: flower.Krum(**NODES),
    "MultiKrum": lambda: flower.MultiKrum(**NODES, num_nodes_to_select=2),
    "Bulyan": lambda: flower.Bulyan(**NODES),
    "QFedAvg": lambda: flower.QFedAvg(client_learning_rate=0.1, **NODES),
}


@pytest.mark.parametrize("name", sorted(STRATEGIES))
def test_clients_of_any_strategy_send_factors_of_one_frame(name: str):
    aligned = uploads(run(STRATEGIES[name](), MODS["with the mod"]), 3)
    apart = uploads(run(STRATEGIES[name](), MODS["without"]), 3)
    assert relative_error(aligned) < 1e-5
    assert relative_error(apart) > 0.3


def test_fedmedian_takes_arrays_out_of_the_replies_and_still_works():
    strategy = flower.FedMedian(**NODES)
    result = strategy.start(Loopback(make_app(MODS["with the mod"])), record(named(START)), 2)
    assert sorted(result.train_metrics_clientapp) == [1, 2]


def distance(upload: Adapter, reference: Adapter) -> float:
    """As Flower's clipping measures it: over all arrays."""
    squares = [
        ((getattr(f, x) - getattr(reference.sites[s], x)) ** 2).sum()
        for s, f in upload.sites.items()
        for x in "ab"
    ]
    return float(torch.stack(squares).sum().sqrt())


def send(mods: list[Any], received: Adapter, update: Adapter) -> Adapter:
    """One client's upload after `mods`, outermost first."""
    app = make_app(mods, answering(record(named(update))))
    message = train_message(record(named(received)), {"server-round": 2, "clipping_norm": 1.0})
    return factors(reply_arrays(app(message, CONTEXT)))


@pytest.mark.parametrize("clip", [fixedclipping_mod, adaptiveclipping_mod])
def test_clipping_before_the_mod_in_the_list_bounds_what_is_sent(clip: Any):
    received = Adapter({s: Factors(0.1 * f.a, f.b) for s, f in START.sites.items()})
    update = Adapter({s: Factors(f.a, received.sites[s].b) for s, f in turned(received, 7).sites.items()})
    mod = FedRotMod(strength=1.0, anchor="a")
    assert distance(send([clip, mod], received, update), received) <= 1.0 + 1e-4
    # The other way round, a small update is clipped first and then turned: the bound that noise relies on is lost.
    assert distance(send([mod, clip], received, update), received) > 2.0


def test_local_noise_is_added_to_aligned_factors():
    quiet = LocalDpMod(clipping_norm=1e6, sensitivity=0.0, epsilon=1.0, delta=1e-5)
    mod = FedRotMod(strength=1.0, anchor="joint")
    update = turned(moved(START, 1, 0.3), 7)
    alone, both = (send(mods, START, update) for mods in ([mod], [quiet, mod]))
    for site in SHAPES:
        torch.testing.assert_close(both.sites[site].a, alone.sites[site].a, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(both.sites[site].b, alone.sites[site].b, rtol=1e-5, atol=1e-5)


def test_the_mod_can_be_given_to_one_function_alone():
    app = ClientApp()
    app.train(mods=[FedRotMod()])(answering(record(named(moved(START, 1)))))
    app.train("statistics")(answering(ArrayRecord()))
    aligned = app(train_message(record(named(START))), CONTEXT)
    other = app(train_message(ArrayRecord(), kind="train.statistics"), CONTEXT)
    assert "fedrot-rotation" in aligned.content.metric_records["metrics"]
    assert "fedrot-rotation" not in other.content.metric_records["metrics"]


def test_an_older_numpy_client_works_with_names_and_without_a_round():
    class Client(NumPyClient):
        def fit(self, parameters: list[np.ndarray], config: Any) -> Any:
            return list(named(turned(moved(START, 1), 3)).values()), 4, {"loss": 0.5}

    mod = FedRotMod(names=list(named(START)), round_key=None, anchor="joint", strength=1.0, metrics="full")
    app = ClientApp(client_fn=lambda context: Client().to_client(), mods=[mod])
    incoming = ArrayRecord(list(named(START).values()))
    content = RecordDict({"fitins.parameters": incoming, "fitins.config": ConfigRecord({})})
    reply = app(Message(content, 1, "train"), CONTEXT)
    arrays = [array.numpy() for array in reply.content.array_records["fitres.parameters"].values()]
    got = dict(zip(named(START), arrays, strict=True))
    plain = moved(START, 1)
    assert relative_error([factors(got), plain]) < 0.2
    assert reply.content.metric_records["fitres.num_examples"]["num_examples"] == 4
