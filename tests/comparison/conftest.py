"""A recipe whose runs take a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from fedrot.config import RunConfig

Make = Callable[..., RunConfig]


@pytest.fixture
def small(recipe: Make) -> Callable[..., dict[str, Any]]:
    """The tiny recipe as a nested mapping; keywords `section__key=value` change it."""

    def make(**overrides: Any) -> dict[str, Any]:
        data = recipe(**overrides).model_dump(exclude_none=True)
        del data["output"]
        return data

    return make
