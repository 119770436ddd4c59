"""`fedrot run RECIPE --estimate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from fedrot.config import load_config
from fedrot.engines.compat import precision
from fedrot.errors import ConfigError
from fedrot.estimate.devices import DEVICES, this_cpu
from fedrot.estimate.forecast import forecast
from fedrot.estimate.words import print_forecast


def estimate_run(recipe: Path | None, overrides: Sequence[str], console: Console) -> None:
    """Print what a recipe will cost; nothing is read but the recipe and the model's config.json.

    Raises:
        FedrotError: no recipe, a wrong one, or a model whose layers are not known.
    """
    if recipe is None:
        raise ConfigError("--estimate: give the path of a recipe")
    config = load_config(recipe, overrides)
    print_forecast(forecast(config, (*DEVICES, this_cpu(precision(config)))), console)
