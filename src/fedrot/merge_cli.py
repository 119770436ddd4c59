"""`fedrot merge`: its arguments. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from fedrot.terminal import err, out, reported_errors

EXAMPLES = """[bold]Examples[/bold]

  fedrot merge runs/a/adapter runs/b/adapter --method fedrot --out merged
  fedrot merge a b c --method fedit --weights 100,250,50 --out merged
  fedrot merge a b --method fedrot --reference start --set method.strength=0.5 --out merged
  fedrot merge a --rank 8 --out smaller
"""


def merge(
    adapters: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="PEFT adapters of one base model.")
    ],
    out_dir: Annotated[Path, typer.Option("--out", help="Where to write; must be new or empty.")],
    method: Annotated[str, typer.Option("--method", help="See `fedrot methods`.")] = "fedit",
    reference: Annotated[
        Path | None,
        typer.Option("--reference", help="The adapter they were trained from, or whose frame to adopt."),
    ] = None,
    weights: Annotated[
        str | None, typer.Option("--weights", metavar="1,2,...", help="One each; all alike unless given.")
    ] = None,
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="method.KEY=VALUE", help="An option of the method; may be given several times."
        ),
    ] = None,
    balance: Annotated[
        bool | None,
        typer.Option(
            "--balance/--as-trained", help="Write each in its SVD form first; a consensus does so by default."
        ),
    ] = None,
    rank: Annotated[
        int | None, typer.Option("--rank", help="Truncate the result to this rank, optimally.")
    ] = None,
    seed: Annotated[int, typer.Option("--seed", help="For methods that draw random numbers.")] = 0,
) -> None:
    """Merge PEFT adapters trained anywhere, as one round of any method; no base model is needed."""
    from fedrot.engines.merge import merge as merge_adapters
    from fedrot.engines.merge_words import method_options, numbers, report_lines

    with reported_errors():
        result = merge_adapters(
            adapters,
            method,
            method_options(set_ or ()),
            reference=reference,
            weights=None if weights is None else numbers(weights),
            balance=balance,
            rank=rank,
            out=out_dir,
            seed=seed,
        )
        for told in result.warnings:
            err.print(f"[bold yellow]warning:[/] {escape(told)}", soft_wrap=True)
        for line in report_lines(result):
            out.print(escape(line), soft_wrap=True)
