"""FedRotStrategy: what it leaves to the strategy inside, what a method replaces, and what is refused."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import strategy as flower

import fedrot
from fedrot.core import Adapter
from fedrot.core.measure import adapter_aggregation_error
from fedrot.errors import AdapterError, ConfigError
from fedrot.flower import FedRotMod, FedRotStrategy
from fedrot.methods import MethodState, Update
from tests.flower.loopback import Loopback
from tests.flower.records import SHAPES, factors, moved, named, random_adapter, record, reply_arrays

START = random_adapter(0)
HEAD = "base_model.model.score.weight"
NODES = {"min_train_nodes": 3, "min_evaluate_nodes": 3, "min_available_nodes": 3}


def place(context: Context) -> int:
    """1, 2, 3: the weight of a client as well."""
    return int(context.node_config["partition-id"]) + 1


def trained(node: int, number: int, received: Adapter) -> Adapter:
    return moved(received, 10 * number + node)


def make_app(mods: list[Any], spoil: Any = None) -> ClientApp:
    app = ClientApp(mods=mods)

    @app.train()
    def train(message: Message, context: Context) -> Message:
        (received,) = message.content.array_records.values()
        number = int(message.content.config_records["config"]["server-round"])
        old = factors({key: array.numpy() for key, array in received.items()})
        arrays = named(trained(place(context), number, old))
        arrays[HEAD] = received[HEAD].numpy() + place(context)
        if spoil is not None and place(context) == 2:
            spoil(arrays)
        metrics = MetricRecord({"num-examples": place(context), "train_loss": float(place(context))})
        return Message(RecordDict({"arrays": record(arrays), "metrics": metrics}), reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        values = MetricRecord({"num-examples": 1, "eval_loss": 2.0})
        return Message(RecordDict({"metrics": values}), reply_to=message)

    return app


def run(strategy: flower.Strategy, mods: list[Any], rounds: int = 2, spoil: Any = None) -> flower.Result:
    grid = Loopback(make_app(mods, spoil))
    result = strategy.start(grid, record(named(START)), rounds)
    assert not grid.raised
    return result


def arrays_of(result: flower.Result) -> dict[str, np.ndarray]:
    return {key: array.numpy() for key, array in result.arrays.items()}


def test_with_the_mod_the_inner_strategy_gets_what_it_would_get_alone():
    alone = run(flower.FedAvg(**NODES), [FedRotMod()])
    wrapped = run(FedRotStrategy(flower.FedAvg(**NODES)), [FedRotMod()])
    for key, value in arrays_of(alone).items():
        np.testing.assert_allclose(arrays_of(wrapped)[key], value, rtol=1e-6, atol=1e-6)
    assert wrapped.evaluate_metrics_clientapp[2]["eval_loss"] == 2.0
    for number in (1, 2):
        theirs, ours = (r.train_metrics_clientapp[number] for r in (alone, wrapped))
        assert {key: ours[key] for key in theirs} == pytest.approx(dict(theirs))
        assert set(ours) - set(theirs) == {"fedrot-error", "fedrot-error-of-means", "fedrot-rejected"}
        assert ours["fedrot-error"] == ours["fedrot-error-of-means"] > 0


def test_the_error_is_that_of_the_uploads_weighted_by_examples():
    result = run(FedRotStrategy(flower.FedAvg(**NODES)), [FedRotMod()], rounds=1)
    sent = [trained(node, 1, START) for node in (1, 2, 3)]
    expected = adapter_aggregation_error(sent, [1, 2, 3]).relative
    assert result.train_metrics_clientapp[1]["fedrot-error"] == pytest.approx(float(expected), rel=1e-6)


SERVER_SIDE: list[tuple[str, dict[str, Any]]] = [
    ("flexlora", {}),
    ("auto", {}),
    ("lora-fair", {}),
    ("hetlora", {}),
    ("fedit", {"refit": 2}),
    ("fedrot", {"reference": "consensus", "strength": 1.0}),
    ("fedrot", {"guard": "server"}),
]


@pytest.mark.parametrize(("method", "options"), SERVER_SIDE)
def test_a_method_on_the_server_replaces_the_factors_and_nothing_else(method: str, options: dict[str, Any]):
    alone = run(flower.FedAvg(**NODES), [])
    wrapped = run(FedRotStrategy(flower.FedAvg(**NODES), method, **options), [])

    made = fedrot.methods()[method](**options)
    adapter, state = START, MethodState()
    for number in (1, 2):
        updates = [Update(node, trained(node, number, adapter), node) for node in (1, 2, 3)]
        adapter, state = made.aggregate(updates, adapter, state, number)
    got = factors(arrays_of(wrapped))
    for site in SHAPES:
        torch.testing.assert_close(got.sites[site].a, adapter.sites[site].a, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(got.sites[site].b, adapter.sites[site].b, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(arrays_of(wrapped)[HEAD], arrays_of(alone)[HEAD], rtol=1e-6)
    assert list(arrays_of(wrapped)) == list(arrays_of(alone))
    theirs, ours = (result.train_metrics_clientapp[2]["train_loss"] for result in (alone, wrapped))
    assert ours == pytest.approx(theirs)


@pytest.mark.parametrize("method", ["flexlora", "refit-or-mean"])
def test_the_error_after_a_method_is_below_that_of_the_means(method: str):
    metrics = run(FedRotStrategy(flower.FedAvg(**NODES), method), []).train_metrics_clientapp[1]
    assert metrics["fedrot-error"] < 0.9 * metrics["fedrot-error-of-means"]


def test_a_server_optimiser_inside_steps_towards_the_methods_result():
    half = run(FedRotStrategy(flower.FedAvgM(**NODES, server_learning_rate=0.5), "auto"), [], rounds=1)
    whole = run(FedRotStrategy(flower.FedAvg(**NODES), "auto"), [], rounds=1)
    for key, value in named(START).items():
        expected = (value + arrays_of(whole)[key]) / 2
        np.testing.assert_allclose(arrays_of(half)[key], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"refit": 1}])
def test_a_forgotten_mod_is_said_in_the_first_round(options: dict[str, Any]):
    with pytest.raises(ConfigError, match=r"3 of 3 replies \(first: node 2\).*mods=\[FedRotMod\(\)\]"):
        run(FedRotStrategy(flower.FedAvg(**NODES), **options), [])
    run(FedRotStrategy(flower.FedAvg(**NODES), "fedit"), [])  # asks for no mod


def lose_a_factor(arrays: dict[str, np.ndarray]) -> None:
    del arrays[next(iter(arrays))]


def grow_a_nan(arrays: dict[str, np.ndarray]) -> None:
    next(iter(arrays.values()))[0, 0] = np.nan


def change_the_rank(arrays: dict[str, np.ndarray]) -> None:
    for key in list(arrays)[:2]:
        arrays[key] = arrays[key][:2] if "lora_A" in key else arrays[key][:, :2]


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lose_a_factor, "lacks factor 'a'"),
        (grow_a_nan, "not finite"),
        (change_the_rank, "need the same rank"),
    ],
)
@pytest.mark.parametrize("method", ["fedit", "flexlora"])
def test_a_reply_that_does_not_fit_is_left_out_and_counted(
    spoil: Any, reason: str, method: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    result = run(FedRotStrategy(flower.FedAvg(**NODES), method), [], 1, spoil)
    assert result.train_metrics_clientapp[1]["fedrot-rejected"] == 1
    assert result.train_metrics_clientapp[1]["train_loss"] == pytest.approx((1 * 1 + 3 * 3) / 4)
    assert any(
        "node 3" in e.message and reason in e.message for e in caplog.records if e.levelname == "WARNING"
    )


def test_a_round_without_one_usable_reply_is_an_error():
    strategy = FedRotStrategy(flower.FedAvg(**NODES), "fedit", weighted_by_key="examples")
    with pytest.raises(AdapterError, match=r"none of 3 replies.*'examples' = None"):
        run(strategy, [])


def test_a_round_in_which_every_client_fails_leaves_the_arrays_as_they_are():
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        raise MemoryError

    strategy = FedRotStrategy(flower.FedAvg(**NODES, fraction_evaluate=0.0))
    result = strategy.start(Loopback(app), record(named(START)), 1)
    assert not result.train_metrics_clientapp
    assert not result.arrays


class Saving(flower.FedAvg):
    """As apps write them: something is done with every aggregate, and `start` is their own."""

    def __init__(self) -> None:
        super().__init__(**NODES)
        self.saved: list[ArrayRecord] = []
        self.began = False

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Any:
        arrays, metrics = super().aggregate_train(server_round, replies)
        self.saved.append(arrays)
        return arrays, metrics

    def start(self, *args: Any, **kwargs: Any) -> flower.Result:
        self.began = True
        return super().start(*args, **kwargs)


def test_a_strategy_of_ones_own_saves_what_the_method_made():
    inner = Saving()
    strategy = FedRotStrategy(inner, "flexlora")
    result = run(strategy, [])
    assert inner.began
    assert len(strategy.saved) == 2
    assert "fedrot-error" in result.train_metrics_clientapp[2]
    for key, value in arrays_of(result).items():
        np.testing.assert_array_equal(inner.saved[-1][key].numpy(), value)
    assert not {"start", "summary", "aggregate_train", "configure_train"} & vars(inner).keys()


def test_flowers_clipping_around_the_strategy_and_inside_it_still_runs():
    outer = flower.DifferentialPrivacyServerSideFixedClipping(
        FedRotStrategy(flower.FedAvg(**NODES)), noise_multiplier=0.0, clipping_norm=1e6, num_sampled_clients=3
    )
    inner = FedRotStrategy(
        flower.DifferentialPrivacyServerSideFixedClipping(
            flower.FedAvg(**NODES), noise_multiplier=0.0, clipping_norm=1e6, num_sampled_clients=3
        )
    )
    plain = run(flower.FedAvg(**NODES), [FedRotMod()])
    for strategy in (outer, inner):
        result = run(strategy, [FedRotMod()])
        for key, value in arrays_of(plain).items():
            np.testing.assert_allclose(arrays_of(result)[key], value, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("method", "options", "reason"),
    [
        ("fedsa", {}, "keep a part of the adapter to themselves"),
        ("fedex", {}, "fold into its base weights"),
        ("flora", {}, "fold into its base weights"),
        ("fedmomentum", {}, "fold into its base weights"),
        ("ffa", {}, "train one factor"),
        ("rolora", {}, "train one factor"),
        ("fedsvd", {}, "train one factor"),
        ("florist", {}, "change their rank"),
        ("rescale", {}, "only FedRotMod does"),
        ("random-rotation", {}, "only FedRotMod does"),
        ("hetlora", {"prune": 0.5}, "only FedRotMod does"),
        ("fedrot", {"reference": "two-back"}, "earlier round"),
        ("fedrott", {}, "did you mean 'fedrot'"),
        ("fedrot", {"strenght": 1}, "did you mean 'strength'"),
    ],
)
def test_methods_that_a_strategy_cannot_carry_out_are_refused_with_the_reason(
    method: str, options: dict[str, Any], reason: str
):
    with pytest.raises(ConfigError, match=reason):
        FedRotStrategy(flower.FedAvg(), method, **options)


def test_every_other_method_runs():
    refused = {"fedsa", "fedex", "flora", "fedmomentum", "ffa", "rolora", "fedsvd", "florist", "rescale"}
    for name in fedrot.methods().keys() - refused - {"random-rotation"}:
        result = run(FedRotStrategy(flower.FedAvg(**NODES), name), [FedRotMod()], rounds=1)
        assert all(np.isfinite(array).all() for array in arrays_of(result).values()), name
        assert result.train_metrics_clientapp[1]["fedrot-rejected"] == 0, name


@pytest.mark.parametrize(
    ("inner", "method", "reason"),
    [
        (flower.FedMedian(), "auto", "treats clients one by one"),
        (flower.Krum(), "flexlora", "treats clients one by one"),
        (
            flower.DifferentialPrivacyServerSideFixedClipping(flower.FedAvg(), 1.0, 1.0, 2),
            "auto",
            "treats clients one by one",
        ),
        (flower.FedAdam(), "flexlora", "belong to the old one"),
        (flower.FedAvgM(server_momentum=0.9), "flexlora", "belong to the old one"),
        (flower.FedAvg, "fedrot", "expected a strategy"),
    ],
)
def test_strategies_whose_work_a_method_would_undo_are_refused(inner: Any, method: str, reason: str):
    with pytest.raises(ConfigError, match=reason):
        FedRotStrategy(inner, method)


def test_strategies_that_a_method_leaves_alone_are_accepted():
    FedRotStrategy(flower.Krum())
    FedRotStrategy(flower.FedAvgM(), "flexlora")  # without momentum it averages
    FedRotStrategy(flower.FedAdam(), "auto")


def test_steps_out_of_turn_and_arrays_without_factors_are_refused():
    strategy = FedRotStrategy(flower.FedAvg(**NODES))
    with pytest.raises(ConfigError, match="before configure_train"):
        strategy.aggregate_train(1, [])
    with pytest.raises(AdapterError, match="the arrays to send: no LoRA factors"):
        strategy.configure_train(1, record({"w": np.zeros(2)}), ConfigRecord(), Loopback(make_app([])))


def test_measuring_can_be_left_out():
    metrics = run(
        FedRotStrategy(flower.FedAvg(**NODES), measure=False), [FedRotMod()], 1
    ).train_metrics_clientapp
    assert "fedrot-error" not in metrics[1]
    assert metrics[1]["fedrot-rejected"] == 0


def test_the_order_in_which_replies_arrive_does_not_change_the_result():
    found = []
    for turn in (1, -1):
        strategy = FedRotStrategy(flower.FedAvg(**NODES), "auto")
        grid = Loopback(make_app([]))
        messages = strategy.configure_train(1, record(named(START)), ConfigRecord(), grid)
        replies = list(grid.send_and_receive(messages))
        arrays, _ = strategy.aggregate_train(1, replies[::turn])
        found.append({key: array.data for key, array in arrays.items()})
    assert found[0] == found[1]
    assert reply_arrays(grid.sent[0]).keys() == found[0].keys()


def test_the_summary_names_the_method_its_options_and_what_the_inner_strategy_says(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(logging.getLogger("flwr"), "propagate", True)
    with caplog.at_level(logging.INFO, "flwr"):
        FedRotStrategy(flower.FedAvg(**NODES), "fedrot", strength=0.3).summary()
        FedRotStrategy(flower.FedAvg(**NODES), "flexlora").summary()
    said = [entry.getMessage() for entry in caplog.records]
    assert any("fedrot {'strength': 0.3}, by FedRotMod on the clients" in line for line in said)
    assert any("flexlora, on the server" in line for line in said)
    assert sum("Weighted by: 'num-examples'" in line for line in said) == 2
