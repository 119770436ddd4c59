"""Tables of speed and scale, from the JSON files that the benchmarks wrote."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
Rows = list[list[str]]


def speed(name: str) -> str:
    """One suite's table and what it was measured on; where there are results of a GPU too, both."""
    make, files = SUITES[name]
    parts = []
    for stem in files:
        path = RESULTS / f"{stem}.json"
        if path.exists():
            found = json.loads(path.read_text("utf-8"))
            parts.append(f"{make(found)}\n{conditions(found)}")
    return "\n".join(parts) or "*Not measured yet.*\n"


def conditions(found: dict[str, Any]) -> str:
    """Device, threads, load, seed, versions."""
    versions = ", ".join(f"{name} {version}" for name, version in found["versions"].items())
    seed = f"; seed {found['seed']}" if "seed" in found else ""
    return (
        f"{found['device']}, {found['cpus']} processors, load {found['load_average']} at the start from this and other "
        f"work{seed}; {versions}.\n"
    )


def markdown(rows: Rows) -> str:
    header, *body = rows
    lines = [header, ["---", *["--:"] * (len(header) - 1)], *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.3g} ms" if seconds < 1 else f"{seconds:,.3g} s"


def alignment(found: dict[str, Any]) -> str:
    """Stacked against the two loops, by wall clock; the deviation where it was measured."""
    measured = any("largest_deviation_from_float64" in case for case in found["cases"])
    header = ["case", "stacked", "loop over clients", "published form", "times faster", "over one copy"]
    rows: Rows = [[*header, "from float64"] if measured else header]
    for case in found["cases"]:
        seconds = case["median_seconds"]
        kinds = ("stacked", "client_loop", "published_loop")
        row = [
            case["case"],
            *(milliseconds(seconds[kind]) if kind in seconds else "–" for kind in kinds),
            f"{case['times_faster_than_published_loop']:g}",
            f"{case['stacked_over_floor']:g}",
        ]
        if measured:
            worst = case.get("largest_deviation_from_float64")
            row.append(f"{worst['stacked']:.0e}" if worst else "–")
        rows.append(row)
    return markdown(rows)


def stacked(found: dict[str, Any]) -> str:
    """Client-steps a second by group size."""
    names = list(found["cases"][0]["client_steps_per_second"])
    rows: Rows = [["layers adapted, batch", *names, "best against the plain loop"]]
    for case in found["cases"]:
        rates = case["client_steps_per_second"]
        layers = case["targets"] if isinstance(case["targets"], str) else ", ".join(case["targets"])
        times = max(case["times_plain_peft_loop"].values())
        rates_shown = [f"{rates[name]:g}" if name in rates else "–" for name in names]
        rows.append([f"{layers}, {case['batch']}", *rates_shown, f"{times:g}"])
    return markdown(rows)


def server(found: dict[str, Any]) -> str:
    """Seconds by clients, the memory of the largest case, growth."""
    sizes = [case["clients"] for case in next(iter(found["methods"].values()))["cases"]]
    last = f"{sizes[-1]:,}"
    rows: Rows = [["method", *(f"{size:,} clients" for size in sizes), "growth", f"memory, {last}", "growth"]]
    for name, figures in found["methods"].items():
        cases, growth = figures["cases"], figures["growth"]
        rows.append(
            [
                "aggregation error (measured beside)" if name == "measure" else f"`{name}`",
                *(milliseconds(case["seconds"]) for case in cases),
                power(growth["seconds"]),
                f"{cases[-1]['memory_mb']:,.1f} MB",
                power(growth["memory"]),
            ]
        )
    shape = found["shape"]
    return (
        f"{markdown(rows)}\n{shape['sites']} sites of {shape['width']} x {shape['width']}, rank {shape['rank']}: "
        f"{shape['bytes_a_client'] / 1e3:.0f} kB a client, which are not counted as memory. {found['threads']} thread. "
    )


def power(exponent: float | None) -> str:
    return "flat" if exponent is None else f"N^{exponent:g}"


def peers(found: dict[str, Any]) -> str:
    """One table for each job."""
    jobs = found["jobs"].items()
    tables = "\n".join(f"{job_words(name, job['job'])}\n\n{contest(job['contenders'])}" for name, job in jobs)
    return f"{tables}\nMedians of {found['repeats']} repeats, interleaved. "


ADAPTED = {"all-layers": "query and value of all six blocks", "partial": "query and value of the last two blocks"}


def job_words(name: str, job: dict[str, Any]) -> str:
    return (
        f"**{job['cohort']} of {job['clients']} clients a round**, {ADAPTED[name]}, {job['steps']} local steps of "
        f"{job['batch_size']} examples, {job['rounds']} rounds:"
    )


def contest(contenders: dict[str, Any]) -> str:
    rows: Rows = [
        [
            *("", "seconds a round", "ours is faster by", "aim", "start-up", "first round", "whole run"),
            *("peak memory", "bytes up", "accuracy", "apart from plain loop"),
        ]
    ]
    for figures in contenders.values():
        aim, sent = figures.get("target"), figures.get("bytes_up_a_round")
        rows.append(
            [
                figures["title"],
                f"{figures['seconds_a_round']:.2f}",
                f"{figures['times_slower_a_round']:g}" if "times_slower_a_round" in figures else "",
                f"{aim:g}" if aim else "",
                f"{figures['start_up_seconds']:.0f} s",
                f"{figures['seconds_of_first_round']:.1f} s",
                f"{figures['total_seconds']:.0f} s",
                f"{figures['peak_mb']:,} MB",
                f"{sent:,}" if sent else "none",
                f"{figures['accuracy']:.3f}",
                f"{figures['apart_from_plain']:.1g}" if "apart_from_plain" in figures else "–",
            ]
        )
    return markdown(rows)


def flower(found: dict[str, Any]) -> str:
    """What a round takes beside training, over Flower and without."""
    rows: Rows = [["case", "seconds a round", "of these beside training", "until the first round", "peak memory"]]
    for name, case in found["cases"].items():
        if "seconds_a_round" in case:
            beside = case.get("seconds_beside_training")
            rows.append(
                [
                    name,
                    f"{case['seconds_a_round']:.2f}",
                    "–" if beside is None else f"{beside:.2f}",
                    f"{case['seconds_until_first_round']:.0f} s",
                    f"{case['peak_mb']:,} MB",
                ]
            )
    return markdown(rows)


PLACES = {
    "warm": "nodes of `fedrot deploy supernode`",
    "flower": "nodes of `flower-supernode`, a process for every message",
    "local": "the local engine",
}


def deploy(found: dict[str, Any]) -> str:
    """Seconds of every round on two nodes, and in one process."""
    first = next(iter(found["results"].values()))
    later = range(2, 2 + len(first["later_rounds"]))
    rows: Rows = [["", "round 1", *(f"round {number}" for number in later), "whole run"]]
    for name, figures in found["results"].items():
        seconds = [figures["first_round"], *figures["later_rounds"], figures["whole_wall_seconds"]]
        rows.append([PLACES[name], *(f"{value:.1f} s" for value in seconds)])
    return markdown(rows)


def scale(found: dict[str, Any]) -> str:
    """Registered clients, the same fifty a round."""
    rows: Rows = [["registered clients", *(f"{case['clients']:,}" for case in found["cases"])]]
    for label, key, form in (
        ("clients a round", "clients_a_round", "{:,}"),
        ("start-up", "start_up_seconds", "{:.1f} s"),
        ("a round", "seconds_a_round", "{:.2f} s"),
        ("of it beside training", "seconds_beside_training", "{:.2f} s"),
        ("evaluation, report and files at the end", "seconds_to_finish", "{:.1f} s"),
        ("peak memory", "peak_mb", "{:,} MB"),
        ("summary.json", "summary_kb", "{:,} kB"),
        ("report.html", "report_kb", "{:,} kB"),
    ):
        rows.append([label, *(form.format(case[key]) for case in found["cases"])])
    return markdown(rows)


SUITES: dict[str, tuple[Callable[[dict[str, Any]], str], tuple[str, ...]]] = {
    "alignment": (alignment, ("alignment-cpu", "alignment-cuda")),
    "stacked": (stacked, ("stacked-cpu", "stacked-cuda")),
    "server": (server, ("server",)),
    "peers": (peers, ("peers",)),
    "flower": (flower, ("flower",)),
    "deploy": (deploy, ("deploy",)),
    "scale": (scale, ("scale",)),
}
