"""What a partition refuses, with the key, the value and the remedy in the message."""

from __future__ import annotations

from typing import Any

import pytest
from datasets import Dataset

from fedrot.config import PartitionConfig
from fedrot.errors import ConfigError, DataError
from fedrot.partition import Partition, partition


def split(kind: str, clients: int | None = 4, data: Dataset | None = None, **keys: Any) -> Partition:
    """240 examples of four classes and six users, unless given."""
    rows = range(240)
    columns = {
        "label": [i % 4 for i in rows],
        "user": [f"user {i % 6}" for i in rows],
        "score": [0.5 * i for i in rows],
    }
    return partition(data or Dataset.from_dict(columns), PartitionConfig(kind=kind, **keys), clients, 5)


def test_min_size_is_kept_or_refused() -> None:
    assert min(split("dirichlet", 4, alpha=0.5, min_size=20).sizes) >= 20
    with pytest.raises(
        DataError, match=r"(?s)min_partition_size = 25.*raise partition\.alpha.*fewer clients"
    ):
        split("dirichlet", 8, alpha=0.01, min_size=25)
    with pytest.raises(
        DataError, match=r"client 0 has 24 training examples, expected partition\.min_size = 50"
    ):
        split("linear", 4, min_size=50)
    with pytest.raises(DataError, match=r"240 training examples for federation\.clients = 4 of at least 61"):
        split("iid", 4, min_size=61)


def test_a_client_without_examples_is_named() -> None:
    with pytest.raises(DataError, match="client 0 has no training examples"):
        split("pathological", num_classes_per_partition=0)


@pytest.mark.parametrize(
    ("kind", "clients", "options", "expected"),
    [
        ("dirichelt", 4, {}, r"partition\.kind = 'dirichelt': unknown kind; did you mean 'dirichlet'"),
        ("vertical-even", 4, {}, "columns, not examples"),
        ("vertical-size", 4, {}, "columns, not examples"),
        ("id-to-size-fnc", 4, {}, "Python function"),
        ("dirichlet", 4, {"alhpa": 0.5}, r"partition\.alhpa: unknown key; did you mean 'alpha'"),
        ("iid", 4, {"alpha": 0.5}, r"partition\.alpha: kind 'iid' takes no options; leave it out"),
        (
            "dirichlet",
            4,
            {},
            r"partition\.alpha: missing; kind 'dirichlet' needs it, for instance alpha = 0.5",
        ),
        ("grouped-natural-id", None, {}, r"partition\.group_size: missing.*group_size = 5"),
        ("dirichlet", None, {"alpha": 0.5}, r"federation\.clients: missing.*clients = 10"),
        (
            "dirichlet",
            4,
            {"alpha": "0.5"},
            r"partition\.alpha = '0.5': expected a number or a list of numbers",
        ),
        ("dirichlet", 4, {"alpha": True}, r"partition\.alpha = True: expected a number"),
        ("dirichlet", 4, {"alpha": 0}, r"'dirichlet' with alpha = 0.*strictly greater than zero"),
        ("dirichlet", 4, {"alpha": [0.5]}, r"alpha = \[0.5\].*length"),
        ("size", None, {"partition_sizes": [1.5]}, r"partition_sizes = \[1.5\]: expected a list of integers"),
        (
            "pathological",
            4,
            {"num_classes_per_partition": 2, "class_assignment_mode": "x"},
            "'deterministic'",
        ),
        (
            "natural-id",
            None,
            {"partition_by": "usr"},
            r"partition_by = 'usr': no such column; did you mean 'user'",
        ),
        ("iid", 4, {"num_partitions": 4}, r"partition\.num_partitions: set federation\.clients"),
        ("continuous", 4, {"partition_by": "score", "strictness": 2}, "must be between 0 and 1"),
    ],
)
def test_wrong_options_are_refused(
    kind: str, clients: int | None, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        split(kind, clients, **options)


@pytest.mark.parametrize(
    ("kind", "clients", "options", "expected"),
    [
        ("shard", 4, {}, r"'shard'.*cannot divide 240.*shard_size needs to be specified.*Remedy: change"),
        ("size", None, {"partition_sizes": [200, 200]}, r"partition_sizes = \[200, 200\] cannot divide 240"),
        (
            "pathological",
            4,
            {"num_classes_per_partition": 9},
            r"greater than the number of unique classes.*=4",
        ),
        ("exponential", 50, {}, r"num_partitions = 50 cannot divide 240.*fewer clients"),
        ("inner-dirichlet", None, {"partition_sizes": [80] * 3, "alpha": 0.001}, r"raise partition\.alpha"),
        (
            "continuous",
            4,
            {"partition_by": "user", "strictness": 0.5},
            "'user': kind 'continuous' needs a column of",
        ),
        (
            "grouped-natural-id",
            None,
            {"partition_by": "user", "group_size": 0},
            "group_size = 0 cannot divide",
        ),
    ],
)
def test_options_that_do_not_fit_the_data_are_refused(
    kind: str, clients: int | None, options: dict[str, Any], expected: str
) -> None:
    with pytest.raises(DataError, match=expected):
        split(kind, clients, **options)


@pytest.mark.parametrize("blank", [None, "", " \t"])
@pytest.mark.parametrize(("kind", "clients"), [("natural-id", None), ("dirichlet", 2)])
def test_a_missing_id_names_its_row(blank: str | None, kind: str, clients: int | None) -> None:
    """A CSV file has empty texts where others have nothing."""
    options = {} if clients is None else {"alpha": 1.0}
    data = Dataset.from_dict({"label": [0, 1, 0, 1], "user": ["a", blank, "b", blank]})
    with pytest.raises(
        DataError, match=r"row 2: it has no value in partition\.partition_by = 'user'; .*\(2 such rows\)"
    ):
        split(kind, clients, data=data, partition_by="user", **options)


def test_a_number_that_is_none_is_missing() -> None:
    data = Dataset.from_dict({"label": [0, 1], "score": [0.5, float("nan")]})
    with pytest.raises(DataError, match="row 2: it has no value"):
        split("continuous", 2, data=data, partition_by="score", strictness=0.5)
