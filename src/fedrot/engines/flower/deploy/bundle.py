"""The one Flower app that fedrot ever submits: a `pyproject.toml` and no code. The recipe travels as its configuration.

What it holds depends on the version of fedrot alone, so a warm node can tell it from any other app, and it runs its own
installed fedrot instead of anything that came in the bundle.
"""

from __future__ import annotations

import importlib.metadata
import io
import zipfile
from functools import cache

VERSION = importlib.metadata.version("fedrot")

RECIPE, OUT, RESUME = "recipe", "out", "resume"
"""Keys of the app's `run_config`: the recipe in TOML, the run directory on the server, whether to go on with it."""

_LARGEST = 2**16

_PYPROJECT = """
[project]
name = "fedrot"
version = "{version}"
description = "Federated LoRA fine-tuning; the recipe is in the configuration"
license = "Apache-2.0"
dependencies = []

[tool.flwr.app]
publisher = "fedrot"

[tool.flwr.app.components]
serverapp = "fedrot.engines.flower.app:server"
clientapp = "fedrot.engines.flower.app:client"

[tool.flwr.app.config]
recipe = ""
out = ""
resume = false
"""


@cache
def bundle() -> bytes:
    """The app as a FAB, Flower's archive."""
    from flwr.cli.build import build_fab_from_files

    text = _PYPROJECT.format(version=VERSION)
    return build_fab_from_files({"pyproject.toml": text.encode()})[0]


def is_ours(fab: bytes) -> bool:
    """Whether a FAB is the app of this version of fedrot and holds nothing else. Compression may differ."""
    try:
        return _contents(fab) == _contents(bundle())
    except (zipfile.BadZipFile, ValueError):
        return False


def _contents(fab: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(fab)) as archive:
        if sum(item.file_size for item in archive.infolist()) > _LARGEST:
            raise ValueError("larger than the app can be")
        return {item.filename: archive.read(item) for item in archive.infolist()}
