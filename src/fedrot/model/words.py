"""Small helpers shared by the files of this package."""

from __future__ import annotations

import io
from contextlib import redirect_stderr

CARD = "fedrot.json"
"""Facts about an exported model or adapter that transformers and PEFT have no place for."""


def inside(name: str, module: str) -> bool:
    """Whether a parameter or module is `module` or lies in it."""
    return name == module or name.startswith(f"{module}.")


def first_line(error: BaseException) -> str:
    """An error in one line."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class quiet_transformers:
    """Silence progress bars and the load report while a base model with a new head is read; errors still raise."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        # GGUF files are read under a bar of their own, which no setting of transformers hides.
        self.stderr = redirect_stderr(io.StringIO())
        self.stderr.__enter__()
        self.verbosity = logging.get_verbosity()
        self.bars = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        self.stderr.__exit__(None, None, None)
        logging.set_verbosity(self.verbosity)
        if self.bars:
            logging.enable_progress_bar()
