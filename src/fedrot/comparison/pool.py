"""Worker processes that live as long as the comparison, each with one task at a time; or none, in this process."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from fedrot.errors import OutputError

ATTEMPTS = 2
"""How often a task is begun whose worker dies under it."""


@dataclass(frozen=True)
class Task:
    """Something to do. Tasks with equal `share` run on one worker where that can be arranged."""

    key: str
    share: str
    payload: Mapping[str, Any]


class Watch:
    """Told what happens. Every hook does nothing unless overridden."""

    def began(self, task: Task) -> None:
        """A worker took up a task."""

    def told(self, task: Task, news: Mapping[str, Any]) -> None:
        """News from within a task."""

    def ended(self, task: Task) -> None:
        """A task is through, well or not: its file says which."""

    def died(self, task: Task, reason: str, *, again: bool) -> None:
        """A worker ended under a task, which is begun again or given up."""


Work = Callable[[Task, Callable[[Mapping[str, Any]], None]], None]


def work_here(
    tasks: Sequence[Task], make: Callable[..., Work], arguments: tuple[Any, ...], watch: Watch
) -> None:
    """Do the tasks in this process, those that share next to each other."""
    work = make(*arguments)
    order = list(dict.fromkeys(task.share for task in tasks))
    for task in sorted(tasks, key=lambda task: order.index(task.share)):
        watch.began(task)
        work(task, lambda news, task=task: watch.told(task, news))
        watch.ended(task)


@dataclass
class _Worker:
    process: BaseProcess
    pipe: Connection
    ready: bool = False
    task: Task | None = None
    share: str | None = None


@dataclass
class Pool:
    """`jobs` processes (spawned, so that nothing of this one's threads or devices is copied into them).

    Args:
        jobs: how many.
        make: called in each worker with `arguments`; returns what does a task. Found by name, so it must be defined
            at the top of a module.
        arguments: of `make`.

    As a context manager it ends its own processes on the way out, whatever happened.
    """

    jobs: int
    make: Callable[..., Work]
    arguments: tuple[Any, ...] = ()
    workers: list[_Worker] = field(default_factory=list)

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self.workers:
            if worker.process.is_alive():
                worker.process.terminate()
        for worker in self.workers:
            worker.process.join(5)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
            worker.pipe.close()
        self.workers.clear()

    def run(self, tasks: Sequence[Task], watch: Watch) -> None:
        """Do all tasks; returns when every one has ended or was given up.

        Raises:
            OutputError: a worker cannot even start.
        """
        waiting, attempts = list(tasks), {task.key: 0 for task in tasks}
        while len(self.workers) < min(self.jobs, len(waiting)):
            self.workers.append(self._start())
        while waiting or any(worker.task for worker in self.workers):
            for worker in self.workers:
                if worker.ready and worker.task is None and waiting:
                    self._give(worker, waiting, attempts, watch)
            ready = wait([w.pipe for w in self.workers] + [w.process.sentinel for w in self.workers])
            for worker in [w for w in self.workers if w.pipe in ready or w.process.sentinel in ready]:
                if not self._listen(worker, watch):
                    self._replace(worker, waiting, attempts, watch)

    def _start(self) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        process = context.Process(target=_serve, args=(theirs, self.make, self.arguments), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)

    def _give(self, worker: _Worker, waiting: list[Task], attempts: dict[str, int], watch: Watch) -> None:
        """The next task, if possible one that shares with the worker's last, and none that shares with another's."""
        others = {w.share for w in self.workers if w is not worker and w.task}
        task = min(waiting, key=lambda task: (task.share != worker.share, task.share in others))
        waiting.remove(task)
        attempts[task.key] += 1
        worker.task, worker.share = task, task.share
        watch.began(task)
        worker.pipe.send(task)

    def _listen(self, worker: _Worker, watch: Watch) -> bool:
        """Take in one message; False if the worker has ended."""
        try:
            if not worker.pipe.poll():
                return worker.process.is_alive()
            news = worker.pipe.recv()
        except (EOFError, OSError):
            return False
        if news == "ready":
            worker.ready = True
        elif news == "ended":
            task, worker.task = worker.task, None
            assert task is not None
            watch.ended(task)
        else:
            assert worker.task is not None
            watch.told(worker.task, news)
        return True

    def _replace(self, worker: _Worker, waiting: list[Task], attempts: dict[str, int], watch: Watch) -> None:
        worker.process.join()
        worker.pipe.close()
        self.workers.remove(worker)
        reason = _reason(worker.process.exitcode)
        if not worker.ready:
            raise OutputError(
                f"a worker process could not start ({reason}); a script that compares with jobs > 1 must do so under "
                "`if __name__ == '__main__':`; or use jobs = 1"
            )
        if worker.task is not None:
            again = attempts[worker.task.key] < ATTEMPTS
            if again:
                waiting.insert(0, worker.task)
            watch.died(worker.task, reason, again=again)
        if waiting:
            self.workers.append(self._start())


def _reason(code: int | None) -> str:
    if code is not None and code < 0:
        name = signal.Signals(-code).name
        return name + (", as when memory runs out: fewer --jobs need less" if name == "SIGKILL" else "")
    return f"exit code {code}"


def _serve(pipe: Connection, make: Callable[..., Work], arguments: tuple[Any, ...]) -> None:
    """The main loop of a worker. Ctrl-C goes to all processes of a terminal; the parent ends its workers itself."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    work = make(*arguments)

    def tell(news: Any) -> None:
        try:
            pipe.send(news)
        except OSError:  # the parent is gone: nobody waits for this task, and it has not failed
            os._exit(1)

    tell("ready")
    while True:
        try:
            task = pipe.recv()
        except (EOFError, OSError):
            os._exit(1)
        work(task, tell)
        tell("ended")
