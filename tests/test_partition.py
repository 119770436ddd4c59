"""A partition gives each client rows, no row to two clients, and the same rows for the same seed."""

from __future__ import annotations

import itertools
import sys
import warnings
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from datasets import Dataset
from hypothesis import given, settings
from hypothesis import strategies as st

from fedrot.config import PartitionConfig
from fedrot.errors import ConfigError, DataError
from fedrot.partition import Partition, partition
from fedrot.partition_options import kinds
from fedrot.partition_rows import NumberedRows

COMPLETE: list[tuple[str, dict[str, Any]]] = [
    ("iid", {}),
    ("linear", {}),
    ("square", {}),
    ("exponential", {}),
    ("dirichlet", {"alpha": 0.5}),
    ("dirichlet", {"alpha": [1, 2.0, 0.5, 1.0], "self_balancing": True}),
    ("shard", {"num_shards_per_partition": 2}),
    ("pathological", {"num_classes_per_partition": 2, "class_assignment_mode": "deterministic"}),
    ("continuous", {"partition_by": "score", "strictness": 0.7}),
]


def table(count: int = 240, classes: int = 4) -> Dataset:
    rows = range(count)
    return Dataset.from_dict(
        {
            "text": [f"text {i}" for i in rows],
            "label": [(i * 7 + i // 5) % classes for i in rows],
            "user": [f"user {(i * i) % 11}" for i in rows],
            "score": [float((i * 37) % 101) for i in rows],
        }
    )


def split(
    kind: str, clients: int | None = 4, seed: int = 5, data: Dataset | None = None, **keys: Any
) -> Partition:
    return partition(data or table(), PartitionConfig(kind=kind, **keys), clients, seed)


def every(made: Partition) -> list[int]:
    return torch.cat(made.rows).tolist()


def same(one: Partition, other: Partition) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.rows, other.rows, strict=True))


@pytest.mark.parametrize(("kind", "options"), COMPLETE)
def test_every_example_goes_to_exactly_one_client(kind: str, options: dict[str, Any]) -> None:
    made = split(kind, **options)
    assert len(made) == 4
    assert sorted(every(made)) == list(range(240))
    assert all(rows.dtype == torch.long for rows in made.rows)
    assert made.sizes == tuple(len(rows) for rows in made.rows)
    assert min(made.sizes) >= 1
    assert made.notes == ()


@pytest.mark.parametrize(("kind", "options"), COMPLETE)
def test_the_seed_alone_decides(kind: str, options: dict[str, Any]) -> None:
    torch.manual_seed(1)
    once = split(kind, **options)
    torch.manual_seed(2)
    assert same(once, split(kind, **options))
    assert sorted(map(sorted, (r.tolist() for r in once.rows))) != sorted(
        map(sorted, (r.tolist() for r in split(kind, seed=6, **options).rows))
    )


@settings(deadline=None, max_examples=20)
@given(
    count=st.integers(8, 120),
    clients=st.integers(1, 8),
    classes=st.integers(1, 5),
    alpha=st.floats(0.2, 50),
    seed=st.integers(0, 2**63 - 1),
)
def test_dirichlet_is_a_partition_or_says_why_not(
    count: int, clients: int, classes: int, alpha: float, seed: int
) -> None:
    data, refused = table(count, classes), ""
    made = Partition(())
    try:
        made = split("dirichlet", clients, seed, data, alpha=alpha)
    except DataError as error:
        refused = str(error)
    if refused:
        assert "raise partition.alpha" in refused
        return
    assert sorted(every(made)) == list(range(count))
    assert len(made) == clients
    assert same(made, split("dirichlet", clients, seed, data, alpha=alpha))
    counts = made.counts(data["label"][:], classes)
    assert counts.sum(1).tolist() == list(made.sizes)
    assert (
        counts.sum(0).tolist() == torch.bincount(torch.tensor(data["label"][:]), minlength=classes).tolist()
    )


@settings(deadline=None, max_examples=20)
@given(count=st.integers(1, 60), clients=st.integers(1, 60), seed=st.integers(0, 2**63 - 1))
def test_iid_shares_differ_by_at_most_one(count: int, clients: int, seed: int) -> None:
    if clients > count:
        with pytest.raises(DataError, match=f"{count} training examples for federation.clients = {clients}"):
            split("iid", clients, seed, table(count))
        return
    made = split("iid", clients, seed, table(count))
    assert sorted(every(made)) == list(range(count))
    assert max(made.sizes) - min(made.sizes) <= 1


def test_the_order_of_the_file_does_not_decide_who_gets_what() -> None:
    data = Dataset.from_dict({"label": [i // 60 for i in range(240)]})
    counts = split("iid", data=data).counts(data["label"][:], 4)
    assert int(counts.min()) > 5


def test_a_smaller_alpha_skews_labels_more() -> None:
    def skew(alpha: float) -> float:
        counts = split("dirichlet", 4, alpha=alpha).counts(table()["label"][:], 4).double()
        return float((counts / counts.sum(1, keepdim=True)).max(1).values.mean())

    assert skew(0.1) > skew(100.0) + 0.2


def test_natural_ids_are_one_client_each_in_order() -> None:
    data = table()
    made = split("natural-id", None, partition_by="user")
    owners = [{data["user"][row] for row in rows.tolist()} for rows in made.rows]
    assert [len(owner) for owner in owners] == [1] * len(set(data["user"]))
    assert [owner.pop() for owner in owners] == sorted(set(data["user"]))
    assert sorted(every(made)) == list(range(240))


def test_fewer_clients_than_ids_take_the_largest() -> None:
    data = table()
    whole = split("natural-id", None, partition_by="user")
    made = split("natural-id", 3, partition_by="user")
    assert sorted(made.sizes) == sorted(whole.sizes)[-3:]
    assert len({data["user"][row] for row in every(made)}) == 3
    assert any(
        f"{240 - sum(made.sizes)} of 240 training examples belong to no client" in n for n in made.notes
    )
    with pytest.raises(ConfigError, match=r"federation\.clients = 50: column 'user' has 6 ids"):
        split("natural-id", 50, partition_by="user")


def test_natural_ids_without_a_column_say_that_labels_were_used() -> None:
    made = split("natural-id", None)
    assert len(made) == 4
    assert any("partition_by is not set" in note for note in made.notes)


def test_grouped_ids_share_a_client() -> None:
    data = table()
    made = split("grouped-natural-id", None, partition_by="user", group_size=2)
    assert len(made) == 3
    owners = [{data["user"][row] for row in rows.tolist()} for rows in made.rows]
    assert [len(owner) for owner in owners] == [2, 2, 2]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(owners, 2))
    with pytest.raises(ConfigError, match=r"federation\.clients = 5: .*makes 3 clients"):
        split("grouped-natural-id", 5, partition_by="user", group_size=2)


@pytest.mark.parametrize(("kind", "options"), [("size", {}), ("inner-dirichlet", {"alpha": 1.0})])
def test_given_sizes_are_kept_and_the_rest_is_reported(kind: str, options: dict[str, Any]) -> None:
    made = split(kind, None, partition_sizes=[10, 20, 30], **options)
    assert made.sizes == (10, 20, 30)
    assert len(set(every(made))) == 60
    assert f"partition: 180 of 240 training examples belong to no client ({kind})" in made.notes
    with pytest.raises(ConfigError, match=r"federation\.clients = 4: .*makes 3 clients"):
        split(kind, 4, partition_sizes=[10, 20, 30], **options)


def test_a_distribution_is_followed() -> None:
    shares = [[0.7, 0.3]] * 4
    made = split(
        "distribution",
        distribution_array=shares,
        num_unique_labels_per_partition=2,
        preassigned_num_samples_per_label=2,
    )
    counts = made.counts(table()["label"][:], 4)
    assert (counts > 0).sum(1).tolist() == [2] * 4
    assert len(set(every(made))) == sum(made.sizes)


def test_labels_with_gaps_are_no_obstacle() -> None:
    data = Dataset.from_dict({"label": [(0, 3, 9)[i % 3] for i in range(90)]})
    made = split("inner-dirichlet", None, data=data, partition_sizes=[30, 60], alpha=2.0)
    assert sorted(every(made)) == list(range(90))


def test_what_a_partitioner_warns_of_is_noted() -> None:
    made = split("pathological", 1, num_classes_per_partition=2)
    assert any("will NOT be used" in note for note in made.notes)
    assert any("belong to no client" in note for note in made.notes)


def test_every_listed_kind_is_tested_here() -> None:
    tested = {kind for kind, _ in COMPLETE}
    tested |= {"natural-id", "grouped-natural-id", "size", "inner-dirichlet", "distribution"}
    assert set(kinds()) == tested


def test_nothing_is_written_to_the_terminal(capfd: pytest.CaptureFixture[str]) -> None:
    before = datasets.are_progress_bars_disabled()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        split("natural-id", None, partition_by="user")
        split("shard", num_shards_per_partition=2)
        split("size", None, partition_sizes=[5])
    assert capfd.readouterr() == ("", "")
    assert datasets.are_progress_bars_disabled() == before
    assert "flwr_datasets.partitioner" in sys.modules


@pytest.mark.filterwarnings("ignore:Specifying null_placement:FutureWarning")
def test_rows_are_picked_as_datasets_would_pick_them() -> None:
    columns = {"row": [(i * 17) % 40 for i in range(40)], "value": [(i * 7) % 5 for i in range(40)]}
    quick, slow = NumberedRows.from_dict(columns), Dataset.from_dict(columns)
    for chosen in ([5, 3, 3], range(4, 20, 3), np.array([7, 1]), []):
        assert quick.select(chosen).tolist() == slow.select(chosen)["row"][:]
    for shard in range(7):
        there = slow.shard(7, shard, contiguous=True)["row"][:]
        assert np.asarray(quick.shard(7, shard, contiguous=True)).tolist() == there
    assert quick.sort("value").select(range(40)).tolist() == slow.sort("value")["row"][:]


def test_labels_are_counted_client_by_client() -> None:
    data = table()
    made = split("dirichlet", alpha=0.5)
    counted = [
        [sum(data["label"][row] == c for row in rows.tolist()) for c in range(4)] for rows in made.rows
    ]
    assert made.counts(data["label"][:], 4).tolist() == counted
