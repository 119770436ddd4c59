"""Runs one program that nobody has read, as far from the machine as was asked for.

`fedrot.evaluation.sandbox` starts this file as a script in a fresh interpreter; it imports the standard library alone.
The outer process keeps the time and reports. The inner one gives up what it can and runs the program.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import resource
import secrets
import select
import signal
import sys
import sysconfig
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

NOBODY = 65534
NEW_MOUNTS, NEW_UTS, NEW_IPC, NEW_USER, NEW_PIDS, NEW_NET = (
    *(0x00020000, 0x04000000, 0x08000000, 0x10000000, 0x20000000, 0x40000000),
)
PRIVATE, RECURSIVE, BIND, MOVE, NO_DEVICES, NO_SETUID = 1 << 18, 1 << 14, 1 << 12, 1 << 13, 1 << 2, 1 << 1
MOUNT_SETATTR = 442  # the same number on every architecture
PARENT_DEATH_SIGNAL, NO_NEW_PRIVILEGES = 1, 38

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """Call a function of libc that returns zero, or raise what went wrong, named."""
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def main() -> None:
    """Run the job that standard input holds.

    The descriptor in the first argument gets a line with the number of the inner process, and one with its outcome.
    """
    job, report = json.load(sys.stdin), int(sys.argv[1])
    null = os.open("/dev/null", os.O_RDONLY)
    os.dup2(null, 0)
    try:
        if job["confinement"] == "namespaces":
            enter_namespaces()
        outcome = supervise(job, report)
    except OSError as error:
        outcome = {"status": "refused", "detail": error.strerror or str(error)}
    os.write(report, json.dumps(outcome).encode())


def enter_namespaces() -> None:
    """No mounts, processes, interfaces or shared memory of others; as a user other than root, ids of its own too."""
    user, group = os.geteuid(), os.getegid()
    spaces = NEW_MOUNTS | NEW_UTS | NEW_IPC | NEW_PIDS | NEW_NET
    call("unshare", spaces if user == 0 else spaces | NEW_USER)
    if user != 0:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")


def supervise(job: dict[str, Any], report: int) -> dict[str, Any]:
    """Run the job in a process of its own, for so many seconds and no longer."""
    # A program that leaves early, by whatever way, has not said the word.
    word = secrets.token_hex(16).encode()
    reading, writing = os.pipe()
    start = time.monotonic()
    inner = os.fork()
    if inner == 0:
        try:
            os.setsid()  # so that signals to its own group do not reach the outer process
            os.close(report)
            os.close(reading)
            run(job, writing, word)
        finally:
            os._exit(1)  # whatever the program did, this process does not go on as the outer one
    os.close(writing)
    os.write(report, f"{inner}\n".encode())
    said, open_ = b"", True
    while open_ and (left := start + job["seconds"] - time.monotonic()) > 0:
        if select.select([reading], [], [], left)[0]:
            part = os.read(reading, 65536)
            open_, said = bool(part), (said + part)[:65536]
    elapsed = time.monotonic() - start
    os.kill(
        inner, signal.SIGKILL
    )  # also one that closed the pipe and lives on; nothing to one that has ended
    _, status = os.waitpid(inner, 0)
    return outcome(said.removeprefix(word) if said.startswith(word) else b"", status, open_, elapsed)


def outcome(said: bytes, status: int, late: bool, elapsed: float) -> dict[str, Any]:
    """What became of the inner process, from its last words and its exit status."""
    ended = os.WTERMSIG(status) if os.WIFSIGNALED(status) else None
    if said:
        return {**json.loads(said), "seconds": elapsed}
    if late or ended == signal.SIGXCPU:
        return {"status": "timed out", "detail": f"still running after {elapsed:.1f} s", "seconds": elapsed}
    how = f"ended by {signal.Signals(ended).name}" if ended else f"exit status {os.WEXITSTATUS(status)}"
    return {"status": "failed", "detail": f"{how} before its tests had passed", "seconds": elapsed}


def run(job: dict[str, Any], writing: int, word: bytes) -> NoReturn:
    """In the inner process: give everything up, run the program, say how it went."""

    def say(status: str, detail: str = "") -> NoReturn:
        with suppress(Exception):  # the program may have closed it
            sys.stdout.flush()
        os.write(writing, word + json.dumps({"status": status, "detail": detail[:2000]}).encode())
        os._exit(0)

    try:
        if job["confinement"] == "namespaces":
            enter_empty_root(Path(job["folder"]), job["storage"])
        elif os.geteuid() == 0:
            os.chown(job["folder"], NOBODY, NOBODY)
        os.chdir("/tmp" if job["confinement"] == "namespaces" else job["folder"])
        give_up_rights()
        set_limits(job)
    except OSError as error:
        say("refused", error.strerror or str(error))
    try:
        exec(compile(job["program"], "program", "exec"), {"__name__": "program"})
    except SystemExit as error:
        say("failed", f"SystemExit({error.code!r}) before its tests had passed")
    except BaseException as error:
        say("failed", f"{type(error).__name__}: {error}".removesuffix(": "))
    say("passed")


def enter_empty_root(folder: Path, storage: int) -> None:
    """Put a root in place of the machine's that holds the interpreter's files, read only, and a `/tmp` in memory."""
    call("mount", b"none", b"/", None, PRIVATE | RECURSIVE, None)
    options = f"size={storage},mode=755".encode()
    call("mount", b"none", bytes(folder), b"tmpfs", NO_DEVICES | NO_SETUID, options)
    for source in interpreter_folders():
        inside = folder / source.relative_to("/")
        inside.parent.mkdir(parents=True, exist_ok=True)
        if source.is_symlink():
            inside.symlink_to(source.readlink())
            continue
        inside.mkdir(exist_ok=True)
        call("mount", bytes(source), bytes(inside), None, BIND | RECURSIVE, None)
        read_only = (ctypes.c_uint64 * 4)(1, 0, 0, 0)
        here, recursive = -100, 0x8000
        call("syscall", MOUNT_SETATTR, here, bytes(inside), recursive, read_only, ctypes.sizeof(read_only))
    (folder / "tmp").mkdir()
    (folder / "tmp").chmod(0o1777)
    os.chdir(folder)
    call("mount", b".", b"/", None, MOVE, None)
    os.chroot(".")


def interpreter_folders() -> list[Path]:
    """What Python needs of the machine, none inside another: system libraries, its own prefix, its library."""
    wanted = ["/usr", "/lib", "/lib32", "/lib64", sys.base_prefix, sys.base_exec_prefix]
    wanted += [sysconfig.get_path("stdlib"), sysconfig.get_path("platstdlib")]
    folders: list[Path] = []
    for path in map(Path, wanted):
        if path.exists() and not any(path.is_relative_to(taken) for taken in folders):
            folders.append(path)
    return folders


def give_up_rights() -> None:
    """No root, no groups, no capabilities, none to be had again; not traceable, and not outliving the outer process."""
    if os.geteuid() == 0:
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
    if sys.platform == "linux":
        version_3, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        call("capset", version_3, none)
        call("prctl", NO_NEW_PRIVILEGES, 1, 0, 0, 0)
        call("prctl", PARENT_DEATH_SIGNAL, int(signal.SIGKILL), 0, 0, 0)


def set_limits(job: dict[str, Any]) -> None:
    """Bounds that the kernel holds, soft and hard."""
    bounds = {
        resource.RLIMIT_CPU: math.ceil(job["seconds"]),  # a second later it is killed
        resource.RLIMIT_AS: job["memory"],
        resource.RLIMIT_FSIZE: job["storage"],
        resource.RLIMIT_NOFILE: job["open_files"],
        resource.RLIMIT_NPROC: 1,  # this process: neither another one nor a thread
        resource.RLIMIT_CORE: 0,
    }
    for kind, bound in bounds.items():
        _, most = resource.getrlimit(kind)
        most = math.inf if most == resource.RLIM_INFINITY else most
        soft = min(bound, most)
        hard = min(soft + (kind == resource.RLIMIT_CPU), most)
        resource.setrlimit(kind, (int(soft), int(hard)))


if __name__ == "__main__":
    main()
