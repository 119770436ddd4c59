"""Programs that nobody has read, run in a confined process of their own."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any, Literal

from fedrot.errors import ConfigError, nearest

Confinement = Literal["namespaces", "limits-only"]
CONFINEMENTS: tuple[Confinement, ...] = ("namespaces", "limits-only")
SCRIPT = Path(__file__).with_name("confined.py")
KEPT_OUTPUT = 64 * 1024
GRACE = 10.0
"""Seconds beyond the limit for starting and ending; then supervisor and program are killed from here."""


@dataclass(frozen=True)
class Limits:
    """What one program may use. It may start neither processes nor threads."""

    seconds: float = 5.0
    """Of wall-clock time; rounded up, of processor time too."""
    memory: int = 1 << 30
    """Bytes of address space."""
    storage: int = 16 << 20
    """Bytes a file may grow to; under `namespaces`, all files together."""
    open_files: int = 64

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if not value > 0:
                raise ConfigError(f"limit {name} = {value}: expected a positive number")


@dataclass(frozen=True)
class Outcome:
    """How a program ended."""

    status: Literal["passed", "failed", "timed out"]
    """`passed`: it ran to its last line. Leaving earlier, also with exit status 0, is a failure."""
    detail: str
    output: str
    """The first 64 KiB of what it printed."""
    seconds: float


def run_confined(
    program: str, *, limits: Limits | None = None, confinement: Confinement = "namespaces"
) -> Outcome:
    """Run Python source in a fresh interpreter without site packages, environment, or standard input.

    Under `namespaces` (Linux) the program sees no network, no other process and no file but Python's own and an empty
    `/tmp` in memory. Under both it is not root, has the bounds of `limits`, and cannot start a process. Under
    `limits-only` it can reach the network and read and write whatever its user can; root is exchanged for user
    65534.

    This stops programs that do harm. It does not stop one that searches the interpreter's memory for the word that
    means success, and says it.

    Raises:
        ConfigError: the kernel refuses this confinement; nothing was run.
    """
    if confinement not in CONFINEMENTS:
        raise ConfigError(f"confinement {confinement!r}: {nearest(confinement, CONFINEMENTS)}")
    if sys.platform != "linux" and (confinement == "namespaces" or os.name != "posix"):
        raise ConfigError(refusal(confinement, f"namespaces are Linux's, this is {sys.platform}"))
    limits = limits or Limits()
    with tempfile.TemporaryDirectory(prefix="fedrot-program-") as folder:
        job = {"program": program, "folder": folder, "confinement": confinement, **asdict(limits)}
        report, output = _run(json.dumps(job).encode(), limits.seconds + GRACE)
    if report["status"] == "refused":
        raise ConfigError(refusal(confinement, report["detail"]))
    return Outcome(report["status"], report["detail"], output, report["seconds"])


def check_confinement(confinement: Confinement) -> None:
    """Run a program that fails unless it is confined as promised.

    Raises:
        ConfigError: the confinement is refused, or does not hold; nothing else was run.
    """
    found = run_confined(PROBES[confinement], confinement=confinement)
    if found.status != "passed":
        raise ConfigError(refusal(confinement, f"a program that tries it says: {found.detail}"))


def refusal(confinement: str, cause: str) -> str:
    """Why nothing is run, and what would let it run."""
    if confinement == "namespaces":
        remedy = (
            "run where Linux lets a process have its own user, mount, process and network namespaces (not so in most "
            "containers), or accept --confinement limits-only, under which generated code can reach the network and "
            "the files of its user"
        )
    else:
        remedy = "run as an ordinary user, with a Python that this user can read"
    return f"generated code cannot be confined here ({confinement}: {cause}); {remedy}"


def _run(job: bytes, patience: float) -> tuple[dict[str, Any], str]:
    """What the supervising process reports, and the output's beginning."""
    reading, writing = os.pipe()
    start = time.monotonic()
    with os.fdopen(reading, "rb") as report:
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-B", str(SCRIPT), str(writing)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                pass_fds=(writing,),
                env={},
                start_new_session=True,
            )
        finally:
            os.close(writing)
        said = b""
        with process:
            try:
                assert process.stdin is not None
                assert process.stdout is not None
                with suppress(BrokenPipeError):  # it did not even start: what it printed says why
                    process.stdin.write(job)
                    process.stdin.close()
                said, output = _drain([report, process.stdout], start + patience)
            finally:
                process.kill()
    text = output.decode("utf-8", "replace")
    inner, _, outcome = said.partition(b"\n")
    if outcome or not inner.isdigit():
        cause = f"its supervisor says: {text[-500:].strip()}"
        return json.loads(outcome or inner or json.dumps({"status": "refused", "detail": cause})), text
    _kill(int(inner))
    detail = "its supervisor was ended before its tests had passed"
    return {"status": "failed", "detail": detail, "seconds": time.monotonic() - start}, text


def _drain(streams: list[IO[bytes]], deadline: float) -> list[bytes]:
    """The first part of each stream, read to their ends or to the deadline; what comes after it is thrown away."""
    kept = [b"" for _ in streams]
    with selectors.DefaultSelector() as selector:
        for number, stream in enumerate(streams):
            selector.register(stream, selectors.EVENT_READ, number)
        while selector.get_map() and (left := deadline - time.monotonic()) > 0:
            for key, _ in selector.select(left):
                part = os.read(key.fd, 65536)
                kept[key.data] = (kept[key.data] + part)[:KEPT_OUTPUT]
                if not part:
                    selector.unregister(key.fileobj)
    return kept


def _kill(process: int) -> None:
    with suppress(ProcessLookupError):  # it has ended
        os.kill(process, signal.SIGKILL)


_NO_PROCESS = """
import collections, hashlib, heapq, itertools, math, random, re, string, typing
import os
assert os.geteuid() != 0, "it is root"
assert not os.environ.keys() - {"LC_CTYPE"}, "it has an environment"
try:
    if os.fork() == 0:
        os._exit(0)
except OSError:
    pass
else:
    raise AssertionError("it can start processes")
"""

_ALONE = """
import socket
assert os.getppid() == 0, "it sees other processes"
assert not os.path.exists("/proc") and not os.path.exists("/home"), "it sees the machine's files"
assert [name for _, name in socket.if_nameindex()] == ["lo"], "it sees network interfaces"
try:
    open(os.path.join(os.path.dirname(os.__file__), "probe"), "w")
except OSError:
    pass
else:
    raise AssertionError("it can change Python's own files")
"""

PROBES: dict[Confinement, str] = {"namespaces": _NO_PROCESS + _ALONE, "limits-only": _NO_PROCESS}
