"""Sites of one shape are one batch: a view where they lie together, and the same numbers either way."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fedrot.core import Adapter, Factors, align, align_adapter
from fedrot.core import alignment as alignment_module
from fedrot.core import alike as alike_module
from fedrot.core.alignment import SiteRotation, apply, client_correlations, correlations
from fedrot.core.alike import batch, copied
from fedrot.core.procrustes import Anchor
from fedrot.errors import AdapterError
from tests.core.strategies import normal

ANCHORS: tuple[Anchor, ...] = ("a", "b", "joint")
SHAPES = {"q": (32, 28, 4), "k": (32, 20, 4), "v": (32, 20, 4), "o": (28, 28, 3)}  # d_in, d_out, rank


def drawn(
    seed: int, layers: int = 3, clients: int | None = None, dtype: torch.dtype = torch.float32, extra: int = 0
) -> Adapter:
    """Sites of three shapes and two ranks near those of other seeds, layer by layer; `extra` directions more."""
    lead = () if clients is None else (clients,)
    sites: dict[str, Factors] = {}
    for layer in range(layers):
        for index, (name, (d_in, d_out, rank)) in enumerate(SHAPES.items()):
            rank += extra
            common, own = 100 * layer + index, 1000 * seed + 100 * layer + index
            a = normal(common, rank, d_in) + 0.2 * normal(own, *lead, rank, d_in)
            b = normal(common + 50, d_out, rank) + 0.2 * normal(own + 50, *lead, d_out, rank)
            sites[f"{layer}.{name}"] = Factors(a.to(dtype), b.to(dtype))
    return Adapter(sites)


@pytest.fixture
def batched(monkeypatch: pytest.MonkeyPatch) -> None:
    """The CPU is taken for an accelerator."""

    def always(device: torch.device) -> bool:
        return True

    for module in (alike_module, alignment_module):
        monkeypatch.setattr(module, "batched", always)


class Counted(TorchDispatchMode):
    """Counts the operations that a device would be asked for."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.count += 1
        return func(*args, **(kwargs or {}))


def test_tensors_that_lie_evenly_spaced_are_viewed() -> None:
    block = normal(1, 6, 2, 3)
    for tensors in (block.unbind(), block[::2].unbind(), block.mT.unbind(), block[2:3].unbind()):
        whole = batch(tensors)
        assert torch.equal(whole, torch.stack(tensors))
        assert whole.data_ptr() == tensors[0].data_ptr()
    assert batch([t[1] for t in block]).data_ptr() == block[0, 1].data_ptr()


def test_tensors_that_do_not_are_copied() -> None:
    block = normal(1, 6, 3, 3)
    uneven = [block[0], block[1], block[3]]
    backwards = [block[2], block[1], block[0]]
    apart = [block[0], block.clone()[1]]
    turned = [block[0], block[1].T]
    same = [block[0], block[0]]
    for tensors in (uneven, backwards, apart, turned, same):
        whole = batch(tensors)
        assert torch.equal(whole, torch.stack(tensors))
        assert whole.untyped_storage() is not tensors[0].untyped_storage()


@pytest.mark.usefixtures("batched")
def test_copies_of_sites_lie_together_and_apart_from_what_they_copy() -> None:
    whole = drawn(1, clients=2)
    before = {key: t.clone() for key, t in whole.tensors().items()}
    made = copied(whole.sites, b=False)
    assert list(made) == list(whole.sites)
    for names in (["0.q", "1.q", "2.q"], ["0.k", "0.v", "1.k", "1.v", "2.k", "2.v"]):
        rows = [made[name].a for name in names]
        assert batch(rows).data_ptr() == rows[0].data_ptr()
    assert all(made[site].b is f.b for site, f in whole.sites.items())
    for site, f in made.items():
        assert torch.equal(f.a, whole.sites[site].a)
        f.a.zero_()
    assert all(torch.equal(before[key], t) for key, t in whole.tensors().items())


def test_copies_on_a_cpu_own_their_memory() -> None:
    made = copied(drawn(1).sites)
    assert len({f.a.untyped_storage().data_ptr() for f in made.values()}) == len(made)


@pytest.mark.usefixtures("batched")
@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("clients", [None, 1, 2, 9])
@pytest.mark.parametrize("together", [True, False])
@pytest.mark.parametrize("extra", [0, 2])
def test_batches_align_as_each_site_in_float64(
    anchor: Anchor, clients: int | None, together: bool, extra: int
) -> None:
    """Two ranks, stacks of fewer and of more clients than sites, factors apart and not, references of higher rank."""
    trained, reference = drawn(1, clients=clients), drawn(2, extra=extra)
    if together:
        trained, reference = (replace(x, sites=copied(x.sites)) for x in (trained, reference))
    whole, rotation = align_adapter(trained, reference, anchor, 0.7)
    assert list(whole.sites) == list(rotation.sites) == list(trained.sites)
    for site, f in trained.sites.items():
        ref = reference.sites[site].resized(f.rank)
        a, b, _ = align(f.a.double(), f.b.double(), ref.a.double(), ref.b.double(), anchor, 0.7)
        torch.testing.assert_close(whole.sites[site].a.double(), a, atol=1e-5, rtol=0)
        torch.testing.assert_close(whole.sites[site].b.double(), b, atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("anchor", ANCHORS)
def test_batches_give_what_the_loop_gives(
    dtype: torch.dtype, anchor: Anchor, request: pytest.FixtureRequest
) -> None:
    trained, reference = drawn(1, clients=3, dtype=dtype), drawn(2, dtype=dtype)
    looped, expected = align_adapter(trained, reference, anchor)
    request.getfixturevalue("batched")
    whole, rotation = align_adapter(trained, reference, anchor)
    tolerance = {torch.bfloat16: 2e-2, torch.float32: 1e-5, torch.float64: 1e-10}[dtype]
    torch.testing.assert_close(rotation.matrix, expected.matrix, atol=min(tolerance, 1e-5), rtol=0)
    for key, tensor in whole.tensors().items():
        torch.testing.assert_close(tensor, looped.tensors()[key], atol=tolerance, rtol=tolerance)


@pytest.mark.usefixtures("batched")
@pytest.mark.parametrize("anchor", ANCHORS)
def test_leading_dimensions_broadcast_as_they_do_at_one_site(anchor: Anchor) -> None:
    """Three clients and three sites of a shape, which broadcasting must not take for one another."""
    one, stacked = drawn(1), drawn(2, clients=3)
    each = [stacked.select(client) for client in range(3)]
    found = correlations(one, stacked, anchor)
    for site, f in one.sites.items():
        for client in range(3):
            alone = Adapter({site: f}), Adapter({site: each[client].sites[site]})
            torch.testing.assert_close(found[site][client], correlations(*alone, anchor)[site])
    _, rotation = align_adapter(stacked, one, anchor)
    turned = apply(one, rotation)
    for client in range(3):
        expected = apply(one, rotation.select(client))
        for site, f in expected.sites.items():
            torch.testing.assert_close(turned.sites[site].a[client], f.a)
            torch.testing.assert_close(turned.sites[site].b[client], f.b)


@pytest.mark.usefixtures("batched")
def test_clients_of_smaller_rank_share_the_servers_solve() -> None:
    reference = drawn(9, extra=2)
    clients = [drawn(1), drawn(2, extra=2)]
    found = client_correlations(clients, reference, "joint")
    assert list(found) == list(reference.sites)
    for site, ref in reference.sites.items():
        assert found[site].shape == (2, ref.rank, ref.rank)
        own = clients[0].sites[site].rank
        alone = correlations(clients[0], reference, "joint")[site]
        torch.testing.assert_close(found[site][0, :own, :own], alone)
        border = found[site][0].diagonal()[own:]
        torch.testing.assert_close(border, torch.linalg.matrix_norm(alone).expand(ref.rank - own))


@pytest.mark.usefixtures("batched")
def test_results_lie_together_for_the_next_alignment() -> None:
    whole, _ = align_adapter(drawn(1, clients=2), drawn(2), "a")
    for factor in ("a", "b"):
        rows: list[Tensor] = [
            getattr(whole.sites[f"{layer}.{n}"], factor) for layer in range(3) for n in "kv"
        ]
        assert batch(rows).data_ptr() == rows[0].data_ptr()


@pytest.mark.usefixtures("batched")
def test_a_site_that_does_not_fit_is_named() -> None:
    trained, reference = drawn(1), drawn(2)
    wrong = {"1.v": Factors(normal(1, 4, 32).float(), normal(2, 21, 4).float())}
    with pytest.raises(AdapterError, match=r"alignment at site '1\.v': .*\(4, 32, 20\)"):
        align_adapter(replace(trained, sites={**trained.sites, **wrong}), reference)
    with pytest.raises(AdapterError, match=r"site '0\.q'"):
        align_adapter(drawn(1, extra=1), reference)


@pytest.mark.usefixtures("batched")
@pytest.mark.parametrize("anchor", ANCHORS)
@pytest.mark.parametrize("clients", [None, 2])
@pytest.mark.parametrize("together", [True, False])
def test_operations_grow_with_shapes_and_not_with_sites(
    anchor: Anchor, clients: int | None, together: bool
) -> None:
    counts: list[int] = []
    for layers in (2, 8):
        trained, reference = drawn(1, layers, clients), drawn(2, layers)
        if together:
            trained, reference = (replace(x, sites=copied(x.sites)) for x in (trained, reference))
        with Counted() as counted:
            _, rotation = align_adapter(trained, reference, anchor, 1.0)
        assert not bool((rotation.degenerate | rotation.flipped).any()), "the same path through the solve"
        counts.append(counted.count)
    assert counts[0] == counts[1]


def test_other_devices_than_the_cpu_are_asked_once_for_a_shape(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unforced, on the device whose tensors hold no numbers; it knows no autocast to switch off."""
    monkeypatch.setattr(alignment_module, "full_precision", nullcontext)
    counts: list[int] = []
    for layers in (2, 8):
        trained, reference = (drawn(seed, layers).map(lambda t: t.to("meta")) for seed in (1, 2))
        flags = torch.zeros(len(trained.sites), dtype=torch.bool, device="meta")
        matrix = torch.empty(len(trained.sites), 4, 4, device="meta")
        rotation = SiteRotation(
            matrix=matrix, degenerate=flags, flipped=flags, kept=flags, sites=tuple(trained.sites)
        )
        with Counted() as counted:
            correlations(trained, reference, "a")
            apply(trained, rotation)
        counts.append(counted.count)
    assert counts[0] == counts[1]
