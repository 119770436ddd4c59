"""Child processes that end with their parent, whatever ends the parent, and whose last words are kept.

Each child's standard input is a pipe that nothing is written to: when it closes, the parent is gone, and the child ends
itself (`tether`). Children are stopped by their own process id, never by name.
"""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from fedrot.engines.flower.deploy.layout import private_folder

GRACE = 8.0
"""Seconds a child has to end by itself; Flower's processes force themselves out after 5."""

_OFF = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "FLWR_ENABLE_EVENT_LOG": "0",
    "PYTHONUNBUFFERED": "1",
}


def environment(home: Path) -> dict[str, str]:
    """The environment of Flower's processes: nothing is reported, looked up or installed, and files go to `home`."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
    return {**kept, **_OFF, "FLWR_HOME": str(private_folder(home))}


def past_proxies() -> None:
    """Have this process and its children reach the loopback without a proxy, whatever the environment names."""
    for name in ("NO_PROXY", "no_proxy"):
        listed = [word for word in os.environ.get(name, "").split(",") if word]
        os.environ[name] = ",".join(dict.fromkeys([*listed, "127.0.0.1", "localhost"]))


def module(name: str, *arguments: str) -> list[str]:
    """The command that runs a module of this package."""
    return [sys.executable, "-m", f"fedrot.engines.flower.deploy.{name}", *arguments]


def free_port() -> int:
    """A port of the loopback that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def readable(secret: bytes) -> Iterator[int]:
    """A descriptor from which a child can read a secret once, as `/dev/fd/N`, so that no file ever holds it."""
    reading, writing = os.pipe()
    try:
        with os.fdopen(writing, "wb") as pipe:
            pipe.write(secret)
        yield reading
    finally:
        os.close(reading)


def tether() -> None:
    """End this process, first politely, when the parent's end of standard input closes. For the child to call."""

    def wait() -> None:
        while os.read(0, 4096):
            pass
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=wait, name="tether", daemon=True).start()


class Child:
    """One child process; its output is passed on line by line and the last lines are kept."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        pass_fds: Sequence[int] = (),
        given: bytes = b"",
        told: Callable[[str], None] | None = None,
    ) -> None:
        """Start it.

        Args:
            name: for its lines.
            command: what to run.
            env: its whole environment.
            pass_fds: descriptors it inherits.
            given: written to its standard input first; unlike an argument, other users cannot see it.
            told: hears every line; by default they go to standard error.
        """
        self.name = name
        self.last: deque[str] = deque(maxlen=60)
        self._told = told or (lambda line: print(f"[{name}] {line}", file=sys.stderr, flush=True))
        self._process = subprocess.Popen(
            command,
            env=dict(env),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=pass_fds,
            start_new_session=True,
        )
        assert self._process.stdin is not None
        if given:
            self._process.stdin.write(given)
            self._process.stdin.flush()
        self._reader = threading.Thread(target=self._read, name=f"{name}-output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int:
        """Its process id."""
        return self._process.pid

    def running(self) -> bool:
        """Whether it has not ended yet."""
        return self._process.poll() is None

    def ended(self) -> str:
        """How it ended, in words; it is waited for."""
        code = self._process.wait()
        self._reader.join(timeout=1)
        if code >= 0:
            return f"ended with code {code}"
        name = signal.Signals(-code).name
        return f"was ended by {name}" + (" (by hand, or out of memory)" if name == "SIGKILL" else "")

    @property
    def code(self) -> int | None:
        """Its exit code; negative for a signal, None while it runs."""
        return self._process.poll()

    def stop(self, grace: float = GRACE) -> None:
        """End it: SIGTERM, and SIGKILL if it is still there after `grace` seconds."""
        if self.running():
            self._process.terminate()
            try:
                self._process.wait(grace)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join(timeout=1)

    def _read(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for raw in lines:
                line = _plain(raw.decode("utf-8", "replace").rstrip("\n"))
                self.last.append(line)
                self._told(line)


def _plain(line: str) -> str:
    """Without the colours that Flower's log has even in a file."""
    return re.sub(r"\x1b\[[0-9;]*m", "", line)
