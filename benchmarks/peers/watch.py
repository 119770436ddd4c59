"""Runs a command and watches how much memory it and everything it started hold."""

from __future__ import annotations

import os
import subprocess
import threading
import time
from pathlib import Path

import psutil

INTERVAL = 0.5


def peak_memory(command: list[str], environment: dict[str, str], log: Path) -> tuple[int, int]:
    """Run `command` to its end.

    Memory is the proportional set size (PSS) of its processes together: resident memory in which a page that several
    of them share counts once. It is read every half second.

    Returns:
        The exit status, and the peak in megabytes.
    """
    with log.open("w", encoding="utf-8") as file:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment, "PEERS_STARTED": repr(time.time())},
            stdout=file,
            stderr=subprocess.STDOUT,
        )
        peaks, over = [0], threading.Event()
        watcher = threading.Thread(target=_watch, args=(process.pid, peaks, over))
        watcher.start()
        try:
            status = process.wait()
        finally:
            over.set()
            watcher.join()
    return status, round(max(peaks) / 2**20)


def _watch(pid: int, peaks: list[int], over: threading.Event) -> None:
    while not over.wait(INTERVAL):
        try:
            root = psutil.Process(pid)
            peaks.append(sum(_held(process) for process in (root, *root.children(recursive=True))))
        except psutil.NoSuchProcess:
            return


def _held(process: psutil.Process) -> int:
    try:
        return process.memory_full_info().pss
    except psutil.Error:  # it has just ended
        return 0
