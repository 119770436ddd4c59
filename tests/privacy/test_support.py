"""What cannot be private as asked is refused, with the keys to change."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

import fedrot
from fedrot.config import RunConfig
from fedrot.errors import ConfigError
from fedrot.methods import build
from fedrot.privacy import check_delta, check_privacy, check_secret

Make = Callable[..., RunConfig]
ABLE = {"fedit", "fedrot", "ffa", "rolora", "rescale", "random-rotation"}


def check(config: RunConfig) -> None:
    check_privacy(config, build(config.method.name, config.method.options, config.seed))


def private(recipe: Make, **keys: Any) -> RunConfig:
    return recipe(**{"privacy__mechanism": "central", "federation__weighting": "uniform", **keys})


@pytest.mark.parametrize("name", list(fedrot.methods()))
@pytest.mark.parametrize("mechanism", ["central", "local"])
def test_methods_whose_server_needs_more_than_sums_are_refused_with_those_that_do_not(
    recipe: Make, name: str, mechanism: str
) -> None:
    config = private(recipe, method={"name": name}, privacy__mechanism=mechanism)
    if name in ABLE:
        check(config)
        return
    with pytest.raises(ConfigError) as caught:
        check(config)
    message = str(caught.value)
    assert message.startswith(f"privacy.mechanism = '{mechanism}': method {name!r}")
    assert all(repr(able) in message for able in ABLE)


@pytest.mark.parametrize(
    ("option", "value"), [("refit", 1), ("reference", "consensus"), ("guard", True), ("guard", "server")]
)
def test_an_option_that_needs_individual_uploads_is_named(recipe: Make, option: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"with method.{option} = {value!r} needs more than the sum"):
        check(private(recipe, method={"name": "fedrot", option: value}))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("federation__weighting", "samples"),
        ("federation__stale", 0.5),
        ("lora__ranks", {"1": 0.5, "2": 0.5}),
        ("output__diagnostics", True),
    ],
)
def test_what_has_no_bounded_sensitivity_is_refused_by_its_key(recipe: Make, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=key.replace("__", ".")):
        check(private(recipe, **{key: value}))
    check(recipe(**{key: value}))  # without privacy nobody minds


def test_equal_ranks_written_out_are_not_mixed(recipe: Make) -> None:
    check(private(recipe, lora__ranks=[2, 2, 2, 2]))


def test_a_delta_as_large_as_one_client_is_refused(recipe: Make) -> None:
    config = private(recipe, privacy__delta=0.25)
    with pytest.raises(
        ConfigError, match=r"privacy.delta = 0.25: expected a number below 1 / clients = 0.25"
    ):
        check_delta(config.privacy, 4)
    check_delta(config.privacy, 3)


def test_noise_from_the_seed_is_refused_where_nodes_belong_to_others(recipe: Make) -> None:
    with pytest.raises(ConfigError, match=r"privacy\.noise_source = 'seed'"):
        check_secret(private(recipe, privacy__noise_source="seed").privacy)
    check_secret(private(recipe).privacy)
    check_secret(recipe(privacy__noise_source="seed").privacy)


@pytest.mark.parametrize(
    ("key", "value"), [("clip", 0.0), ("noise", -1.0), ("delta", 1.0), ("mechanism", "distributed")]
)
def test_values_out_of_range_are_refused(recipe: Make, key: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"privacy.{key}"):
        recipe(**{f"privacy__{key}": value})
