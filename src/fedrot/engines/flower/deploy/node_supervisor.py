"""The process of a node that watches over its two others.

This one, light, watches over the other two and carries messages between them: Flower's SuperNode, which speaks with the
server, and the worker, which holds torch, the model and the data from one round to the next. Either may die and is
started again; when this one ends, both end.
"""

from __future__ import annotations

import re
import secrets
import signal
import sys
import time

from fedrot.engines.flower.deploy.alone import alone
from fedrot.engines.flower.deploy.connect import check_server
from fedrot.engines.flower.deploy.executor import Executor, GaveUp, TaskLost
from fedrot.engines.flower.deploy.layout import private_folder
from fedrot.engines.flower.deploy.online import Online
from fedrot.engines.flower.deploy.patience import ALERT, NEAR, hurry_input
from fedrot.engines.flower.deploy.process import Child, environment, free_port, module, past_proxies, readable
from fedrot.engines.flower.deploy.runtime import Runtime
from fedrot.engines.flower.deploy.warm import WORKER, WarmWorker
from fedrot.engines.flower.node import Node
from fedrot.errors import ConfigError

_NODE_ID = re.compile(r"SuperNode ID: (\d+)")
_LONGEST_WAIT = 30.0


class NodeSupervisor:
    """Runs a node until it is told to stop."""

    def __init__(self, node: Node, handler: str = WORKER) -> None:
        """Nothing is started yet.

        Args:
            node: as its folder describes it.
            handler: `module:factory` of what answers messages.
        """
        self._node = node
        past_proxies()
        self._env = environment(private_folder(node.state) / "flwr")
        self._worker = WarmWorker(node.settings, self._env, handler)
        self._online = Online(node)
        self._supernode: Child | None = None
        self._stop = False

    def run(self) -> None:
        """Take part until SIGTERM or SIGINT.

        Raises:
            ConfigError: the server refuses this node, or is not the one its certificate should name; or a process runs
                from this folder already.
        """
        with alone(self._node.state, f"node {self._node.settings.name!r}"):
            self._run()

    def _run(self) -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._end)
        hurry_input()
        wait = 1.0
        try:
            self._worker.start()
            while not self._stop:
                began = time.monotonic()
                self._reach()
                if self._stop:
                    break
                told = self._take_part()
                if self._stop:
                    break
                wait = 1.0 if time.monotonic() - began > 60 else min(2 * wait, _LONGEST_WAIT)
                self._say(f"{told}; starting it again in {wait:.0f} s")
                self._pause(wait)
        finally:
            self._worker.stop()

    def _reach(self) -> None:
        """Wait until the server is there."""
        wait, told = 1.0, ""
        while not self._stop and (why := check_server(self._node.superlink, self._node.ca)) is not None:
            if why != told:
                self._say(f"waiting for the server at {self._node.superlink}: {why}")
                told = why
            self._pause(wait)
            wait = min(1.5 * wait, 10.0)

    def _take_part(self) -> str:
        """Run a SuperNode and answer its messages until it or this process ends; say how it ended."""
        if not self._online.settle():
            return "the server went away"
        port, secret = free_port(), secrets.token_bytes(32)
        child = self._supernode = self._start(port, secret)
        runtime = Runtime(f"127.0.0.1:{port}", secret)
        executor = Executor(runtime, self._worker, self._node.settings.name, self._given_up)
        told, worked = "", time.monotonic()
        try:
            while child.running() and not self._stop:
                if executor.step():
                    worked = time.monotonic()
                else:
                    self._worker.check()
                    time.sleep(NEAR if time.monotonic() - worked < ALERT else self._node.poll)
        except TaskLost as error:
            told = str(error)
        except GaveUp:
            pass  # nobody waits for that answer: the SuperNode or this process is ending, and is looked at below
        finally:
            child.stop()
            runtime.close()
            if child.code is not None and child.code >= 0:  # else it had no time to say good-bye
                self._online.forget()
        if not told:
            self._refused(child)
            told = f"the SuperNode {child.ended()}"
        return told

    def _start(self, port: int, secret: bytes) -> Child:
        node = self._node
        arguments = ["--superlink", node.superlink, "--root-certificates", str(node.ca)]
        arguments += ["--auth-supernode-private-key", str(node.key), "--isolation", "process"]
        arguments += ["--host", "127.0.0.1", "--port", str(port)]
        with readable(secret) as descriptor:
            arguments += ["--superexec-auth-secret-file", f"/dev/fd/{descriptor}"]
            command = module("supernode_main", str(node.poll), *arguments)
            return Child("supernode", command, self._env, pass_fds=[descriptor], told=self._hear)

    def _hear(self, line: str) -> None:
        if found := _NODE_ID.search(line):
            self._online.note(int(found[1]))
            self._say(f"online at {self._node.superlink} as {self._node.settings.name}")
        print(f"[supernode] {line}", file=sys.stderr, flush=True)

    def _refused(self, child: Child) -> None:
        """Tell a refusal, which a new start would not mend, from a failure."""
        told = "\n".join(child.last)
        if "Failed to activate SuperNode" in told:
            raise ConfigError(
                f"the server at {self._node.superlink} refuses the key '{self._node.key}' (Flower's exit code 305): it "
                f"is not registered there, or another node is online with it. Put node.pub into the server's keys/ as "
                f"{self._node.settings.name}.pub and restart it; give every node its own key (`fedrot deploy keygen`)"
            )

    def _given_up(self) -> bool:
        return self._stop or self._supernode is None or not self._supernode.running()

    def _pause(self, seconds: float) -> None:
        until = time.monotonic() + seconds
        while not self._stop and time.monotonic() < until:
            time.sleep(0.1)

    def _end(self, *_: object) -> None:
        self._stop = True

    def _say(self, line: str) -> None:
        print(f"[node] {line}", file=sys.stderr, flush=True)
