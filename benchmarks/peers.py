"""The same job in one run: our engine, a plain PEFT loop, pfl-research and Flower's simulation, on the CPU.

    python benchmarks/peers.py [--jobs all-layers] [--repeats 1] [--add] [--rounds 4] [--steps 5] [--tiny]
                               [--only plain,fedrot] [--pfl-python PATH]

MiniLM, rank 4, query and value, tweets over skewed clients, AdamW, all clients counting alike. Every contender is a
script of `peers/`, runs in processes of its own, and gets the same tokens, draws, model and initial adapter; how a
framework batches, sends and averages is its own. Repeats are interleaved, so that a busy machine slows all alike.
A repeat takes minutes: `--add` puts further ones, and further jobs, beside those that the file has. Seconds a round
are the median over all rounds but each run's first; start-up is everything before the first round.
What each has trained is evaluated here, by one function.

pfl-research (`pip install pfl==0.6.0`) brings pins of its own; `--pfl-python` names the Python of another environment
that has it beside torch, transformers and peft.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from environment import RESULTS, environment, write
from safetensors.torch import load_file
from torch import Tensor

PARTS = Path(__file__).parent / "peers"
sys.path.insert(0, str(PARTS))

from build import build  # noqa: E402
from common import Job, load_model  # noqa: E402
from contest import CONTENDERS, JOBS, SEED, THREADS, recipe  # noqa: E402
from watch import peak_memory  # noqa: E402


def once(name: str, folder: Path, out: Path, pfl_python: str) -> dict[str, Any]:
    """One contender, once: its rounds, start-up, peak memory and what else it told."""
    contender = CONTENDERS[name]
    python = pfl_python if name == "pfl" else sys.executable
    paths = os.pathsep.join([str(PARTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    settings = {
        "OMP_NUM_THREADS": str(contender.threads),
        "OMP_WAIT_POLICY": "passive",  # waiting threads that spin cost most where other work shares the cores
        "PYTHONPATH": paths,
        "HF_HUB_OFFLINE": "1",
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    log = out.with_suffix(".log")
    command = [python, str(PARTS / contender.script), str(folder), str(out), *contender.arguments]
    status, peak = peak_memory(command, settings, log)
    if status or not (out / "result.json").exists():
        raise SystemExit(f"{name} ended with status {status}:\n{log.read_text('utf-8')[-4000:]}")
    found = json.loads((out / "result.json").read_text("utf-8"))
    marks = found.pop("marks")
    rounds = [round(later - earlier, 4) for earlier, later in itertools.pairwise(marks)]
    return {**found, "start_up": marks[0], "rounds": rounds, "total": marks[-1], "peak_mb": peak}


def summarise(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Of all repeats of one contender."""
    later = [seconds for run in runs for seconds in run["rounds"][1:]]
    median = statistics.median(later)
    return {
        "seconds_a_round": round(median, 4),
        "rounds_a_second": round(1 / median, 4),
        "spread_of_seconds_a_round": [round(min(later), 4), round(max(later), 4)],
        "seconds_of_first_round": round(statistics.median(run["rounds"][0] for run in runs), 2),
        "start_up_seconds": round(statistics.median(run["start_up"] for run in runs), 2),
        "total_seconds": round(statistics.median(run["total"] for run in runs), 2),
        "peak_mb": max(run["peak_mb"] for run in runs),
        **({"bytes_up_a_round": runs[0]["bytes_up"]} if "bytes_up" in runs[0] else {}),
        "runs": runs,
    }


@torch.no_grad()
def accuracy(job: Job, tensors: dict[str, Tensor]) -> float:
    """Of what a contender has trained, on the test split."""
    from peft import set_peft_model_state_dict

    torch.set_num_threads(1)  # contenders are done, and this one is not timed
    model = load_model(job).eval()
    if unknown := set_peft_model_state_dict(model, tensors).unexpected_keys:
        raise SystemExit(f"trained tensors that the model does not have: {unknown}")
    labels = job.tensors["test_labels"]
    logits = [model(**job.batch(rows, "test")).logits for rows in torch.arange(len(labels)).split(64)]
    return float((torch.cat(logits).argmax(-1) == labels).float().mean())


def apart(one: dict[str, Tensor], other: dict[str, Tensor], start: dict[str, Tensor]) -> float:
    """Distance of what two contenders trained, over how far the second has moved from the start."""
    gap = sum(float((one[name] - t).square().sum()) for name, t in other.items())
    moved = sum(float((t - start[name]).square().sum()) for name, t in other.items())
    return (gap / moved) ** 0.5


def measure(
    name: str, options: argparse.Namespace, folder: Path, before: dict[str, Any] | None
) -> dict[str, Any]:
    """All contenders on one job, their repeats interleaved, beside the repeats made before."""
    settings = recipe(**JOBS[name], rounds=options.rounds, steps=options.steps, tiny=options.tiny)
    build(folder / "job", settings)
    job = Job(folder / "job")
    facts = job.facts | {"model": "MiniLM-L6"}
    chosen = [contender for contender in options.only if name in CONTENDERS[contender].jobs]
    runs: dict[str, list[dict[str, Any]]] = {contender: [] for contender in chosen}
    if before is not None:
        check_same(f"--add: {name}", before, {"job": facts, "contenders": chosen})
        if "repeats" not in before:
            raise SystemExit(f"--add: {name} was written without its repeats; leave --add out to begin anew")
        runs = {contender: list(before["contenders"][contender]["runs"]) for contender in chosen}
    for repeat in range(options.repeats):
        for contender in chosen:
            found = once(contender, job.folder, folder / f"{contender}-{repeat}", options.pfl_python)
            runs[contender].append(found)
            rounds = " ".join(f"{seconds:.2f}" for seconds in found["rounds"])
            print(f"{name}, {repeat}, {contender}: {found['start_up']:.1f} s, rounds {rounds}", flush=True)
    start = load_file(job.folder / "initial" / "adapter_model.safetensors")
    ends = {contender: load_file(folder / f"{contender}-0" / "trained.safetensors") for contender in chosen}
    table: dict[str, Any] = {}
    for contender, end in ends.items():
        table[contender] = {"title": CONTENDERS[contender].title, **summarise(runs[contender])}
        table[contender]["accuracy"] = round(accuracy(job, end), 4)
        if "plain" in ends:
            table[contender]["apart_from_plain"] = float(f"{apart(end, ends['plain'], start):.2g}")
        if contender != "fedrot" and "fedrot" in table:
            table[contender] |= ratios(table["fedrot"], table[contender], CONTENDERS[contender].target)
    return {"job": facts, "repeats": len(runs[chosen[0]]), "contenders": table}


def check_same(what: str, before: dict[str, Any], now: dict[str, Any]) -> None:
    """Raises SystemExit where repeats of before and of now are not of the same thing."""
    for key, value in now.items():
        was = list(before[key]) if isinstance(value, list) else before[key]
        if was != value:
            raise SystemExit(f"{what}: {key} was {was}, now it is {value}; leave --add out to begin anew")


def ratios(ours: dict[str, Any], theirs: dict[str, Any], target: float | None) -> dict[str, Any]:
    """How many times faster ours is, by the round and over the whole run, start-up included."""
    found = {
        "times_slower_a_round": round(theirs["seconds_a_round"] / ours["seconds_a_round"], 2),
        "times_slower_whole_run": round(theirs["total_seconds"] / ours["total_seconds"], 2),
    }
    return found if target is None else {**found, "target": target}


def version_of_pfl(python: str) -> str:
    """Raises SystemExit with the remedy where that Python has no pfl."""
    asked = "import importlib.metadata as m; import pfl.model.pytorch; print(m.version('pfl'))"
    done = subprocess.run([python, "-c", asked], capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(
            f"--pfl-python {python}: it cannot import pfl; pip install pfl==0.6.0 in an environment that has torch, "
            "transformers and peft, and name its Python, or leave pfl out of --only"
        )
    return done.stdout.strip()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--add", action="store_true", help="keep the repeats and jobs that --out has")
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--steps", type=int, default=5, help="local steps")
    parser.add_argument("--tiny", action="store_true", help="small sizes, to see that the scripts work")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(CONTENDERS))
    parser.add_argument("--jobs", type=lambda text: text.split(","), default=list(JOBS))
    parser.add_argument("--pfl-python", default=sys.executable)
    parser.add_argument("--out", type=Path, default=RESULTS / "peers.json")
    options = parser.parse_args()
    for given, known in ((options.only, CONTENDERS), (options.jobs, JOBS)):
        if unknown := [name for name in given if name not in known]:
            parser.error(f"{unknown[0]!r}: expected some of {', '.join(known)}")
    report: dict[str, Any] = {
        "benchmark": "peers",
        **environment(torch.device("cpu"), "transformers", "peft", "flwr", "ray"),
        "threads": THREADS,
        "omp_wait_policy": "passive",
        "seed": SEED,
        "jobs": {},
    }
    if "pfl" in options.only:
        report["versions"]["pfl"] = version_of_pfl(options.pfl_python)
    if options.add and options.out.exists():
        before = json.loads(options.out.read_text("utf-8"))
        check_same("--add", before, {key: report[key] for key in ("versions", "device", "cpus", "seed")})
        report["jobs"] = before["jobs"]
        report["load_average"] = max(report["load_average"], before["load_average"])
    for name in options.jobs:
        with tempfile.TemporaryDirectory() as folder:
            report["jobs"][name] = measure(name, options, Path(folder), report["jobs"].get(name))
        report["load_average_after"] = round(os.getloadavg()[0], 1)
        write(options.out, report)  # each job as it is done: the next one takes minutes


if __name__ == "__main__":
    main()
