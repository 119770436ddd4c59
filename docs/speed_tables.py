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
    """Client-steps a second by group size; where it was measured, the share of the rate of large products."""
    names = list(dict.fromkeys(name for case in found["cases"] for name in case["client_steps_per_second"]))
    shares = any("share_of_dense_rate" in case for case in found["cases"])
    last = ["best against the plain loop", *(["best, share of the dense rate"] if shares else [])]
    rows: Rows = [["layers adapted, batch", *names, *last]]
    for case in found["cases"]:
        rates = case["client_steps_per_second"]
        layers = case["targets"] if isinstance(case["targets"], str) else ", ".join(case["targets"])
        blocks = f", {case['blocks']} blocks" if case.get("blocks") else ""
        whose = f"{case['shape']}{blocks}: " if "shape" in case else ""
        rates_shown = [f"{rates[name]:g}" if name in rates else "–" for name in names]
        ours = [name for name in rates if name != "plain PEFT loop"]
        share = [f"{max(case['share_of_dense_rate'][name] for name in ours):.0%}"] if shares else []
        times = max(case["times_plain_peft_loop"].values())
        rows.append([f"{whose}{layers}, {case['batch']}", *rates_shown, f"{times:g}", *share])
    return markdown(rows)


def step_profile(found: dict[str, Any]) -> str:
    """Milliseconds a client-step of every part, one client at a time and stacked."""
    runs = [(case["case"], run) for case in found["cases"] for run in case["runs"]]
    rows: Rows = [["", *(f"{case}: {at_a_time(run['clients'])}" for case, run in runs)]]
    for part, words in found["parts"].items():
        rows.append([words, *(f"{run['milliseconds'][part]:.2f}" for _, run in runs)])
    for key, words in (("profiled_milliseconds", "all"), ("plain_milliseconds", "without the profiler")):
        rows.append([words, *(f"{run[key]:.2f}" for _, run in runs)])
    return f"{markdown(rows)}\nMilliseconds of a client-step; {found['precision']}, {found['threads']} threads. "


def at_a_time(clients: int) -> str:
    return "one at a time" if clients == 1 else f"{clients} stacked"


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
    repeats = sorted({job.get("repeats", found.get("repeats")) for _, job in jobs})
    told = "one repeat" if repeats == [1] else f"{' or '.join(map(str, repeats))} repeats, interleaved"
    return f"{tables}\nMedians of {told}. "


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


def server_step(found: dict[str, Any]) -> str:
    """Parts of a server's step: seconds, and what they are held against; a file has some of the parts."""
    size = found["size"]
    rows: Rows = [["step", "median", ""]]
    for case in found.get("svd", ()):
        against = f"{case['times_faster']:g} times as fast as the dense SVD ({milliseconds(case['dense_seconds'])})"
        rows.append([f"FlexLoRA, one site, {case['spectrum']} spectrum", median(case), against])
    if refit := found.get("refit"):
        where = f"{size['sites']} sites"
        rows.append([f"average, {where}", median(refit["average"]), ""])
        for start in ("reference", "mean"):
            ratio = f"{refit[f'{start}_over_average']:g} times averaging"
            rows.append([f"refit from the {start}, {where}", median(refit[start]), ratio])
    if error := found.get("error"):
        off = f"{error['relative_difference_from_float64']:.1e} from float64"
        rows.append(["aggregation error, one site", median(error), off])
    for case in found.get("streaming", ()):
        grown = f"peak memory grows by {case['peak_growth_megabytes']:g} MB"
        each = f"{case['upload_megabytes']:g} MB ({size['streamed_sites']} sites of {size['federation_width']} x {size['federation_width']})"
        rows.append([f"average {case['clients']:,} uploads of {each}", milliseconds(case["seconds"]), grown])
    words = f"Sites of {size['width']:,} x {size['width']:,}, {size['clients']} clients, rank {size['rank']}"
    return f"{markdown(rows)}\n{words}, unless said otherwise; {found['threads']} threads. "


def median(case: dict[str, Any]) -> str:
    return milliseconds(case["median_seconds"])


def growth(found: dict[str, Any]) -> str:
    """Seconds and memory of a round by registered clients."""
    rows: Rows = [["registered clients", *(f"{case['clients']:,}" for case in found["cases"])]]
    for label, key, form in (
        ("clients a round", "clients_a_round", "{:,}"),
        ("a round", "seconds_a_round", "{:.2f} s"),
        ("of it training", "training_seconds_a_round", "{:.2f} s"),
        ("peak memory", "peak_memory_mb", "{:,} MB"),
    ):
        rows.append([label, *(form.format(case[key]) for case in found["cases"])])
    last = " to ".join(f"{case['clients']:,}" for case in found["cases"][-2:])
    return f"{markdown(rows)}\nFrom {last} clients seconds grow as {power(found['growth_exponent_of_seconds_100_to_1000'])}. "


def language(found: dict[str, Any]) -> str:
    """Seconds a client-step and memory, one client against several."""
    rows: Rows = [["clients at a time", "seconds a client-step", "peak memory"]]
    for name, case in found["cases"].items():
        rows.append([name, f"{case['seconds_a_client_step']:.2f}", f"{case['peak_mb']:,.0f} MB"])
    faster, larger = found["stacked_times_as_fast"], found["memory_of_eight_against_one"]
    ratios = "; ".join(f"{name}: {faster[name]:.2f} times as fast in {larger[name]:.1f} times the memory" for name in faster)
    return (
        f"{markdown(rows)}\n{found['clients']} at a time against one, {ratios}. Batch {found['batch']} x {found['tokens']} tokens, "
        f"{found['repeats']} repeats. "
    )


SUITES: dict[str, tuple[Callable[[dict[str, Any]], str], tuple[str, ...]]] = {
    "alignment": (alignment, ("alignment-cpu", "alignment-cuda")),
    "stacked": (stacked, ("stacked-cpu", "stacked-cuda")),
    "step-profile": (step_profile, ("step_profile", "step_profile-cuda")),
    "server": (server, ("server", "server-cuda")),
    "server-step": (server_step, ("server_step", "server_step_svd")),
    "growth": (growth, ("growth",)),
    "language": (language, ("language-cpu", "language-cuda")),
    "peers": (peers, ("peers",)),
    "flower": (flower, ("flower",)),
    "deploy": (deploy, ("deploy",)),
    "scale": (scale, ("scale",)),
}
