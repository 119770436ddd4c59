"""What all commands share: the two consoles, how a mistake is told, and how a run is stopped."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import typer
from rich.console import Console
from rich.markup import escape

from fedrot.errors import FedrotError

out = Console(highlight=False)
err = Console(stderr=True, highlight=False)


def tell(error: FedrotError) -> None:
    """One line, without a traceback: what the user can mend."""
    err.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True)


@contextmanager
def reported_errors() -> Iterator[None]:
    """Print what the user can mend without a traceback, and leave with the error's exit code."""
    try:
        yield
    except FedrotError as error:
        tell(error)
        raise typer.Exit(error.exit_code) from None


def stop_like_an_interrupt() -> None:
    """From now on SIGTERM ends a run as Ctrl-C does: resumable."""
    signal.signal(signal.SIGTERM, _interrupt)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt
