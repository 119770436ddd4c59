"""What tests over Flower share: the identity that it gives to processes which make messages, and two real nodes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from flwr.supercore.task_identity import TaskIdentity

from tests.flower.deployed_runs import Runs


@pytest.fixture(autouse=True, scope="session")
def _identity() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        for name in ("_task_id", "_run_id", "_node_id"):
            patch.setattr(TaskIdentity, name, 1)
        yield


@pytest.fixture(scope="module")
def runs(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, corpus: Path
) -> Iterator[Runs]:
    """Two real nodes of a deployed federation; asked for by tests marked `processes` alone.

    The second one is the module that the tests' own module names as `SECOND_NODE`, if it does.
    """
    made = Runs(tmp_path_factory.mktemp("deployed"), tiny_model, corpus)
    try:
        made.start(getattr(request.module, "SECOND_NODE", None))
        yield made
    finally:
        made.federation.stop()
