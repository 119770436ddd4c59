"""Seconds per round of a deployed federation: two warm nodes, against Flower's own way of a process per message.

    python benchmarks/deploy.py [--rounds 6] [--only warm,flower,local] [--out FILE]

Everything runs on this machine, over the loopback, with TLS and node keys: one server and two nodes that host one
client each, with half of the cores each. The recipe is the demo's with two clients. `warm` are nodes of `fedrot deploy
supernode`, `flower` those of `flower-supernode`, which starts a process for every message; `local` is the same recipe
in one process, so that the difference to it is what distribution costs. The first round is reported apart: it loads
what later rounds find loaded. Also reported: processor seconds of all processes from start to end, which a busy machine
inflates less.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, write

from fedrot.engines.flower.deploy.control import control
from fedrot.engines.flower.deploy.init import init
from fedrot.engines.flower.deploy.layout import load_server
from fedrot.engines.flower.deploy.process import environment as private
from fedrot.engines.flower.deploy.process import free_port

RECIPE = Path(__file__).parents[1] / "recipes" / "demo.toml"
PARTS = ("warm", "flower", "local")
SETTINGS = (
    "federation.clients=2",
    "federation.evaluate_every=1000",
    "output.probe=false",
    "output.report=false",
)


@contextmanager
def running(command: Sequence[str | Path], log: Path, env: dict[str, str] | None = None) -> Iterator[int]:
    with log.open("wb") as file:
        process = subprocess.Popen(
            [str(word) for word in command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env=env,
        )
    try:
        yield process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


def fedrot(*words: str | Path) -> list[str | Path]:
    return [sys.executable, "-m", "fedrot", *words]


def overrides(rounds: int) -> list[str]:
    return [word for key in (*SETTINGS, f"federation.rounds={rounds}") for word in ("--set", key)]


def seconds(out: Path) -> list[float]:
    return [json.loads(line)["training_seconds"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def node_command(part: str, folder: Path, address: str) -> tuple[list[str | Path], dict[str, str] | None]:
    # Two nodes on one machine share its cores; on threads of all of them each would wait for the other's.
    threads = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 2) // 2))}
    if part == "warm":
        return fedrot("deploy", "supernode", folder), os.environ | threads
    # Flower's own way: it starts `flwr-clientapp` for every message.
    program = Path(sys.executable).with_name("flower-supernode")
    words: list[str | Path] = [program, "--superlink", address, "--root-certificates", folder / "ca.crt"]
    words += ["--auth-supernode-private-key", folder / "node.key", "--port", str(free_port())]
    words += ["--node-config", f'node="{folder}"']
    env = private(folder / "state" / "flwr")
    return words, env | threads | {"PATH": f"{program.parent}{os.pathsep}{env['PATH']}"}


def online(folder: Path) -> bool:
    try:
        with control(load_server(folder)) as interface:
            return all(node.status == "online" for node in interface.nodes())
    except Exception:
        return False


def deployed(part: str, rounds: int, root: Path) -> list[float]:
    port = free_port()
    folders = init(root / "fed", 2, port=port)
    server = root / "fed" / "server"
    with running(fedrot("deploy", "superlink", server), root / "server.log"):
        commands = [node_command(part, folder, f"127.0.0.1:{port}") for folder in folders]
        first, second = commands
        with running(first[0], root / "0.log", first[1]), running(second[0], root / "1.log", second[1]):
            until = time.monotonic() + 300
            while not online(server):
                if time.monotonic() > until:
                    names = ("server", "0", "1")
                    logs = "\n".join((root / f"{name}.log").read_text("utf-8")[-2000:] for name in names)
                    raise RuntimeError(f"the nodes did not come online:\n{logs}")
                time.sleep(0.5)
            command = fedrot(
                "deploy", "run", RECIPE, "--dir", server, "--out", root / "run", *overrides(rounds)
            )
            subprocess.run([str(word) for word in command], check=True)
    return seconds(root / "run")


def measure(part: str, rounds: int) -> dict[str, Any]:
    before, started = os.times(), time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        if part == "local":
            command = fedrot(
                "run", RECIPE, "--out", root / "run", *overrides(rounds), "--set", "federation.group_size=1"
            )
            subprocess.run([str(word) for word in command], check=True)
            found = seconds(root / "run")
        else:
            found = deployed(part, rounds, root)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    return {
        "first_round": round(found[0], 2),
        "later_rounds": [round(value, 2) for value in found[1:]],
        "later_median": round(statistics.median(found[1:]), 2),
        "whole_wall_seconds": round(time.perf_counter() - started, 1),
        "whole_processor_seconds": round(spent, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--out", type=Path, default=RESULTS / "deploy.json")
    given = parser.parse_args()
    results: dict[str, Any] = {}
    for part in given.only.split(","):
        load = os.getloadavg()[0]
        results[part] = {"load_average_before": round(load, 1)} | measure(part, given.rounds)
        print(part, results[part])
    report = environment(torch.device("cpu"), "flwr", "transformers") | {
        "rounds": given.rounds,
        "results": results,
    }
    write(given.out, report)


if __name__ == "__main__":
    main()
