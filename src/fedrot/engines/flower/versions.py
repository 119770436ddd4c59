"""Which fedrot this is: server and nodes must run the same."""

from __future__ import annotations

import importlib.metadata


def version() -> str:
    """Of the fedrot that is installed here."""
    return importlib.metadata.version("fedrot")
