"""The executor's side of a node's worker: started once, asked once a message, started again if it dies."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict

from fedrot.engines.flower.deploy.channel import ChannelClosed, receive, send
from fedrot.engines.flower.deploy.process import Child, module
from fedrot.engines.flower.node import NodeSettings

WORKER = "fedrot.engines.flower.worker:Worker"


class WorkerFailed(Exception):
    """The worker could not answer; the words are for the server."""


class GaveUp(Exception):
    """Nobody waits for the answer any more."""


class WarmWorker:
    """One worker process, and what to do when it is gone."""

    def __init__(self, settings: NodeSettings, env: Mapping[str, str], handler: str = WORKER) -> None:
        self._settings, self._env, self._handler = settings, env, handler
        self._child: Child | None = None
        self._end: socket.socket | None = None
        self._owed = 0
        """Answers still to come that nobody waits for."""
        self._deaths = 0
        self._not_before = 0.0

    @property
    def pid(self) -> int | None:
        """Of the process, if there is one."""
        return self._child.pid if self._child is not None else None

    def start(self) -> None:
        """Start the process; it loads torch while nobody waits for it."""
        here, there = socket.socketpair()
        with there:
            command = module("worker_main", str(there.fileno()), self._handler)
            self._child = Child("worker", command, self._env, pass_fds=[there.fileno()])
        self._end, self._owed = here, 1  # it says when it is ready
        self._say({"node": asdict(self._settings)})

    def ask(self, message_type: str, body: bytes, given_up: Callable[[], bool]) -> bytes:
        """The bytes of the worker's answer.

        Args:
            message_type: of the message.
            body: the bytes of its records.
            given_up: asked a few times a second whether anybody still waits.

        Raises:
            WorkerFailed: it raised, or its process died; then a new one is started, later each time.
            GaveUp: `given_up` said yes. The worker goes on, and its answer is dropped.
        """
        self._revive(given_up)
        assert self._end is not None
        try:
            while self._owed:
                if receive(self._end, given_up) is None:
                    raise GaveUp
                self._owed -= 1
            send(self._end, {"type": message_type}, body)
            self._owed += 1
            frame = receive(self._end, given_up)
        except ChannelClosed:
            raise WorkerFailed(self._died()) from None
        if frame is None:
            raise GaveUp
        self._owed -= 1
        self._deaths = 0
        header, answer = frame
        if "error" in header:
            raise WorkerFailed(header["error"])
        return answer

    def check(self) -> None:
        """Start a new process if this one has died while it was idle."""
        if self._child is not None and not self._child.running():
            self._died()

    def stop(self) -> None:
        """End the process, also in the middle of training."""
        if self._end is not None:
            self._end.close()
        if self._child is not None:
            self._child.stop(grace=1.0)
        self._child = self._end = None

    def _revive(self, given_up: Callable[[], bool]) -> None:
        while self._child is None:
            if time.monotonic() >= self._not_before:
                self.start()
            elif given_up():
                raise GaveUp
            else:
                time.sleep(0.05)

    def _died(self) -> str:
        assert self._child is not None
        how = self._child.ended()
        self.stop()
        self._deaths += 1
        wait = 0.0 if self._deaths == 1 else 2.0 ** min(self._deaths, 6)
        self._not_before = time.monotonic() + wait
        if not wait:
            self.start()
        return f"the worker process {how}; it is started again"

    def _say(self, header: dict[str, object]) -> None:
        assert self._end is not None
        try:
            send(self._end, header)
        except ChannelClosed:
            self.check()
