"""Hostile programs, each run confined: none may pass, and none may do what it tries."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path

import pytest

from fedrot.errors import ConfigError
from fedrot.evaluation import sandbox
from fedrot.evaluation.sandbox import Confinement, Limits, run_confined

LIMITS = Limits(seconds=1.0, memory=256 << 20, storage=1 << 20)


def _refused(confinement: Confinement) -> str:
    try:
        sandbox.check_confinement(confinement)
    except ConfigError as error:
        return str(error)
    return ""


NO_NAMESPACES = _refused("namespaces")
namespaces = pytest.mark.skipif(bool(NO_NAMESPACES), reason=NO_NAMESPACES)
AVAILABLE = [name for name in sandbox.CONFINEMENTS if not _refused(name)]
pytestmark = pytest.mark.skipif(not AVAILABLE, reason=NO_NAMESPACES)


@pytest.fixture(params=AVAILABLE)
def confinement(request: pytest.FixtureRequest) -> Confinement:
    return request.param


def test_a_program_that_runs_to_its_end_passes(confinement: Confinement) -> None:
    found = run_confined("print('done', 6 * 7)", limits=LIMITS, confinement=confinement)
    assert (found.status, found.output) == ("passed", "done 42\n")


@pytest.mark.parametrize(
    "program", ["import sys; sys.stdout.close()", "import sys; sys.stdout = None", "import os; os.close(1)"]
)
def test_a_program_may_do_with_its_output_what_it_likes(program: str, confinement: Confinement) -> None:
    assert run_confined(program, limits=LIMITS, confinement=confinement).status == "passed"


@pytest.mark.parametrize(
    ("program", "detail"),
    [
        ("assert 1 == 2, 'unequal'", "AssertionError: unequal"),
        ("def f(:", "SyntaxError"),
        ("import sys; sys.exit(0)", "SystemExit(0) before its tests had passed"),
        ("import os; os._exit(0)", "exit status 0 before its tests had passed"),
        ("import ctypes; ctypes.string_at(0)", "SIGSEGV"),
        ("import os\nwhile True: os.fork()", "BlockingIOError"),
        ("import threading; threading.Thread(target=print).start()", "can't start new thread"),
        ("hog = []\nwhile True: hog.append(bytearray(1 << 22))", "MemoryError"),
        ("open('big', 'wb').write(b'0' * (1 << 22))", "OSError"),
        ("files = [open('x', 'w') for _ in range(100)]", "Too many open files"),
        ("import os; os.closerange(0, 100)\nimport time; time.sleep(60)", "before its tests had passed"),
        ("def f(): f()\nf()", "RecursionError"),
        ("import numpy", "ModuleNotFoundError"),
    ],
)
def test_a_program_that_fails_leaves_early_or_takes_too_much_does_not_pass(
    program: str, detail: str, confinement: Confinement
) -> None:
    found = run_confined(program, limits=LIMITS, confinement=confinement)
    assert found.status == "failed"
    assert detail in found.detail


@pytest.mark.parametrize("body", ["pass", "time.sleep(60)", "print('x' * 10_000)"])
def test_a_program_without_end_is_stopped_and_its_output_cut(body: str, confinement: Confinement) -> None:
    limits = Limits(seconds=0.4, memory=LIMITS.memory)
    found = run_confined(f"import time\nwhile True: {body}", limits=limits, confinement=confinement)
    assert found.status == "timed out"
    assert len(found.output) <= sandbox.KEPT_OUTPUT


def test_nothing_of_the_environment_is_inherited(
    confinement: Confinement, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECRET", "not to be told")
    found = run_confined(
        "import os; assert 'SECRET' not in os.environ\nprint(dict(os.environ))", confinement=confinement
    )
    assert (found.status, "told" in found.output) == ("passed", False)


@namespaces
def test_the_environment_of_other_processes_is_out_of_reach() -> None:
    found = run_confined("print(open('/proc/1/environ').read())", limits=LIMITS)
    assert "FileNotFoundError" in found.detail


@namespaces
def test_sockets_reach_nobody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        found = run_confined(f"import socket; socket.create_connection(('127.0.0.1', {port}))", limits=LIMITS)
    assert "Network is unreachable" in found.detail


@namespaces
def test_files_outside_are_neither_read_nor_written(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("not to be told", "utf-8")
    for name, mode in (("secret", "r"), ("new", "w")):
        found = run_confined(f"open({str(tmp_path / name)!r}, {mode!r})", limits=LIMITS)
        assert "FileNotFoundError" in found.detail
    found = run_confined("import os; open(os.__file__, 'a')", limits=LIMITS)
    assert (found.status, "os.py" in found.detail) == ("failed", True)
    assert not (tmp_path / "new").exists()


@namespaces
def test_other_processes_cannot_be_signalled() -> None:
    program = f"import os\nassert os.getppid() == 0\nos.kill({os.getpid()}, 0)"
    assert "ProcessLookupError" in run_confined(program, limits=LIMITS).detail


def test_it_writes_in_a_folder_of_its_own_that_is_gone_afterwards(confinement: Confinement) -> None:
    program = "import os; open('x', 'w').write('hi'); print(os.getcwd(), os.listdir('.'))"
    folder, files = run_confined(program, limits=LIMITS, confinement=confinement).output.split(maxsplit=1)
    assert files == "['x']\n"
    assert folder == "/tmp" or not Path(folder).exists()


def test_ending_the_supervisor_is_no_success(confinement: Confinement) -> None:
    start = time.monotonic()
    found = run_confined(
        "import os, signal; os.kill(os.getppid() or 1 << 21, signal.SIGKILL); import time; time.sleep(60)",
        limits=LIMITS,
        confinement=confinement,
    )
    assert found.status == "failed"
    assert time.monotonic() - start < 30  # a minute if the program had outlived it
