"""`fedrot deploy ...`: a federation across machines, on Flower. Heavy imports wait until a command runs."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from fedrot.errors import ConfigError
from fedrot.terminal import err, out

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Run a recipe across machines: certificates, server, nodes, runs. Needs the extra `flower`.",
)

ServerFolder = Annotated[
    Path, typer.Argument(metavar="DIR", help="The server's folder, or the one around it.")
]


@app.command()
def init(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write; must be new or empty.")],
    nodes: Annotated[int, typer.Option("--nodes", help="How many nodes.")],
    host: Annotated[
        list[str] | None,
        typer.Option(
            "--host", help="Name or address by which nodes reach the server; repeatable, the first is used."
        ),
    ] = None,
    port: Annotated[int, typer.Option("--port", help="Of the server.")] = 8000,
    days: Annotated[int, typer.Option("--days", help="Until the certificates expire.")] = 365,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="Deal its clients to the nodes; otherwise one client each."),
    ] = None,
    own_keys: Annotated[
        bool, typer.Option("--own-keys", help="Make no node keys: each node makes its own with keygen.")
    ] = False,
) -> None:
    """Write certificates, node keys, settings and services of a new federation."""
    _need_flower()
    from fedrot.engines.flower.deploy.init import init as write

    folders = write(
        directory, nodes, hosts=host or (), port=port, days=days, recipe=recipe, own_keys=own_keys
    )
    out.print(f"server: {escape(str(directory / 'server'))}", soft_wrap=True)
    for folder in folders:
        out.print(f"node:   {escape(str(folder))}", soft_wrap=True)
    if not host:
        out.print("no --host was given: the server listens on this machine's loopback only", soft_wrap=True)
    out.print(f"next:   {escape(str(directory / 'README.md'))}", soft_wrap=True)


@app.command()
def keygen(directory: Annotated[Path, typer.Argument(metavar="DIR", help="A node's folder.")]) -> None:
    """Make a node's key pair on the node itself; only the public key travels."""
    _need_flower()
    from fedrot.engines.flower.deploy.init import keygen as make

    public = make(directory)
    out.print(
        f"copy {escape(str(public))} to the server's keys/{directory.absolute().name}.pub", soft_wrap=True
    )


@app.command()
def renew(
    directory: ServerFolder,
    days: Annotated[int, typer.Option("--days", help="Until the new certificates expire.")] = 365,
    host: Annotated[
        list[str] | None,
        typer.Option("--host", help="Names in the new certificate, instead of the former ones."),
    ] = None,
) -> None:
    """Replace the server's certificates; every node needs the new ca.crt."""
    _need_flower()
    from fedrot.engines.flower.deploy.init import renew as replace

    ca = replace(directory, days, host or ())
    out.print(f"copy {escape(str(ca))} to every node, then start the server again", soft_wrap=True)


@app.command()
def superlink(directory: ServerFolder) -> None:
    """Run the server until it is stopped."""
    _need_flower()
    from fedrot.engines.flower.deploy.superlink import run_superlink

    run_superlink(directory)


@app.command()
def supernode(directory: Annotated[Path, typer.Argument(metavar="DIR", help="The node's folder.")]) -> None:
    """Run a node until it is stopped; base model and data stay loaded from round to round."""
    _need_flower()
    from fedrot.engines.flower.deploy.supernode import run_supernode

    run_supernode(directory)


@app.command()
def run(
    recipe: Annotated[
        Path | None, typer.Argument(help="A TOML recipe; may be left out with --resume.")
    ] = None,
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="The server's folder.")] = Path(
        "server"
    ),
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="SECTION.KEY=VALUE", help="Override one key; repeatable."),
    ] = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Run directory on the server; must be new unless --resume.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out.")] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Submit it and leave.")] = False,
) -> None:
    """Run a recipe on the nodes of a running server. Interrupting stops the run; it can be resumed."""
    _need_flower()
    from fedrot.engines.flower.deploy.control import control
    from fedrot.engines.flower.deploy.layout import load_server
    from fedrot.engines.flower.deploy.run import follow, submit
    from fedrot.outcome import print_outcome
    from fedrot.progress import Display

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    server = load_server(directory)
    with control(server, wait=10.0) as interface:

        def note(text: str) -> None:
            err.print(f"note: {escape(text)}", soft_wrap=True)

        submitted = submit(interface, recipe, out=out_dir, resume=resume, overrides=set_ or (), told=note)
        out.print(f"run {submitted.id} in {escape(str(submitted.directory.path))}", soft_wrap=True)
        if detach:
            return
        display = Display(out, err)
        display.rounds = submitted.config.federation.rounds

        def finished(record: Any) -> None:
            out.print(display.line(record), soft_wrap=True)

        try:
            follow(
                interface,
                server,
                submitted,
                told=lambda line: err.print(escape(line), soft_wrap=True),
                finished=finished,
            )
        except KeyboardInterrupt:
            interface.stop(submitted.id)
            err.print(
                f"interrupted and stopped; finished rounds are kept: continue with `fedrot deploy run --dir "
                f"{directory} --resume --out {submitted.directory.path}`",
                soft_wrap=True,
            )
            raise typer.Exit(130) from None
        print_outcome(
            out, submitted.directory.path, json.loads(submitted.directory.summary.read_text("utf-8"))
        )


@app.command()
def status(
    directory: ServerFolder,
    as_json: Annotated[bool, typer.Option("--json", help="For programs.")] = False,
) -> None:
    """Say which nodes are online, and how the runs stand."""
    _need_flower()
    from dataclasses import asdict

    from fedrot.engines.flower.deploy.control import control
    from fedrot.engines.flower.deploy.layout import load_server

    with control(load_server(directory)) as interface:
        nodes, runs = interface.nodes(), interface.runs()
    if as_json:
        shown = {
            "nodes": [{"id": node.id, "name": node.name, "status": node.status} for node in nodes],
            "runs": [asdict(item) for item in runs],
        }
        print(json.dumps(shown, indent=2))
        return
    table = Table("node", "status", box=None, pad_edge=False)
    for node in nodes:
        table.add_row(escape(node.name), node.status)
    out.print(table)
    table = Table("run", "status", "directory", "", box=None, pad_edge=False)
    for item in runs:
        table.add_row(str(item.id), item.outcome or item.status, escape(item.out), escape(item.details))
    out.print(table)


@app.command()
def stop(
    number: Annotated[int, typer.Argument(metavar="RUN", help="Number of the run, see status.")],
    directory: Annotated[Path, typer.Option("--dir", metavar="DIR", help="The server's folder.")] = Path(
        "server"
    ),
) -> None:
    """Stop a run. Finished rounds are kept, and it can be resumed."""
    _need_flower()
    from fedrot.engines.flower.deploy.control import control
    from fedrot.engines.flower.deploy.layout import load_server

    with control(load_server(directory)) as interface:
        if not interface.stop(number):
            raise ConfigError(f"run {number} is not running; see `fedrot deploy status {directory}`")


@app.command()
def kept(
    directory: Annotated[Path, typer.Argument(metavar="DIR", help="The node's folder.")],
    delete: Annotated[
        list[str] | None,
        typer.Option("--delete", metavar="RUN", help="Delete what was kept of this run; repeatable."),
    ] = None,
) -> None:
    """List what a node's clients kept of earlier runs (methods such as fedsa), and delete what is not needed."""
    _need_flower()
    from fedrot.engines.flower.deploy.kept_runs import delete_runs, kept_runs
    from fedrot.engines.flower.node import load_node

    folder = load_node(directory).state / "kept"
    delete_runs(folder, delete or ())
    table = Table(box=None, pad_edge=False)
    table.add_column("run", min_width=32, no_wrap=True)  # to be copied whole
    for title in ("clients", "last round", "written", "MB", "own adapters"):
        table.add_column(title)
    for run in kept_runs(folder):
        clients, written = ", ".join(map(str, run.clients)), run.written.strftime("%Y-%m-%d %H:%M")
        adapters = "yes" if run.adapters else "no"
        table.add_row(run.name, clients, str(run.round), written, f"{run.size / 1e6:.1f}", adapters)
    out.print(table if table.row_count else "nothing is kept")


def _need_flower() -> None:
    import importlib.util

    if importlib.util.find_spec("flwr") is None:
        raise ConfigError("`fedrot deploy` needs Flower; install it with: pip install 'fedrot[flower]'")
