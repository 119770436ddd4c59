"""Deviations of published code: each changes what its name says and nothing else, and is off unless asked for."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fedrot.comparison.reading import make_design
from fedrot.comparison.store import cell_key
from fedrot.config import RunConfig
from fedrot.core.adapter import Adapter, Factors
from fedrot.engines import compat
from fedrot.engines.flower.run import check_flower
from fedrot.engines.run import run
from fedrot.engines.setup import prepare
from fedrot.errors import ConfigError
from fedrot.methods import MethodState, Trainable, Update, build
from fedrot.methods.fedrot import FedRot

Make = Callable[..., RunConfig]
SCALE = 2.0


def adapter(seed: int, *, clients: int | None = None, rank: int = 3) -> Adapter:
    """Random factors of two sites and a head; a stack of `clients`, if given."""
    draw = torch.Generator().manual_seed(seed)
    batch = () if clients is None else (clients,)
    sites = {
        name: Factors(
            torch.randn(*batch, rank, 7, generator=draw), torch.randn(*batch, 5, rank, generator=draw)
        )
        for name in ("q", "v")
    }
    return Adapter(sites, {"head.weight": torch.randn(*batch, 2, 5, generator=draw)}, SCALE)


def updates(clients: int = 3) -> list[Update]:
    stack = adapter(1, clients=clients)
    return [Update(client, stack.select(client), 1.0 + client) for client in range(clients)]


def made(recipe: Make, name: str, flag: str | None, **options: Any) -> Any:
    """A method by a recipe, with one deviation or none."""
    config = recipe(
        method={"name": name, **options}, compat={flag: True} if flag else {}, lora={"rank": 3, "alpha": 6.0}
    )
    return compat.method_of(config)


def equal(one: Adapter, other: Adapter) -> bool:
    theirs = other.tensors()
    return all(torch.equal(tensor, theirs[key]) for key, tensor in one.tensors().items())


def test_nothing_deviates_unless_asked(recipe: Make) -> None:
    config = recipe()
    assert compat.flags(config) == frozenset()
    assert compat.method_of(config) == build("fedrot", {}, 3)
    assert compat.train_settings(config) is config.train
    assert compat.precision(config) == "float32"
    assert compat.notes(config) == ()
    assert compat.weight(config, 17) == 17
    given = adapter(0)
    assert compat.starting(config, given) is given


@pytest.mark.parametrize(
    ("flag", "settings", "remedy"),
    [
        ("hard_reflections", {"method": {"name": "fedit"}}, "only with 'fedrot'"),
        ("hard_reflections", {"method": {"name": "fedrot", "path": "geodesic"}}, "chordal"),
        ("half_rotations", {"method": {"name": "flexlora"}}, "'fedrot' and 'random-rotation'"),
        ("half_rotations", {"method": {"name": "fedrot", "guard": "server"}}, "'client' or false"),
        ("anchor_parity", {"method": {"name": "ffa"}}, "'fedrot' and 'rescale'"),
        ("anchor_parity", {"method": {"name": "fedrot", "anchor": "joint"}}, "'alternate'"),
        ("anchor_parity", {"method": {"name": "fedrot", "reference": "consensus"}}, "'previous'"),
        ("endless_warm_up", {"method": {"name": "rolora"}, "train__lr": 5e-4}, "only with 'fedrot'"),
        ("endless_warm_up", {"train__lr": 2e-2}, "0.0005 and 0.001"),
        ("weight_by_steps", {"federation__weighting": "uniform"}, "'samples'"),
        ("weight_by_steps", {"train": {"local_epochs": 1}}, "train.local_steps"),
        ("ffa_trains_a", {"method": {"name": "fedit"}}, "only with 'ffa'"),
        ("rolora_a_first", {"method": {"name": "ffa"}}, "only with 'rolora'"),
        ("rolora_freezes_head", {"method": {"name": "fedit"}}, "only with 'rolora'"),
        ("unscaled_residual", {"method": {"name": "fedit"}}, "'fedex' and 'fedmomentum' and 'flora'"),
        ("lopsided_svd", {"method": {"name": "fedsvd"}}, "only with 'flexlora'"),
    ],
)
def test_a_deviation_without_meaning_is_refused(
    recipe: Make, flag: str, settings: dict[str, Any], remedy: str
) -> None:
    with pytest.raises(ConfigError, match=f"compat.{flag} = true: .*{remedy}"):
        compat.method_of(recipe(compat={flag: True}, **settings))


def test_published_turns_on_what_means_something_and_a_flag_may_stay_out(recipe: Make) -> None:
    every = compat.flags(recipe(compat={"published": True}))
    assert every == {
        *("hard_reflections", "half_rotations", "half_weights", "anchor_parity"),
        *("weight_by_steps", "validation_maximum"),
    }
    but_one = compat.flags(recipe(compat={"published": True, "half_weights": False}))
    assert but_one == every - {"half_weights"}
    warmed = compat.flags(recipe(compat={"published": True}, train__lr=1e-3))
    assert warmed == every | {"endless_warm_up"}
    assert set(compat.FLAGS) == {*every, "endless_warm_up"} | set.union(
        *(
            set(compat.flags(recipe(compat={"published": True}, method={"name": name})))
            for name in ("ffa", "rolora", "fedex", "flexlora")
        )
    )


@pytest.mark.parametrize(
    "other",
    [
        {"engine": {"name": "flower"}},
        {"privacy": {"mechanism": "central"}},
        {"output": {"diagnostics": True}},
    ],
)
def test_deviations_are_for_the_plain_local_engine(recipe: Make, other: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"compat\.half_weights = true with .*leave one of the two out"):
        compat.check_compat(recipe(compat={"half_weights": True}, **other))
    compat.check_compat(recipe(**other))


def test_flower_refuses_deviations(recipe: Make) -> None:
    with pytest.raises(ConfigError, match="reproduced by the local engine alone"):
        check_flower(recipe(compat={"published": True}, engine={"name": "flower"}))


def test_hard_reflections_are_the_whole_orthogonal_solution(recipe: Make) -> None:
    """At any strength, and where the best orthogonal matrix has determinant -1."""
    received, method = adapter(0), made(recipe, "fedrot", "hard_reflections", strength=0.3)
    mirror = torch.diag(torch.tensor([1.0, 1.0, -1.0]))
    mirrored = {site: Factors(mirror @ f.a, f.b @ mirror) for site, f in received.sites.items()}
    trained = Adapter(mirrored, received.head, SCALE)
    ours = build("fedrot", {"strength": 1.0}, 0).before_upload(trained, received, 3)
    theirs = method.before_upload(trained, received, 3)
    for site, f in theirs.adapter.sites.items():
        torch.testing.assert_close(f.a, received.sites[site].a)  # the mirror is undone
        assert not torch.allclose(ours.adapter.sites[site].a, f.a, atol=1e-2)
    assert method.trainable(1) == Trainable()


def test_half_rotations_change_the_product_by_float16_rounding(recipe: Make) -> None:
    trained, received = adapter(2), adapter(0)
    for name in ("fedrot", "random-rotation"):
        ours = made(recipe, name, None).before_upload(trained, received, 3)
        theirs = made(recipe, name, "half_rotations").before_upload(trained, received, 3)
        matrix = theirs.rotation.matrix
        assert torch.equal(matrix, matrix.half().float())
        for site, f in trained.sites.items():
            product, exact = f.b @ f.a, ours.adapter.sites[site]
            rounded = theirs.adapter.sites[site]
            off = ((rounded.b @ rounded.a - product).norm() / product.norm()).item()
            assert ((exact.b @ exact.a - product).norm() / product.norm()).item() < 2e-6 < off < 2e-3


@pytest.mark.parametrize("name", ["fedrot", "rescale"])
def test_anchor_parity_aligns_a_in_even_rounds(recipe: Make, name: str) -> None:
    trained, received, method = adapter(2), adapter(0), made(recipe, name, "anchor_parity")
    assert equal(method.before_upload(trained, received, 1).adapter, trained), (
        "the first round stays unaligned"
    )
    for round, anchor in ((2, "a"), (3, "b"), (4, "a")):
        expected = build(name, {"anchor": anchor}, 0).before_upload(trained, received, round).adapter
        assert equal(method.before_upload(trained, received, round).adapter, expected)
        plain = build(name, {}, 0).before_upload(trained, received, round).adapter
        assert not equal(plain, expected)


def test_ffa_that_trains_a_is_fedit(recipe: Make) -> None:
    method, received = made(recipe, "ffa", "ffa_trains_a"), adapter(0)
    assert method.name == "ffa"
    assert method.trainable(1) == method.uploads(1) == Trainable()
    averaged, _ = method.aggregate(updates(), received, MethodState(), 1)
    assert equal(averaged, build("fedit", {}, 0).aggregate(updates(), received, MethodState(), 1)[0])
    assert not equal(averaged, build("ffa", {}, 0).aggregate(updates(), received, MethodState(), 1)[0])


def test_rolora_with_a_first_swaps_its_rounds(recipe: Make) -> None:
    method, received = made(recipe, "rolora", "rolora_a_first"), adapter(0)
    assert [method.trainable(round).a for round in (1, 2, 3)] == [True, False, True]
    averaged, _ = method.aggregate(updates(), received, MethodState(), 1)
    for site, f in averaged.sites.items():
        assert torch.equal(f.b, received.sites[site].b)
        assert not torch.equal(f.a, received.sites[site].a)
    assert method.trainable(1).head


@pytest.mark.parametrize("name", ["fedex", "flora", "fedmomentum"])
def test_an_unscaled_residual_lacks_the_scale(recipe: Make, name: str) -> None:
    received = adapter(0)
    plain, _ = made(recipe, name, None).aggregate(updates(), received, MethodState(), 1)
    theirs, _ = made(recipe, name, "unscaled_residual").aggregate(updates(), received, MethodState(), 1)
    assert equal(Adapter(theirs.sites, theirs.head, SCALE), Adapter(plain.sites, plain.head, SCALE))
    for site, f in plain.residual.items():
        g = theirs.residual[site]
        torch.testing.assert_close(SCALE * (g.b @ g.a), f.b @ f.a)


def test_a_lopsided_svd_is_u_root_s_v(recipe: Make) -> None:
    received, sent = adapter(0), updates()
    theirs, _ = made(recipe, "flexlora", "lopsided_svd").aggregate(sent, received, MethodState(), 1)
    shares = [update.weight / 6 for update in sent]
    for site, f in theirs.sites.items():
        products = [u.adapter.sites[site].b.double() @ u.adapter.sites[site].a.double() for u in sent]
        u, s, vh = torch.linalg.svd(sum(p * share for p, share in zip(products, shares, strict=True)))
        expected = (u[:, :3] * s[:3].sqrt()) @ vh[:3]
        torch.testing.assert_close((f.b @ f.a).double(), expected, rtol=1e-4, atol=1e-5)


def test_weights_by_steps_count_the_examples_of_the_batches(recipe: Make) -> None:
    """20 batches of at most 128: of 100 examples 20 x 100, of 300 six passes of 3 batches and 2 more of 128 each."""
    train = {"local_steps": 20, "batch_size": 128}
    config = recipe(train=train, compat={"weight_by_steps": True})
    found = [compat.weight(config, examples) for examples in (100, 300, 2560, 100_000)]
    assert found == [2000, 6 * 300 + 2 * 128, 2560, 2560]
    assert [compat.weight(recipe(train=train), n) for n in (100, 300)] == [100, 300]


def test_half_steps_round_gradient_and_result_and_follow_sgd_on_float16_tensors() -> None:
    draw = torch.Generator().manual_seed(0)
    start = torch.randn(50, 8, generator=draw).half()
    wide, narrow, expected = start.float().requires_grad_(), start.clone().requires_grad_(), start
    ours, theirs = (torch.optim.SGD([tensor], lr=0.05) for tensor in (wide, narrow))
    compat.keep_half(ours)
    for _ in range(5):
        gradient = torch.randn(50, 8, generator=draw)
        wide.grad, narrow.grad = gradient.clone(), gradient.half()
        expected = (expected.double() - 0.05 * gradient.half().double()).float().half()
        ours.step()
        theirs.step()
        torch.testing.assert_close(wide.half(), expected, rtol=2**-10, atol=0)
        torch.testing.assert_close(wide.half(), narrow, rtol=2**-8, atol=2**-10)
        assert torch.equal(wide, wide.half().float())


def test_the_maximum_over_rounds_is_the_first_best_one(recipe: Make) -> None:
    records = [{"round": n, "accuracy": a} for n, a in ((1, 0.5), (2, 0.8), (3, 0.8), (4, 0.6))]
    assert compat.reported(recipe(), records, "accuracy", "higher")["round"] == 4
    hindsight = recipe(compat={"validation_maximum": True})
    assert compat.reported(hindsight, records, "accuracy", "higher")["round"] == 2
    assert compat.reported(hindsight, records, "accuracy", "lower")["round"] == 1


def test_a_published_run_says_so_and_keeps_float16(recipe: Make, tmp_path: Path) -> None:
    config = recipe(
        compat={"published": True},
        lora__dropout=0.1,
        task__max_test=16,
        task__validation_fraction=0.0,
        train__local_steps=1,
    )
    result = run(config, out=tmp_path / "run")
    assert equal(result.adapter, result.adapter.map(lambda tensor: tensor.half().float()))
    best = max(record["accuracy"] for record in result.records)
    assert result.summary["final"]["accuracy"] == best
    told = [note for note in result.summary["notes"] if note.startswith("compat.")]
    assert len(told) == len(compat.flags(config)) == 6
    assert all(math.isfinite(record["loss"]) for record in result.records)
    federation = prepare(config)
    assert {p.dtype for p in federation.base.module.parameters()} == {torch.float16}
    assert set(federation.weights) == {4.0}, "one step of 4 examples, whoever has how many"


def test_a_frozen_head_stays_and_the_adapter_moves(recipe: Make, tmp_path: Path) -> None:
    config = recipe(method={"name": "rolora"}, compat={"rolora_freezes_head": True}, federation__rounds=1)
    initial, result = prepare(config).initial, run(config, out=tmp_path / "run")
    for name, tensor in result.adapter.head.items():
        torch.testing.assert_close(tensor, initial.head[name], rtol=0, atol=1e-6)  # a mean of equal numbers
    assert not equal(Adapter(result.adapter.sites, {}, SCALE), Adapter(initial.sites, {}, SCALE))


def test_the_endless_warm_up_trains_at_its_own_rate_throughout(recipe: Make, tmp_path: Path) -> None:
    asked = recipe(train__lr=5e-4, compat={"endless_warm_up": True})
    assert compat.train_settings(asked) == recipe(train__lr=5e-3).train
    warmed, plain = (
        run(config, out=tmp_path / name).adapter
        for name, config in (("warmed", asked), ("plain", recipe(train__lr=5e-3)))
    )
    assert equal(warmed, plain)


def test_a_grid_over_a_deviation_changes_only_the_methods_it_concerns(recipe: Make) -> None:
    table = {"methods": ["fedit", "fedrot"], "seeds": [1], "grid": {"compat.anchor_parity": [True, False]}}
    design = make_design(recipe().model_dump(exclude={"output"}, exclude_none=True), table, {})
    on, off = design.points
    keys = {
        (name, p is on): cell_key(design.config(name, p, {}, 1))
        for name in design.variants
        for p in (on, off)
    }
    assert keys["fedit", True] == keys["fedit", False]
    assert keys["fedrot", True] != keys["fedrot", False]
    assert keys["fedrot", False] == cell_key(recipe(seed=1)), "off is as if there were no such key"
    with pytest.raises(ConfigError, match=r"grid compat\.ffa_trains_a: it means nothing with fedit, fedrot"):
        make_design(
            recipe().model_dump(exclude={"output"}, exclude_none=True),
            {**table, "grid": {"compat.ffa_trains_a": [True, False]}},
            {},
        )


def test_a_wrapped_method_keeps_its_name_and_its_promises_to_the_engine(recipe: Make) -> None:
    plain = build("fedrot", {"reference": "two-back"}, 0)
    wrapped = made(recipe, "fedrot", "half_rotations", reference="two-back")
    assert isinstance(plain, FedRot)
    assert (wrapped.name, wrapped.laws, wrapped.reference_lag) == ("fedrot", plain.laws, 1)
    assert wrapped.secure_aggregation == plain.secure_aggregation
    assert wrapped.changes(2) == plain.changes(2)
