"""A federation of real processes on the loopback, for tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedrot.engines.flower.deploy.control import Control, NodeInfo, control
from fedrot.engines.flower.deploy.init import init
from fedrot.engines.flower.deploy.layout import load_server
from fedrot.engines.flower.deploy.process import free_port

ROOT = Path(__file__).parents[2]


class Process:
    """A Python module that runs beside the test, with its output in a file."""

    def __init__(self, module: str, arguments: Sequence[str | Path], log: Path) -> None:
        self.log = log
        path = os.pathsep.join([str(ROOT / "src"), str(ROOT)])
        env = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "COLUMNS": "300"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", module, *map(str, arguments)],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=log.parent,
            )

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")

    def wait(self, seconds: float = 400.0) -> int:
        return self.process.wait(seconds)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()


def eventually(happens: Callable[[], Any], seconds: float = 400.0) -> Any:
    """The first true value of `happens`; fails after so many seconds."""
    until = time.monotonic() + seconds
    while not (found := happens()):
        assert time.monotonic() < until, "it did not happen"
        time.sleep(0.05)
    return found


def children(pid: int) -> dict[str, int]:
    """The child processes of one, by the last part of their module's name."""
    found: dict[str, int] = {}
    for number in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{number}/cmdline").read_bytes().split(b"\0")
        if b"-m" in words:
            found[words[words.index(b"-m") + 1].decode().rpartition(".")[2]] = int(number)
    return found


SECRET_FILES = {"control.json", "server.key", "node.key"}


def secrets_out_of_place(federation: Federation) -> list[Path]:
    """Files beside those of `SECRET_FILES` that hold the control token or a line of a private key."""
    secrets = [json.loads(federation.server.control.read_text())["token"].encode()]
    for path in federation.root.rglob("*.key"):
        secrets += [line for line in path.read_bytes().split(b"\n")[1:-2] if line]
    files = [path for path in federation.root.rglob("*") if path.is_file() and path.name not in SECRET_FILES]
    return [path for path in files if any(secret in _content(path) for secret in secrets)]


def _content(path: Path) -> bytes:
    """What is in a file, nothing if a run that is under way has removed it."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""


class Federation:
    """One server and its nodes."""

    def __init__(self, root: Path, nodes: int, recipe: Path | None = None) -> None:
        self.root = root
        self.port = free_port()
        self.folders = init(root / "fed", nodes, port=self.port, recipe=recipe)
        self.server_folder = root / "fed" / "server"
        self.server = load_server(self.server_folder)
        self.processes: list[Process] = []
        self.superlink: Process | None = None

    def start(self, *arguments: str | Path, name: str) -> Process:
        return self.start_module("fedrot", "deploy", *arguments, name=name)

    def start_module(self, module: str, *arguments: str | Path, name: str) -> Process:
        process = Process(module, arguments, self.root / f"{name}.log")
        self.processes.append(process)
        return process

    def start_server(self) -> Process:
        self.superlink = self.start("superlink", self.server_folder, name=f"superlink-{len(self.processes)}")
        eventually(lambda: "nodes may connect" in self.superlink.said if self.superlink else False)
        return self.superlink

    def start_node(self, folder: Path, *, name: str | None = None) -> Process:
        return self.start("supernode", folder, name=name or f"{folder.name}-{len(self.processes)}")

    @contextmanager
    def control(self) -> Iterator[Control]:
        with control(self.server) as interface:
            yield interface

    def node(self, name: str) -> NodeInfo:
        with self.control() as interface:
            return next(node for node in interface.nodes() if node.name == name)

    def stop(self) -> None:
        for process in reversed(self.processes):
            process.stop()
