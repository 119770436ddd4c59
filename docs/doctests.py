"""A griffe extension: doctests in docstrings are shown as code, not as nested quotations."""

from __future__ import annotations

import re
from typing import Any

import griffe

BLOCK = re.compile(r"^>>> .*(?:\n(?!\s*$).*)*", re.M)


class Doctests(griffe.Extension):
    """Fences every paragraph that begins with a prompt."""

    def on_instance(self, *, obj: griffe.Object, **_: Any) -> None:
        if obj.docstring:
            obj.docstring.value = BLOCK.sub(lambda match: f"```pycon\n{match[0]}\n```", obj.docstring.value)
