"""What a language model said to held-out prompts before and after the run."""

from __future__ import annotations

import json
from typing import Any

from fedrot.errors import OutputError
from fedrot.report.load import Run

FILE = "samples.json"
LONGEST = 300
"""Characters of a prompt that are shown, half from its start and half from its end."""


def said(run: Run) -> list[dict[str, str]]:
    """What was asked, expected answer and both completions of each sample; empty if the run has none.

    Raises:
        OutputError: the file is damaged.
    """
    path = run.directory / FILE
    if not path.exists():
        return []
    try:
        stored: dict[str, Any] = json.loads(path.read_text("utf-8"))
        keys = ("asked", "expected", "before", "after")
        texts = [{key: str(text[key]) for key in keys} for text in stored["texts"]]
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(
            f"'{path}': expected samples as a run writes them ({error}); remove the file"
        ) from error
    return [text | {"asked": shortened(text["asked"])} for text in texts]


def shortened(text: str) -> str:
    """Start and end of a long text.

    >>> shortened("a" * 500)[145:157]
    'aaaaa […] aa'
    """
    half = LONGEST // 2
    return text if len(text) <= LONGEST else f"{text[:half].rstrip()} […] {text[-half:].lstrip()}"
