"""What would leave a node or a server running and useless: a failed loop, a proxy, a second process, many deaths."""

from __future__ import annotations

import http.server
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from fedrot.engines.flower.deploy.alone import alone
from fedrot.engines.flower.deploy.process import past_proxies
from fedrot.engines.flower.deploy.warm import WarmWorker
from fedrot.engines.flower.messenger import Messenger, Request
from fedrot.engines.flower.node import NodeSettings
from fedrot.engines.flower.roster import Peer
from fedrot.errors import ConfigError

SUPERNODE = """
import threading, time
import flwr.supernode.cli as cli
from fedrot.engines.flower.deploy import supernode_main

def flower_supernode():
    threading.Thread(target=time.sleep, args=(120,)).start()
    {then}

cli.flower_supernode = flower_supernode
supernode_main.main(["0.2"])
"""


@pytest.mark.parametrize(
    "then",
    ["pass", "threading.Thread(target=lambda: 1 / 0).start(); time.sleep(120)"],
    ids=["the loop returns", "a thread fails"],
)
def test_a_supernode_that_has_stopped_asking_ends_although_a_thread_of_it_goes_on(then: str) -> None:
    command = [sys.executable, "-c", SUPERNODE.format(then=then)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait(60) == -signal.SIGKILL
    assert ("ZeroDivisionError" in said) == (then != "pass")


def test_a_proxy_in_the_environment_does_not_stand_between_processes_of_one_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    monkeypatch.setenv("NO_PROXY", "example.org")
    monkeypatch.delenv("no_proxy", raising=False)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.SimpleHTTPRequestHandler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/nothing-here"
        with pytest.raises(httpx.ConnectError):
            httpx.get(address)
        past_proxies()
        past_proxies()
        assert httpx.get(address).status_code == 404
        assert os.environ["NO_PROXY"] == "example.org,127.0.0.1,localhost"
        server.shutdown()


def test_a_second_process_on_a_folder_is_refused_until_the_first_has_ended(tmp_path: Path) -> None:
    with (
        alone(tmp_path, "node 'a'"),
        pytest.raises(ConfigError, match="node 'a' runs from this folder already"),
        alone(tmp_path, "node 'a'"),
    ):
        pass
    with alone(tmp_path, "node 'a'"):
        pass


def test_a_worker_that_died_thousands_of_times_is_still_started_again_a_minute_later() -> None:
    worker: Any = WarmWorker(NodeSettings("node-0", (0,)), {})

    class Dead:
        def ended(self) -> str:
            return "ended"

    worker._child, worker._deaths, worker.stop = Dead(), 2000, lambda: None
    assert "started again" in worker._died()


class Stray:
    """A grid that brings a reply to nothing that was asked, and then the one that was."""

    def __init__(self) -> None:
        self.brought = 0

    def push_messages(self, messages: list[Message]) -> list[str]:
        self.asked = messages
        return ["asked"]

    def pull_messages(self, names: set[str]) -> list[Message]:
        self.brought += 1
        reply = Message(RecordDict(), reply_to=self.asked[0])
        reply.metadata.__dict__["_reply_to_message_id"] = "stray" if self.brought == 1 else "asked"
        return [reply]


def test_a_reply_to_nothing_that_was_asked_is_passed_over() -> None:
    grid = Stray()
    peer = Peer(5, "node-0", (0,), (1,), (0,), "cpu")
    (answer,) = Messenger(cast(Grid, grid), 10.0).ask("train", [Request(peer, RecordDict())], 1)
    assert isinstance(answer, RecordDict)
    assert grid.brought == 2
