"""Which fedrot this is: server and nodes must run the same."""

from __future__ import annotations

import importlib.metadata
from functools import cache


@cache
def version() -> str:
    """Of the fedrot that was installed here when it was first asked: the one that runs, whatever came on disk since."""
    return importlib.metadata.version("fedrot")
