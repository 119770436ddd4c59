"""How many examples the estimate takes a run to train on and to evaluate."""

from __future__ import annotations

from typing import Any

import pytest

from fedrot.config import RunConfig, parse_config
from fedrot.estimate import forecast, shape_of
from fedrot.estimate.forecast import SIZES
from fedrot.estimate.work import work
from fedrot.tasks.catalogue import load_task


def recipe_of(task: dict[str, Any]) -> RunConfig:
    """One client that reads each of its examples once, one by one."""
    return parse_config(
        {
            "model": {"path": "roberta-large"},
            "task": task,
            "train": {"local_epochs": 1, "batch_size": 1},
            "federation": {"clients": 1, "rounds": 1},
        }
    )


@pytest.mark.parametrize(
    ("task", "train", "evaluated"),
    [
        ({"data": "tweets"}, 37233 - 2 * 3723, 2 * 3723),
        ({"data": "tweets", "validation_fraction": 0}, 37233 - 3723, 3723),
        ({"data": "tweets", "test_fraction": 0.2, "max_test": 500, "max_validation": 300}, 26063, 800),
        ({"data": "tweets", "max_train": 4000}, 4000, 2 * 3723),
        ({"data": "glue:rte"}, 2490 - 249, 277 + 249),
    ],
)
def test_examples_that_are_held_out_are_not_trained_on(
    task: dict[str, Any], train: int, evaluated: int
) -> None:
    config = recipe_of(task)
    found = forecast(config, ())
    shape = shape_of(config, 3 if task["data"] == "tweets" else 2)
    assert found.work == work(config, shape, clients=1, steps=train, evaluated=evaluated)


def test_the_sizes_of_public_data_are_those_that_a_run_reads() -> None:
    """Of the corpus whose test examples are split off; its repeated texts are dropped before."""
    config = recipe_of({"data": "tweets"})
    task = load_task(config.task, 1)
    assert len(task.train) + len(task.validation or ()) + len(task.test) == SIZES["tweets"][0]
    assert len(task.train) == SIZES["tweets"][0] - 2 * 3723
