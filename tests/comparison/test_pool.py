"""Worker processes: they keep what they have, die without harm, and are ended with their parent's work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fedrot.comparison.pool import Pool, Task, Watch, work_here
from fedrot.errors import OutputError
from tests.comparison.workers import Broken, Scribe


class Log(Watch):
    def __init__(self) -> None:
        self.lines: list[tuple[Any, ...]] = []

    def began(self, task: Task) -> None:
        self.lines.append(("began", task.key))

    def told(self, task: Task, news: Any) -> None:
        self.lines.append(("told", task.key, news["round"]))

    def ended(self, task: Task) -> None:
        self.lines.append(("ended", task.key))

    def died(self, task: Task, reason: str, *, again: bool) -> None:
        self.lines.append(("died", task.key, reason.split(",")[0], again))


def test_a_worker_that_is_killed_is_replaced_and_its_task_begun_once_more(tmp_path: Path) -> None:
    log = Log()
    tasks = [Task("a", "x", {"deaths": 1}), Task("b", "x", {"deaths": 2}), Task("c", "y", {})]
    with Pool(1, Scribe, (str(tmp_path),)) as pool:
        pool.run(tasks, log)
        alive = [worker.process.pid for worker in pool.workers]
    assert ("died", "a", "SIGKILL", True) in log.lines
    assert log.lines.count(("ended", "a")) == 1
    assert [line for line in log.lines if line[:2] == ("died", "b")] == [
        ("died", "b", "SIGKILL", True),
        ("died", "b", "SIGKILL", False),
    ], "a task is given up after two deaths"
    assert not (tmp_path / "b.done").exists()
    assert (tmp_path / "c.done").exists(), "the others go on"
    for pid in alive:
        with pytest.raises(ProcessLookupError):
            os.kill(pid or 0, 0)


def test_tasks_that_share_go_to_one_worker(tmp_path: Path) -> None:
    tasks = [Task(f"{share}{n}", share, {"sleep": 0.3}) for n in range(3) for share in "xy"]
    with Pool(2, Scribe, (str(tmp_path),)) as pool:
        pool.run(tasks[:1], Watch())  # both are there before the race begins
        pool.run([Task(t.key + "'", t.share, t.payload) for t in tasks], Watch())
    pids = {path.stem: path.read_text().split()[0] for path in tmp_path.glob("*'.done")}
    assert len(pids) == 6
    assert len({pid for key, pid in pids.items() if key.startswith("x")}) == 1
    assert len({pid for key, pid in pids.items() if key.startswith("y")}) <= 2


def test_what_goes_wrong_while_watching_ends_the_workers(tmp_path: Path) -> None:
    class Interrupts(Watch):
        def told(self, task: Task, news: Any) -> None:
            raise KeyboardInterrupt

    pool = Pool(1, Scribe, (str(tmp_path),))
    with pytest.raises(KeyboardInterrupt), pool:
        pool.run([Task("a", "x", {"sleep": 60})], Interrupts())
    assert pool.workers == []
    assert not (tmp_path / "a.done").exists()


def test_a_worker_that_cannot_start_says_how_scripts_must_be_written(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"could not start.*__main__"),
        Pool(1, Broken, (str(tmp_path),)) as pool,
    ):
        pool.run([Task("a", "x", {})], Watch())


def test_without_processes_tasks_that_share_are_next_to_each_other(tmp_path: Path) -> None:
    log = Log()
    tasks = [Task("a1", "a", {}), Task("b1", "b", {}), Task("a2", "a", {})]
    work_here(tasks, Scribe, (str(tmp_path),), log)
    assert [key for what, key, *_ in log.lines if what == "began"] == ["a1", "a2", "b1"]
