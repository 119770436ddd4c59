"""Runs over a deployed federation of two nodes, for tests."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fedrot.rundir import RunDirectory
from tests.flower.deployed import Federation, Process, children, eventually

RECIPE = """
seed = 3
[model]
path = "{model}"
pooling = "mean"
[lora]
rank = 2
alpha = 4.0
[task]
data = "{corpus}"
max_length = 24
test_fraction = 0.2
[partition]
kind = "dirichlet"
alpha = 1.0
min_size = 8
[method]
name = "fedrot"
[train]
lr = 0.01
local_steps = 3
batch_size = 4
device = "cpu"
[federation]
clients = 4
rounds = 3
[engine]
name = "flower"
deadline = 30
[output]
report = false
"""


class Runs:
    """A federation of two nodes, and recipes for it."""

    def __init__(self, root: Path, model: Path, corpus: Path) -> None:
        self.root = root
        self.recipe = root / "recipe.toml"
        self.recipe.write_text(RECIPE.format(model=model, corpus=corpus), "utf-8")
        self.federation = Federation(root, 2, recipe=self.recipe)
        for folder in self.federation.folders:
            own = f'data = "{corpus}"\nsharding = "recipe"\nmodel = "{model}"\n'
            with (folder / "node.toml").open("a", encoding="utf-8") as file:
                file.write(own)
        self.nodes: list[Process] = []
        self.count = 0

    def start(self, second: str | None = None) -> None:
        """Start server and nodes; the second node may be a module of the tests instead."""
        self.federation.start_server()
        first, other = self.federation.folders
        self.nodes = [
            self.federation.start_node(first),
            self.federation.start_module(second, other, name=second.rpartition(".")[2])
            if second
            else self.federation.start_node(other),
        ]

    def submit(self, *arguments: str | Path, out: str) -> Process:
        self.count += 1
        given = ["--dir", self.federation.server_folder, "--out", self.root / out, *arguments]
        return self.federation.start("run", *given, name=f"run-{self.count}")

    def run(self, *settings: str, out: str) -> Process:
        overrides = [word for setting in settings for word in ("--set", setting)]
        return self.submit(self.recipe, *overrides, out=out)

    def records(self, out: str) -> list[dict[str, Any]]:
        return RunDirectory(self.root / out).records()

    def supervised(self, node: int) -> dict[str, int]:
        """The numbers of a node's processes."""
        return children(self.nodes[node].process.pid)

    def rounds(self, out: str, count: int) -> None:
        """Wait until so many rounds are finished."""
        eventually(lambda: len(self.records(out)) >= count)

    def last(self, out: str) -> dict[str, Any]:
        return self.records(out)[-1]

    def training(self, node: int) -> bool:
        """Whether a node has taken a message that it has not answered."""
        said = self.nodes[node].said
        return said.count("Receiving: train message") > said.count("Sending: train message")

    def frozen(self, node: int) -> int:
        """Stop a node's worker in the middle of a round; returns its number."""
        worker = self.supervised(node)["worker_main"]
        os.kill(worker, signal.SIGSTOP)
        eventually(lambda: self.training(node))
        return worker

    @contextmanager
    def long(self, out: str, *settings: str) -> Iterator[Process]:
        """A run that goes on until the test is over."""
        process = self.run("federation.rounds=1000", "federation.evaluate_every=1000", *settings, out=out)
        try:
            self.rounds(out, 1)
            yield process
        finally:
            process.stop()

    def whole_round(self, out: str) -> None:
        """Wait for a round in which nobody is missing."""
        seen = len(self.records(out))
        eventually(lambda: any(record["dropped"] == 0 for record in self.records(out)[seen:]))

    def goes_on(self, out: str, *settings: str) -> None:
        """Resume a run for one more round; what was finished stays."""
        done = len(self.records(out))
        longer = [f"federation.rounds={done + 1}", "federation.evaluate_every=1000", *settings]
        overrides = [word for setting in longer for word in ("--set", setting)]
        again = self.submit(self.recipe, "--resume", *overrides, out=out)
        assert again.wait() == 0, again.said
        assert f"resuming after round {done}" in again.said
        assert [record["round"] for record in self.records(out)] == list(range(1, done + 2))
