"""The `fedrot` command in processes of its own, forked from one that has imported everything: no start takes seconds.

Each is a real process, with its own memory, signals, output and exit code; it only has not imported torch and
transformers anew. What an import does is tested elsewhere, and `test_cli.py` starts `python -m fedrot` as well.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

IMPORTED = [
    "fedrot.cli",
    "fedrot.engines.run",
    "fedrot.comparison.command",
    "datasets",
    "transformers.models.bert.modeling_bert",
    "transformers.models.bert.tokenization_bert",
    "peft",
]


@dataclass(frozen=True)
class Done:
    """How a process ended."""

    returncode: int
    stdout: str
    stderr: str


@dataclass
class Running:
    """A function under way; it is found by name, so it must be defined at the top of a module."""

    function: Callable[..., None]
    arguments: tuple[str, ...] = ()
    folder: tempfile.TemporaryDirectory[str] = field(default_factory=tempfile.TemporaryDirectory)

    def __post_init__(self) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(IMPORTED)
        self.process = context.Process(target=_run, args=(self.folder.name, self.function, self.arguments))
        self.process.start()

    @property
    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self.process.is_alive()

    def signal(self, number: int) -> None:
        """Send it a signal."""
        assert self.process.pid is not None
        os.kill(self.process.pid, number)

    def wait(self, timeout: float = 180) -> Done:
        """Its end; it is killed, and the test fails, when it takes longer than `timeout` seconds."""
        self.process.join(timeout)
        if self.process.is_alive():
            self.process.kill()
            raise AssertionError(f"{self.function.__name__} {self.arguments} took more than {timeout} s")
        assert self.process.exitcode is not None
        said = [Path(self.folder.name, name).read_text("utf-8") for name in ("stdout", "stderr")]
        self.folder.cleanup()
        return Done(self.process.exitcode, *said)


def start(*arguments: object) -> Running:
    """Start `fedrot` with these arguments."""
    return Running(_fedrot, tuple(map(str, arguments)))


def fedrot(*arguments: object, timeout: float = 180) -> Done:
    """Run `fedrot` with these arguments to its end."""
    return start(*arguments).wait(timeout)


def _run(folder: str, function: Callable[..., None], arguments: tuple[str, ...]) -> None:
    for name, stream in (("stdout", sys.stdout), ("stderr", sys.stderr)):
        with Path(folder, name).open("wb") as file:
            os.dup2(file.fileno(), stream.fileno())
    function(*arguments)


def _fedrot(*arguments: str) -> None:
    from fedrot.cli import main

    sys.argv = ["fedrot", *arguments]
    main()
