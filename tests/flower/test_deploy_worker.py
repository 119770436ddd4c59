"""The warm worker of a node: one process for all rounds, and what happens when it dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, RecordDict

from fedrot.engines.flower.deploy.process import environment
from fedrot.engines.flower.deploy.warm import GaveUp, WarmWorker, WorkerFailed
from fedrot.engines.flower.node import NodeSettings
from fedrot.engines.flower.packing import from_bytes, to_bytes

ROOT = Path(__file__).parents[2]
HANDLER = "tests.flower.handlers:Obliging"


def never() -> bool:
    return False


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    return environment(tmp_path / "flwr") | {"PYTHONPATH": path}


@pytest.fixture
def worker(env: dict[str, str]) -> Iterator[WarmWorker]:
    made = WarmWorker(NodeSettings("node-0", (0, 3)), env, HANDLER)
    made.start()
    yield made
    made.stop()


def ask(worker: WarmWorker, kind: str, content: RecordDict | None = None) -> Any:
    return from_bytes(worker.ask(kind, to_bytes(content or RecordDict()), never), "the worker")["answer"]


def gone(pid: int) -> bool:
    """Whether a process has ended, also where nobody has waited for it yet."""
    status = Path(f"/proc/{pid}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] in "ZX"


def eventually(happens: Any, seconds: float = 20.0) -> bool:
    until = time.monotonic() + seconds
    while not (found := happens()) and time.monotonic() < until:
        time.sleep(0.05)
    return bool(found)


def test_one_process_answers_all_messages(worker: WarmWorker):
    answers = [ask(worker, "train") for _ in range(3)]
    assert [answer["handled"] for answer in answers] == [1, 2, 3]
    assert {answer["pid"] for answer in answers} == {worker.pid}
    assert answers[0]["name"] == "node-0"


def test_arrays_come_through_as_they_are(worker: WarmWorker):
    sent = np.arange(300_000, dtype=np.float32).reshape(300, 1000)
    content = RecordDict({"a": ArrayRecord({"x": Array(sent)})})
    got = from_bytes(worker.ask("train", to_bytes(content), never), "").array_records["a"]["x"].numpy()
    assert got.dtype == np.float32
    assert (got == sent).all()


def test_a_fedrot_error_is_told_in_its_own_words(worker: WarmWorker):
    with pytest.raises(WorkerFailed, match=r"data = 'x\.csv': no such file"):
        ask(worker, "refuse")
    assert ask(worker, "train")["handled"] == 2


def test_an_unexpected_error_is_told_without_its_words(worker: WarmWorker):
    with pytest.raises(WorkerFailed) as caught:
        ask(worker, "mistake")
    assert "KeyError" in str(caught.value)
    assert "patient" not in str(caught.value)


def test_a_killed_worker_is_named_with_its_signal_and_started_again(worker: WarmWorker):
    before = ask(worker, "train")["pid"]
    with pytest.raises(WorkerFailed, match=r"SIGKILL \(by hand, or out of memory\)"):
        ask(worker, "die")
    after = ask(worker, "train")
    assert after["pid"] != before
    assert after["handled"] == 1


def test_a_worker_that_dies_between_two_messages_is_started_again(worker: WarmWorker):
    before = ask(worker, "train")["pid"]
    os.kill(before, signal.SIGKILL)
    assert eventually(lambda: (worker.check(), worker.pid != before)[1])
    assert ask(worker, "train")["handled"] == 1


def test_an_answer_that_nobody_waits_for_is_dropped(worker: WarmWorker):
    ask(worker, "train")
    with pytest.raises(GaveUp):
        worker.ask("slow", b"", lambda: True)
    assert ask(worker, "train")["handled"] == 3


def test_a_worker_that_cannot_start_is_an_error_and_not_a_busy_loop(env: dict[str, str]):
    worker = WarmWorker(NodeSettings("node-0", (0,)), env, "tests.flower.handlers:Missing")
    worker.start()
    with pytest.raises(WorkerFailed, match="ended with code 1"):
        ask(worker, "train")
    with pytest.raises(WorkerFailed, match="ended with code 1"):
        ask(worker, "train")
    assert worker.pid is None  # the third start waits
    with pytest.raises(GaveUp):
        worker.ask("train", b"", lambda: True)
    worker.stop()


def test_a_worker_ends_with_its_parent_however_that_ends(env: dict[str, str]):
    parent = (
        "import os, time\n"
        "from fedrot.engines.flower.deploy.warm import WarmWorker\n"
        "from fedrot.engines.flower.node import NodeSettings\n"
        f"worker = WarmWorker(NodeSettings('node-0', (0,)), dict(os.environ), {HANDLER!r})\n"
        "worker.start(); print(worker.pid, flush=True); time.sleep(60)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent], env=env, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        process.kill()
    assert eventually(lambda: gone(pid))


def test_the_node_is_no_argument_and_no_variable_of_the_worker(worker: WarmWorker):
    ask(worker, "train")
    process = Path(f"/proc/{worker.pid}")
    assert b"node-0" not in process.joinpath("cmdline").read_bytes()
    assert b"node-0" not in process.joinpath("environ").read_bytes()
