from __future__ import annotations

import math

import pytest
import torch

from fedrot.core import Adapter, Factors, align, align_adapter, derive, generator, stack, weighted_mean
from fedrot.core.consensus import consensus, lowers_error, rotated_mean
from fedrot.core.measure import adapter_aggregation_error
from fedrot.core.procrustes import rotate
from fedrot.errors import AdapterError
from tests.core.strategies import normal, rotations


def adapter(seed: int, rank: int = 4, dtype: torch.dtype = torch.float32) -> Adapter:
    shapes = {"layers.0.q": (12, 10), "layers.0.v": (8, 16)}
    sites = {
        site: Factors(normal(seed + i, rank, d_in).to(dtype), normal(seed + 7 + i, d_out, rank).to(dtype))
        for i, (site, (d_in, d_out)) in enumerate(shapes.items())
    }
    return Adapter(sites, {"classifier.bias": normal(seed, 3).to(dtype)}, scale=2.0)


def equal(one: Adapter, other: Adapter) -> bool:
    mine, theirs = one.tensors(), other.tensors()
    return list(mine) == list(theirs) and all(torch.equal(mine[k], theirs[k]) for k in mine)


def test_tensors_and_back() -> None:
    whole = Adapter(adapter(1).sites, adapter(1).head, 2.0, adapter(2, rank=6).sites)
    flat = whole.tensors()
    assert list(flat)[:2] == ["sites/layers.0.q/a", "sites/layers.0.q/b"]
    assert "residual/layers.0.v/b" in flat
    assert equal(Adapter.from_tensors(flat, 2.0), whole)


@pytest.mark.parametrize(
    ("key", "message"),
    [("sites/q/a", "lacks factor 'b'"), ("sites/q/c", "expected a name"), ("other", "expected")],
)
def test_unknown_tensors_are_refused(key: str, message: str) -> None:
    with pytest.raises(AdapterError, match=message):
        Adapter.from_tensors({key: torch.ones(2, 2)})


def test_stacks_hold_their_clients() -> None:
    clients = [adapter(seed) for seed in (1, 2, 3)]
    whole = stack(clients)
    assert whole.batch == (3,)
    assert all(equal(whole.select(i), client) for i, client in enumerate(clients))
    expanded = clients[0].expand(5)
    assert expanded.batch == (5,)
    assert expanded.sites["layers.0.q"].a.data_ptr() == clients[0].sites["layers.0.q"].a.data_ptr()


def test_finite_finds_the_client_that_diverged() -> None:
    whole = stack([adapter(seed) for seed in (1, 2, 3)])
    whole.head["classifier.bias"][1, 0] = math.nan
    assert whole.finite(stacked=True).tolist() == [True, False, True]
    assert not whole.finite()
    assert whole.select(0).finite()


def test_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(AdapterError, match="rank"):
        Factors(torch.ones(2, 3), torch.ones(4, 3))
    with pytest.raises(AdapterError, match="leading dimensions"):
        Factors(torch.ones(5, 2, 3), torch.ones(4, 2))
    with pytest.raises(AdapterError, match="leading dimensions"):
        Adapter(
            {
                "q": Factors(torch.ones(5, 2, 3), torch.ones(5, 4, 2)),
                "v": Factors(torch.ones(2, 3), torch.ones(4, 2)),
            }
        )
    with pytest.raises(AdapterError, match="scale"):
        Adapter({}, scale=math.inf)


def test_foreign_adapters_are_refused_by_name() -> None:
    mine, other = adapter(1), adapter(2)
    mine.check_like(other, "client 7")
    fewer = Adapter({"layers.0.q": mine.sites["layers.0.q"]}, mine.head, 2.0)
    with pytest.raises(
        AdapterError, match=r"client 7 sent 1 sites, expected 2; missing 'layers.0.v' \(was it"
    ):
        fewer.check_like(other, "client 7")
    with pytest.raises(AdapterError, match="client 7 sent 0 head tensors, expected 1"):
        Adapter(mine.sites, {}, 2.0).check_like(other, "client 7")
    with pytest.raises(AdapterError, match=r"shape \(3, 12\), expected \(4, 12\)"):
        adapter(1, rank=3).check_like(other, "client 7")
    adapter(1, rank=3).check_like(other, "client 7", ranks=False)
    with pytest.raises(AdapterError, match=r"torch.float64, expected torch.float32"):
        adapter(1, dtype=torch.float64).check_like(other, "client 7")
    with pytest.raises(AdapterError, match="scale 4, expected 2"):
        Adapter(mine.sites, mine.head, 4.0).check_like(other, "client 7")


def test_resizing_keeps_the_product_of_what_is_there() -> None:
    small = adapter(1, rank=3)
    padded = small.resized(5)
    for site, f in small.sites.items():
        torch.testing.assert_close(padded.sites[site].b @ padded.sites[site].a, f.b @ f.a)
    assert equal(padded.resized(3), small)


def test_weighted_mean() -> None:
    clients = [adapter(seed) for seed in (1, 2, 3)]
    copies = [client.map(torch.clone) for client in clients]
    mean = weighted_mean(clients, torch.tensor([1, 2, 1]))
    for key, tensor in mean.tensors().items():
        x, y, z = (c.tensors()[key] for c in clients)
        torch.testing.assert_close(tensor, (x + 2 * y + z) / 4)
    assert all(equal(c, k) for c, k in zip(clients, copies, strict=True))
    assert equal(weighted_mean(clients[:1], [3.7]), clients[0])
    streamed = weighted_mean((client for client in clients), [1.0, 2.0, 1.0])
    assert equal(streamed, mean)
    narrow = weighted_mean([c.map(torch.Tensor.bfloat16) for c in clients], [1, 1, 1])
    assert narrow.head["classifier.bias"].dtype == torch.bfloat16


def test_means_that_mean_nothing_are_refused() -> None:
    with pytest.raises(AdapterError, match="no adapters"):
        weighted_mean([], [])
    with pytest.raises(AdapterError, match="residual"):
        weighted_mean([Adapter(adapter(1).sites, residual=adapter(2).sites)], [1.0])
    with pytest.raises(AdapterError, match="weights"):
        weighted_mean([adapter(1), adapter(2)], [1.0])


def test_an_adapter_is_aligned_like_each_of_its_sites() -> None:
    clients, reference = stack([adapter(seed) for seed in (1, 2, 3)]), adapter(9)
    whole, rotation = align_adapter(clients, reference, "joint", 0.7)
    assert rotation.sites == tuple(reference.sites)
    assert rotation.size.shape == rotation.kept.shape == (2, 3)
    for index, (site, f) in enumerate(clients.sites.items()):
        ref = reference.sites[site]
        a, b, one = align(f.a, f.b, ref.a, ref.b, "joint", 0.7)
        torch.testing.assert_close(whole.sites[site].a, a, atol=1e-5, rtol=0)
        torch.testing.assert_close(whole.sites[site].b, b, atol=1e-5, rtol=0)
        torch.testing.assert_close(rotation.size[index], one.size, atol=1e-5, rtol=0)
    assert torch.equal(whole.head["classifier.bias"], clients.head["classifier.bias"])


def test_sites_of_different_rank_share_one_solve() -> None:
    big, small = adapter(1, rank=6), adapter(2, rank=3)
    mixed = Adapter({"q": big.sites["layers.0.q"], "v": small.sites["layers.0.v"]})
    reference = Adapter({"q": adapter(3, 6).sites["layers.0.q"], "v": adapter(4, 3).sites["layers.0.v"]})
    whole, rotation = align_adapter(mixed, reference, "b", 1.0)
    for index, (site, f) in enumerate(mixed.sites.items()):
        a, _, one = align(f.a, f.b, reference.sites[site].a, reference.sites[site].b, "b", 1.0)
        torch.testing.assert_close(whole.sites[site].a, a, atol=1e-5, rtol=0)
        torch.testing.assert_close(rotation.angle[index], one.angle, atol=1e-4, rtol=0)
        assert rotation.flipped[index] == one.flipped


def test_alignment_of_other_sites_is_refused() -> None:
    with pytest.raises(AdapterError, match=r"layers\.0\.v"):
        align_adapter(Adapter({"layers.0.q": adapter(1).sites["layers.0.q"]}), adapter(2))
    with pytest.raises(AdapterError, match=r"site 'layers\.0\.q'"):
        align_adapter(adapter(1, rank=5), adapter(2))


def gauged(seed: int, count: int) -> list[Adapter]:
    """Clients with one product and frames of their own."""
    base = adapter(seed)
    return [
        Adapter(
            {s: Factors(*rotate(f.a, f.b, rotations(seed + k, 4, 4).float())) for s, f in base.sites.items()}
        )
        for k in range(count)
    ]


def test_consensus_finds_a_common_frame_without_any_reference() -> None:
    clients = gauged(5, 6)
    blank = clients[0].map(torch.zeros_like)
    rotation = consensus(clients, [1.0] * 6, blank, sweeps=40)
    aligned = rotated_mean(clients, [1.0] * 6, rotation)
    before = adapter_aggregation_error(clients, [1.0] * 6).relative
    product = {s: f.b @ f.a for s, f in clients[0].sites.items()}
    error = max(float((f.b @ f.a - product[s]).norm() / product[s].norm()) for s, f in aligned.sites.items())
    assert error < 1e-3 < 0.1 < before
    assert lowers_error(clients, [1.0] * 6, rotation).all()
    assert not lowers_error(clients, [1.0] * 6, rotation.only(torch.tensor([[True], [False]])))[1]


def test_consensus_settles_in_the_frame_of_the_adapter_received() -> None:
    clients, received = gauged(5, 6), gauged(5, 1)[0]
    rotation = consensus(clients, [1.0] * 6, received)
    aligned = rotated_mean(clients, [1.0] * 6, rotation)
    for site, f in aligned.sites.items():
        torch.testing.assert_close(f.a, received.sites[site].a, atol=1e-4, rtol=0)


def test_derived_seeds_differ_by_everything_they_are_derived_from() -> None:
    seeds = {derive(s, p, r, c) for s in (1, 2) for p in ("a", "b") for r in (0, 1) for c in (0, 1)}
    assert len(seeds) == 16
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive(11, "batches", 3, 7) == derive(11, "batches", 3, 7) == 1690990180577693118
    draws = [torch.rand(3, generator=generator(1, "noise", client=c)) for c in (0, 0, 1)]
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
