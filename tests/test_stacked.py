"""Clients trained stacked get what each would have got alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fedrot.cache import FrozenCache
from fedrot.client import Trained, clip_per_client, plan_group, train_group
from fedrot.config import RunConfig
from fedrot.core import Adapter, Factors, alike
from fedrot.core.adapter import stack
from fedrot.core.diagnostics import drift
from fedrot.core.dropout import keep_mask
from fedrot.engines.setup import Federation, prepare
from fedrot.errors import ConfigError, ModelError
from fedrot.evaluate import predict
from fedrot.methods import Trainable
from fedrot.model.dense import facing
from fedrot.stacked import StackedLoRA
from fedrot.tasks import loss as example_loss
from tests.ordinary import peft_parameters
from tests.shapes import build

Make = Callable[..., RunConfig]


def train(
    federation: Federation,
    groups: list[list[int]],
    trainable: Trainable | None = None,
    dtype: torch.dtype = torch.float32,
) -> dict[int, dict[str, Tensor]]:
    """Every client's tensors after one round, trained in the given groups."""
    found: dict[int, dict[str, Tensor]] = {}
    for group in groups:
        result = train_once(federation, group, trainable, dtype)
        found |= {client: result.adapter.select(i).tensors() for i, client in enumerate(group)}
    return found


def train_once(
    federation: Federation,
    group: list[int],
    trainable: Trainable | None = None,
    dtype: torch.dtype = torch.float32,
) -> Trained:
    settings = federation.config.train
    rows = [federation.partition.rows[client] for client in group]
    lengths = federation.train.data.lengths
    plan = plan_group(group, rows, settings, seed=federation.config.seed, round=1, lengths=lengths)
    start = federation.initial.map(lambda t: t.to(dtype) + 0.01)  # away from b = 0, so that both factors move
    return train_group(
        federation.model,
        federation.objective,
        federation.train.data,
        start,
        plan,
        settings,
        trainable or Trainable(),
        federation.train.cache,
    )


def assert_close(
    mine: dict[int, dict[str, Tensor]], other: dict[int, dict[str, Tensor]], tolerance: float = 2e-5
) -> None:
    assert mine.keys() == other.keys()
    for client, tensors in mine.items():
        for key, tensor in tensors.items():
            torch.testing.assert_close(
                tensor, other[client][key], rtol=tolerance, atol=tolerance, msg=f"{client} {key}"
            )


@pytest.mark.parametrize(
    "options",
    [
        {"train__optimizer": "sgd", "train__lr": 0.1},
        {"train__optimizer": "momentum", "train__lr": 0.05},
        {"train__optimizer": "adamw", "train__weight_decay": 0.1, "train__head_lr": 0.02},
        {"train__optimizer": "sgd", "train__lr": 0.1, "train__accumulate": 2},
        {"train__optimizer": "sgd", "train__lr": 0.1, "lora__dropout": 0.3},
        {"train__optimizer": "sgd", "train__lr": 0.1, "train__local_steps": None, "train__local_epochs": 1},
        {"train__optimizer": "sgd", "train__lr": 0.1, "model__pooling": "model", "lora__train_head": False},
    ],
    ids=lambda options: "-".join(str(value) for value in options.values()),
)
def test_any_group_size_gives_the_same_adapters(recipe: Make, options: dict[str, Any]) -> None:
    federation = prepare(recipe(**options))
    alone = train(federation, [[0], [1], [2], [3]])
    # AdamW divides a gradient by its own size, rounding noise included, so float32 is compared where noise stays noise.
    if options["train__optimizer"] != "adamw":
        assert_close(alone, train(federation, [[0, 1, 2, 3]]))
    federation.base.module.double()
    exact = train(federation, [[0], [1], [2], [3]], dtype=torch.float64)
    assert_close(exact, train(federation, [[0, 1, 2, 3]], dtype=torch.float64), 1e-9)
    assert_close(exact, train(federation, [[3, 1], [0, 2]], dtype=torch.float64), 1e-9)
    start = federation.initial.map(lambda t: t + 0.01).tensors()
    moved = [key for key, tensor in alone[0].items() if not torch.equal(tensor, start[key])]
    assert len(moved) == len(start), "every trained tensor moves"


@pytest.mark.parametrize(
    "options", [{"train__local_steps": 3}, {"train__local_steps": None, "train__local_epochs": 1}]
)
def test_factors_that_share_their_memory_train_as_others(
    recipe: Make, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator, where sites of one shape lie in one storage; equal and unequal numbers of steps."""
    federation = prepare(recipe(train__optimizer="adamw", train__lr=0.01, **options))
    apart = train_once(federation, [0, 1, 2, 3])
    monkeypatch.setattr(alike, "batched", lambda device: True)
    together = train_once(federation, [0, 1, 2, 3])
    sites = together.adapter.sites.values()
    assert len({f.a.untyped_storage().data_ptr() for f in sites}) < len(sites)
    for key, tensor in together.adapter.tensors().items():
        torch.testing.assert_close(tensor, apart.adapter.tensors()[key], rtol=1e-6, atol=1e-7)


def test_stacked_training_equals_an_ordinary_peft_loop(recipe: Make) -> None:
    """The same base model, adapter and batches, in plain PEFT with torch's own optimiser and clipping."""
    from peft import LoraConfig, get_peft_model

    config = recipe(
        model__pooling="model",
        lora__target_modules=["query", "value"],
        train__optimizer="adamw",
        train__local_steps=4,
    )
    federation = prepare(config)
    mine = train(federation, [[0, 1, 2, 3]])
    start = federation.initial.map(lambda t: t + 0.01)
    rows, lengths = [federation.partition.rows[2]], federation.train.data.lengths
    plan = plan_group([2], rows, config.train, seed=config.seed, round=1, lengths=lengths)
    federation.model.close()
    peft = get_peft_model(
        federation.base.module,
        LoraConfig(r=2, lora_alpha=4, target_modules=["query", "value"], task_type="SEQ_CLS"),
    ).eval()
    trained = peft_parameters(peft, start)
    optimizer = torch.optim.AdamW(trained, lr=config.train.lr, weight_decay=0.0)
    for rows in plan.rows:
        batch = federation.train.data.batch(rows.flatten())
        loss = peft(
            input_ids=batch.input_ids,
            attention_mask=batch.attention_mask,
            token_type_ids=batch.token_type_ids,
            labels=batch.labels,
        ).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    for key, parameter in zip(start.tensors(), trained, strict=True):
        torch.testing.assert_close(mine[2][key], parameter.detach(), rtol=1e-4, atol=2e-5, msg=key)


@pytest.mark.parametrize("pooling", ["mean", "model"])
def test_cached_frozen_blocks_change_nothing(recipe: Make, pooling: str) -> None:
    options = {
        "lora__layers": "last:2",
        "train__optimizer": "sgd",
        "train__lr": 0.1,
        "model__pooling": pooling,
    }
    plain, cached = prepare(recipe(**options)), prepare(recipe(**options, train__cache_frozen=True))
    assert plain.train.cache is None
    assert cached.train.cache is not None
    assert_close(train(plain, [[0, 1, 2, 3]]), train(cached, [[0, 1, 2, 3]]))
    assert bool(cached.train.cache.filled.any())


def test_what_a_process_needs_alone_is_computed_without_the_examples_of_others(recipe: Make) -> None:
    federation = prepare(recipe(lora__layers="last:1", train__cache_frozen=True))
    cache, own = federation.train.cache, federation.partition.rows[1]
    assert cache is not None
    rows = torch.arange(len(federation.train.data))
    batch = federation.train.data.batch(rows)
    cache.ensure(rows)
    together = cache.hidden(batch).clone()
    cache.compute_apart(own)
    cache.ensure(own[:1])
    filled = set(cache.filled.nonzero().flatten().tolist())
    assert filled <= set(own.tolist())
    cache.compute_apart(own)
    assert set(cache.filled.nonzero().flatten().tolist()) == filled, "nothing to forget"
    cache.ensure(rows)
    torch.testing.assert_close(cache.hidden(batch), together, rtol=1e-5, atol=1e-5)


def test_caching_needs_a_frozen_block(recipe: Make) -> None:
    with pytest.raises(ConfigError, match=r"cache_frozen = true.*lora\.layers"):
        prepare(recipe(train__cache_frozen=True))


def test_cache_limit_is_kept(recipe: Make) -> None:
    federation = prepare(recipe(lora__layers="last:1"))
    cache = FrozenCache(federation.crew, federation.train.data, limit_mb=0)
    with pytest.raises(ConfigError, match=r"cache_limit_mb = 0: .* need up to .* MB; raise the limit"):
        cache.ensure(torch.arange(3))


def test_frozen_factors_do_not_move(recipe: Make) -> None:
    federation = prepare(recipe())
    start = federation.initial.map(lambda t: t + 0.01)
    for trainable in (Trainable(a=False, b=True), Trainable(a=True, b=False)):
        tensors = train(federation, [[0, 1]], trainable)[1]
        for key, tensor in start.tensors().items():
            frozen = (key.endswith("/a") and not trainable.a) or (key.endswith("/b") and not trainable.b)
            assert torch.equal(tensors[key], tensor) == frozen, key


def test_one_client_with_nan_does_not_touch_the_others(recipe: Make) -> None:
    federation = prepare(recipe(train__optimizer="sgd", train__lr=0.1))
    expected = train(federation, [[0], [1], [2]])
    rows = [federation.partition.rows[client] for client in range(3)]
    lengths = federation.train.data.lengths
    plan = plan_group(
        range(3), rows, federation.config.train, seed=federation.config.seed, round=1, lengths=lengths
    )
    plan.weight[:, 1] = float("nan")
    start = federation.initial.map(lambda t: t + 0.01)
    result = train_group(
        federation.model,
        federation.objective,
        federation.train.data,
        start,
        plan,
        federation.config.train,
        Trainable(),
    )
    assert result.finite.tolist() == [True, False, True]
    for client in (0, 2):
        assert_close({client: expected[client]}, {client: result.adapter.select(client).tensors()})


def test_batches_of_a_client_do_not_depend_on_the_others(recipe: Make) -> None:
    federation = prepare(recipe())
    rows = federation.partition.rows
    together = plan_group([0, 1, 2], rows[:3], federation.config.train, seed=5, round=7)
    alone = plan_group([1], rows[1:2], federation.config.train, seed=5, round=7)
    assert torch.equal(together.rows[:, 1], alone.rows[:, 0])
    other_round = plan_group([1], rows[1:2], federation.config.train, seed=5, round=8)
    assert not torch.equal(alone.rows, other_round.rows)
    assert set(alone.rows.flatten().tolist()) <= set(rows[1].tolist())


@pytest.mark.parametrize("epochs", [None, 2])
def test_buckets_hold_the_same_examples_with_less_padding(recipe: Make, epochs: int | None) -> None:
    federation = prepare(recipe(train__local_steps=None if epochs else 6, train__local_epochs=epochs))
    lengths, settings = federation.train.data.lengths, federation.config.train
    rows = [federation.partition.rows[client] for client in range(4)]
    plain = plan_group(range(4), rows, settings, seed=1, round=2)
    dealt = plan_group(range(4), rows, settings, seed=1, round=2, lengths=lengths)
    real = [(plan.weight > 0) for plan in (plain, dealt)]
    for client in range(4):
        before, after = (
            p.rows[:, client][keep[:, client]].sort()[0] for p, keep in zip((plain, dealt), real, strict=True)
        )
        assert torch.equal(before, after)
        torch.testing.assert_close(
            dealt.weight[:, client].sum(-1)[: dealt.steps[client]], torch.ones(int(dealt.steps[client]))
        )
    padded = [lengths[plan.rows].flatten(1).amax(1).sum() for plan in (plain, dealt)]
    assert padded[1] < padded[0] or epochs is not None
    one_by_one = [
        [lengths[plan.rows[:, client]].amax(1).sum() for client in range(4)] for plan in (plain, dealt)
    ]
    assert sum(one_by_one[1]) < sum(one_by_one[0])


def test_clipping_is_per_client_and_follows_torch() -> None:
    draw = torch.Generator().manual_seed(0)
    tensors = [torch.zeros(3, 4, 5, requires_grad=True), torch.zeros(3, 7, requires_grad=True)]
    sizes = torch.tensor([0.01, 1.0, 30.0])
    for tensor in tensors:
        scale = sizes.view(-1, *([1] * (tensor.ndim - 1)))
        tensor.grad = torch.randn(tensor.shape, generator=draw) * scale
    expected: list[list[Tensor]] = []
    for client in range(3):
        lone = [torch.zeros_like(tensor[client]).requires_grad_() for tensor in tensors]
        for copy, tensor in zip(lone, tensors, strict=True):
            assert tensor.grad is not None
            copy.grad = tensor.grad[client].clone()
        torch.nn.utils.clip_grad_norm_(lone, 1.0)
        expected.append([copy.grad for copy in lone if copy.grad is not None])
    clip_per_client(tensors, 1.0)
    for client in range(3):
        for tensor, right in zip(tensors, expected[client], strict=True):
            assert tensor.grad is not None
            torch.testing.assert_close(tensor.grad[client], right)


def test_dropout_masks_ignore_padding_and_neighbours() -> None:
    seeds = torch.tensor([11, 2**61 + 5, 7])
    together = keep_mask(seeds, torch.zeros(6, 9, 32), 3, 0.25).view(3, 2, 9, 32)
    alone = keep_mask(seeds[1:2], torch.zeros(2, 5, 32), 1, 0.25)
    assert torch.equal(together[1][:, :5], alone)
    big = keep_mask(seeds, torch.zeros(30, 64, 64), 3, 0.25)
    assert big.unique().tolist() == pytest.approx([0.0, 1 / 0.75])
    assert abs((big == 0).float().mean().item() - 0.25) < 0.005
    assert not torch.equal(big[:10], big[10:20])
    rows = big.view(3, 10, 64, 64)
    assert abs(torch.corrcoef(rows[0].flatten(1)).fill_diagonal_(0)).max() < 0.06


def test_heads_other_than_linear_are_refused(recipe: Make) -> None:
    with pytest.raises(ModelError, match=r"LayerNorm.*nn\.Linear"):
        prepare(recipe(lora__modules_to_save=["backbone.encoder.layer.2.output.LayerNorm", "classifier"]))


def test_a_residual_is_refused_rather_than_left_out(recipe: Make) -> None:
    federation = prepare(recipe())
    start = federation.initial
    with pytest.raises(ModelError, match="carries a residual"):
        federation.model.load(Adapter(start.sites, start.head, start.scale, residual=start.sites))


def test_a_layer_with_transposed_weights_gives_the_numbers_of_a_linear_one() -> None:
    from transformers.pytorch_utils import Conv1D

    draw = torch.Generator().manual_seed(1)
    linear, turned = nn.Linear(6, 5), Conv1D(5, 6)
    turned.weight.data, turned.bias.data = linear.weight.detach().T.contiguous(), linear.bias.detach()
    assert facing(turned, turned.weight).data_ptr() == turned.weight.data_ptr(), "a view, no copy"
    x, a, b = (torch.randn(shape, generator=draw) for shape in ((4, 3, 6), (2, 2, 6), (2, 5, 2)))
    found: list[tuple[Tensor | None, ...]] = []
    for base in (linear, turned):
        stacked, own = StackedLoRA(base.requires_grad_(False), 0), x.clone().requires_grad_()
        stacked.a, stacked.b = a.clone().requires_grad_(), b.clone().requires_grad_()
        out = stacked(own)
        out.square().sum().backward()
        found.append((out, own.grad, stacked.a.grad, stacked.b.grad))
    for mine, expected in zip(*found, strict=True):
        torch.testing.assert_close(mine, expected)


def residual_of(federation: Federation, seed: int = 0) -> dict[str, Factors]:
    draw = torch.Generator().manual_seed(seed)
    return {
        site: Factors(torch.randn(3, f.d_in, generator=draw), 0.1 * torch.randn(f.d_out, 3, generator=draw))
        for site, f in federation.initial.sites.items()
    }


@pytest.mark.parametrize("shape", ["bert", "gpt2"])
def test_a_residual_acts_like_further_directions_of_the_adapter(
    recipe: Make, tmp_path: Path, shape: str
) -> None:
    federation = prepare(recipe(model__path=str(build(shape, tmp_path))))
    start, data = federation.initial.map(lambda t: t + 0.05), federation.test.data
    residual = residual_of(federation)
    wide = {
        site: Factors(torch.cat([f.a, residual[site].a]), torch.cat([f.b, residual[site].b], 1))
        for site, f in start.sites.items()
    }
    folded = predict(federation.crew, federation.objective, replace(start, residual=residual), data, batch=16)
    torch.testing.assert_close(
        predict(federation.crew, federation.objective, replace(start, sites=wide), data, batch=16), folded
    )
    assert not torch.allclose(
        predict(federation.crew, federation.objective, start, data, batch=16), folded, atol=1e-3
    )


def test_base_weights_come_back_to_the_bit_after_any_residuals(recipe: Make) -> None:
    federation = prepare(recipe(train__precision="bfloat16"))
    before = {name: tensor.clone() for name, tensor in federation.base.module.state_dict().items()}
    stacked = federation.initial.expand(1)
    site = next(iter(federation.initial.sites))
    layer = federation.model.layers[site].base
    first = residual_of(federation, 1)
    federation.model.load(stacked, residual=first)
    once = layer.weight.clone()
    for seed in (2, 3):
        federation.model.load(stacked, residual=residual_of(federation, seed))
    assert not torch.equal(layer.weight, once)
    federation.model.load(stacked, residual=first)
    assert torch.equal(layer.weight, once), "always from the original weights"
    federation.model.unload()
    after = federation.base.module.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())
    federation.model.load(stacked, residual=first)
    federation.model.close()
    after = federation.base.module.state_dict()
    names = {name.replace(".base.", "."): tensor for name, tensor in before.items()}
    assert all(torch.equal(names[name], tensor) for name, tensor in after.items())


def test_cached_frozen_blocks_are_valid_under_a_residual(recipe: Make) -> None:
    options = {"lora__layers": "last:2", "train__optimizer": "sgd", "train__lr": 0.1}
    plain, cached = prepare(recipe(**options)), prepare(recipe(**options, train__cache_frozen=True))
    assert cached.train.cache is not None
    found: list[dict[int, dict[str, Tensor]]] = []
    for federation in (plain, cached):
        found.append(train(federation, [[0, 1]]))  # fills the cache without the residual
        start = replace(federation.initial, residual=residual_of(federation))
        rows = [federation.partition.rows[client] for client in (0, 1)]
        plan = plan_group((0, 1), rows, federation.config.train, seed=1, round=2)
        settings = federation.config.train
        result = train_group(
            federation.model,
            federation.objective,
            federation.train.data,
            start,
            plan,
            settings,
            Trainable(),
            federation.train.cache,
        )
        found.append({client: result.adapter.select(client).tensors() for client in (0, 1)})
    assert_close(found[1], found[3])
    with pytest.raises(AssertionError):
        assert_close(found[0], found[1])


def test_clients_start_each_from_their_own_adapter(recipe: Make) -> None:
    federation = prepare(recipe(train__optimizer="sgd", train__lr=0.1))
    settings, rows = federation.config.train, federation.partition.rows
    starts = [federation.initial.map(lambda t, c=c: t + 0.01 * (c + 1)) for c in range(3)]

    def trained(clients: list[int], received: Adapter) -> dict[int, dict[str, Tensor]]:
        plan = plan_group(clients, [rows[c] for c in clients], settings, seed=1, round=1)
        result = train_group(
            federation.model,
            federation.objective,
            federation.train.data,
            received,
            plan,
            settings,
            Trainable(),
        )
        return {client: result.adapter.select(i).tensors() for i, client in enumerate(clients)}

    together = trained([0, 1, 2], stack(starts))
    for client in range(3):
        assert_close({client: together[client]}, trained([client], starts[client]))


def test_the_proximal_term_is_the_gradient_of_its_penalty(recipe: Make) -> None:
    """Against a plain loop that adds `mu / 2 ||w - w0||^2` to the loss and lets autograd differentiate it."""
    options = {"train__optimizer": "sgd", "train__lr": 0.1, "train__bucket": False, "train__local_steps": 4}
    federation = prepare(recipe(**options, train__prox=0.7))
    federation.base.module.double()
    config, data = federation.config.train, federation.train.data
    start = federation.initial.map(lambda t: t.double() + 0.01)
    rows = [federation.partition.rows[c] for c in (0, 1)]
    plan = plan_group((0, 1), rows, config, seed=3, round=1)
    result = train_group(federation.model, federation.objective, data, start, plan, config, Trainable())
    plain = train_group(
        federation.model,
        federation.objective,
        data,
        start,
        plan,
        config.model_copy(update={"prox": 0.0}),
        Trainable(),
    )
    for client in (0, 1):
        held = federation.model.load(start.expand(1), a=True, b=True, head=True)
        origin = start.expand(1).tensors()
        for picked in plan.rows[:, client]:
            batch = data.batch(picked)
            penalty = sum((t - origin[key]).square().sum() for key, t in held.tensors().items())
            loss = example_loss(federation.model.logits(batch), batch.labels).mean() + 0.35 * penalty
            tensors = list(held.tensors().values())
            gradients = torch.autograd.grad(loss, tensors)
            size = torch.stack([g.norm() for g in gradients]).norm()
            with torch.no_grad():
                for tensor, gradient in zip(tensors, gradients, strict=True):
                    tensor -= config.lr * gradient * min(1.0, 1.0 / (float(size) + 1e-6))
        for key, tensor in held.tensors().items():
            torch.testing.assert_close(
                result.adapter.tensors()[key][client], tensor[0].detach(), rtol=1e-8, atol=1e-10
            )
    pulled, free = (drift(r.adapter, start).mean() for r in (result, plain))
    assert pulled < free


def test_bfloat16_trains_with_float32_adapters(recipe: Make) -> None:
    federation = prepare(recipe(train__precision="bfloat16"))
    result = train_once(federation, [0, 1])
    assert {tensor.dtype for tensor in result.adapter.tensors().values()} == {torch.float32}
    exact = train_once(prepare(recipe()), [0, 1])
    assert bool(result.finite.all())
    torch.testing.assert_close(result.loss, exact.loss, rtol=0.05, atol=0.02)
