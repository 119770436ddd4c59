"""The process of a server that watches over the others: the SuperLink behind the gate, and one for each server app.

Flower's own launcher of server apps passes their tokens as arguments, which every user of the machine can read, so
fedrot claims and starts them itself.
"""

from __future__ import annotations

import json
import secrets
import signal
import sys
import time
from collections.abc import Mapping
from contextlib import suppress

import httpx
from flwr.supercore.constant import TaskType

from fedrot.engines.flower.deploy.alone import alone
from fedrot.engines.flower.deploy.connect import split
from fedrot.engines.flower.deploy.control import Control, control
from fedrot.engines.flower.deploy.layout import SERVER_FOLDER, Server, private_folder
from fedrot.engines.flower.deploy.pki import write_secret
from fedrot.engines.flower.deploy.process import Child, environment, free_port, module, past_proxies, readable
from fedrot.engines.flower.deploy.runtime import Runtime
from fedrot.errors import ConfigError, OutputError
from fedrot.rundir import write_whole

_START = 120.0
"""Seconds that the SuperLink has to start."""


class ServerSupervisor:
    """Runs a server until it is told to stop."""

    def __init__(self, server: Server, keys: Mapping[str, bytes]) -> None:
        """Nothing is started yet.

        Args:
            server: its folder.
            keys: public keys of the nodes that may take part, by name.
        """
        self._server, self._keys = server, keys
        past_proxies()
        self._env = environment(private_folder(server.state) / "flwr")
        self._apps: dict[int, Child] = {}
        """The processes of runs."""
        self._stop = False

    def run(self) -> None:
        """Serve until SIGTERM or SIGINT.

        Raises:
            OutputError: the SuperLink ended by itself. Runs can be resumed once it is back.
            ConfigError: a process runs from this folder already.
        """
        with alone(self._server.state, "a server"):
            self._run()

    def _run(self) -> None:
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._end)
        server = self._server
        port, secret, token = (
            server.file.control_port or free_port(),
            secrets.token_bytes(32),
            secrets.token_hex(32),
        )
        address = f"127.0.0.1:{port}"
        server.control.unlink(missing_ok=True)
        write_secret(server.control, json.dumps({"address": address, "token": token}).encode())
        superlink = self._start(port, secret, token)
        runtime = Runtime(address, secret, server.ca.read_bytes())
        try:
            self._register(superlink)
            while superlink.running() and not self._stop:
                self._step(runtime, address)
                time.sleep(server.file.poll)
        finally:
            for child in self._apps.values():
                child.stop()
            runtime.close()
            deserted = not self._stop and not superlink.running()
            superlink.stop()
            server.control.unlink(missing_ok=True)
        if deserted:
            raise OutputError(
                f"the SuperLink {superlink.ended()}; start it again, then go on with `fedrot deploy run --resume`"
            )

    def _start(self, port: int, secret: bytes, token: str) -> Child:
        server = self._server
        host, outer = split(server.file.listen)
        arguments = ["--ssl-ca-certfile", str(server.ca), "--ssl-certfile", str(server.certificate)]
        arguments += ["--ssl-keyfile", str(server.key), "--enable-supernode-auth"]
        arguments += ["--database", str(server.state / "superlink.db"), "--isolation", "process"]
        arguments += ["--disable-runtime-dependency-installation", "--host", "127.0.0.1", "--port", str(port)]
        given = {
            "host": host,
            "port": outer,
            "token": token,
            "limit": server.file.request_limit_mb * 2**20,
        }
        line = json.dumps(given).encode() + b"\n"
        with readable(secret) as descriptor:
            arguments += ["--superexec-auth-secret-file", f"/dev/fd/{descriptor}"]
            command = module("superlink_main", *arguments)
            return Child("superlink", command, self._env, pass_fds=[descriptor], given=line, told=_pass_on)

    def _register(self, superlink: Child) -> None:
        """Let in the nodes whose keys lie in `keys/`, and no others; end the runs of an earlier life."""
        until = time.monotonic() + _START
        while superlink.running() and not self._stop:
            try:
                with control(self._server) as interface:
                    register(interface, self._keys)
                    for run in interface.runs():
                        if run.status in ("starting", "running"):
                            interface.stop(run.id)
            except ConfigError as error:
                if time.monotonic() > until:
                    raise OutputError(
                        f"the SuperLink did not answer within {_START:g} s; its log says why"
                    ) from error
                time.sleep(0.1)
            else:
                self._say(
                    f"nodes may connect to {self._server.file.listen}: {', '.join(self._keys) or 'none yet'}"
                )
                return

    def _step(self, runtime: Runtime, address: str) -> None:
        """Start the server app of a submitted run, and clear away those that ended."""
        for run, child in list(self._apps.items()):
            if not child.running():
                self._settle(run, child)
                del self._apps[run]
        try:
            task = runtime.acquire(TaskType.SERVER_APP)
        except httpx.HTTPStatusError as error:
            self._say(f"the SuperLink refused to hand out runs ({error})")
            return
        if task is None:
            return
        server = self._server
        private_folder(server.log(task.run).parent)
        private_folder(server.outcome(task.run).parent)
        log = server.log(task.run)

        def told(line: str) -> None:
            with log.open("a", encoding="utf-8") as file:
                file.write(line + "\n")

        given = {
            "address": address,
            "ca": str(server.ca),
            "token": task.token,
            "outcome": str(server.outcome(task.run)),
        }
        self._say(f"starting run {task.run}; its log is {log}")
        line = json.dumps(given).encode() + b"\n"
        env = {**self._env, SERVER_FOLDER: str(server.directory)}
        child = Child(f"run {task.run}", module("serverapp_main"), env, given=line, told=told)
        self._apps[task.run] = child

    def _settle(self, run: int, child: Child) -> None:
        """Note how a server app ended that could not do so itself; Flower would take a minute to find out."""
        told = child.ended()
        child.stop()
        self._say(f"run {run} {told}")
        outcome = self._server.outcome(run)
        with suppress(ConfigError, httpx.HTTPError), control(self._server) as interface:
            if not outcome.exists() and interface.run(run).status != "finished":
                message = f"the process of run {run} {told}; finished rounds are kept, and --resume goes on after them"
                write_whole(outcome, json.dumps({"exit_code": OutputError.exit_code, "message": message}))
                interface.stop(run)

    def _end(self, *_: object) -> None:
        self._stop = True

    def _say(self, line: str) -> None:
        print(f"[server] {line}", file=sys.stderr, flush=True)


def _pass_on(line: str) -> None:
    """All lines but those that Flower writes each time it is asked how things stand."""
    if not line.endswith(("ControlServicer.ListRuns", "ControlServicer.ListNodes")):
        print(f"[superlink] {line}", file=sys.stderr, flush=True)


def register(interface: Control, keys: Mapping[str, bytes]) -> None:
    """Make the registered nodes those of `keys`: new ones are added, others removed."""
    known = {node.public_key: node for node in interface.nodes()}
    for name, key in keys.items():
        if key not in known:
            interface.register(name, key)
    for key, node in known.items():
        if key not in keys.values():
            interface.unregister(node.id)
