"""The one Flower app that fedrot ever submits: a `pyproject.toml` and no code. The recipe travels as its configuration.

Its bytes depend on the version of fedrot alone, so a warm node can tell it from any other app, and it runs its own
installed fedrot instead of anything that came in the bundle.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import io
import zipfile
from functools import cache

VERSION = importlib.metadata.version("fedrot")

RECIPE, OUT, RESUME = "recipe", "out", "resume"
"""Keys of the app's `run_config`: the recipe in TOML, the run directory on the server, whether to go on with it."""

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
    """The app as a FAB, Flower's archive: its file, and a list of files with digests and sizes in bits.

    Uncompressed and undated, so that every machine writes the same bytes.
    """
    project = _PYPROJECT.format(version=VERSION).encode()
    content = f"pyproject.toml,{hashlib.sha256(project).hexdigest()},{8 * len(project)}".encode()
    written = io.BytesIO()
    with zipfile.ZipFile(written, "w", zipfile.ZIP_STORED) as archive:
        archive.writestr(zipfile.ZipInfo("pyproject.toml"), project)
        archive.writestr(zipfile.ZipInfo(".info/CONTENT"), content)
    return written.getvalue()


def bundle_hash() -> str:
    """The SHA-256 by which Flower names the app."""
    return hashlib.sha256(bundle()).hexdigest()
