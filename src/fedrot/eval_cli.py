"""`fedrot eval`: its arguments. Heavy imports wait until it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fedrot.terminal import err, out

EXAMPLES = """[bold]Examples[/bold]

  fedrot eval runs/mine --tasks perplexity,rouge
  fedrot eval runs/mine --tasks humaneval --run-code --samples 10 --temperature 0.2
  fedrot eval runs/mine/adapter --tasks gsm8k --data gsm8k=data/gsm8k --k-shot 5 --limit 200
  fedrot eval runs/mine --tasks hellaswag,arc_easy --harness lm-eval
"""


def evaluate(
    directory: Annotated[
        Path, typer.Argument(metavar="DIR", help="A run directory, an exported adapter, or a merged model.")
    ],
    tasks: Annotated[
        str,
        typer.Option(
            metavar="NAME,...", help="perplexity, exact-match, rouge, gsm8k, humaneval, or tasks of lm-eval."
        ),
    ],
    limit: Annotated[int | None, typer.Option(help="Only the first so many examples of each task.")] = None,
    k_shot: Annotated[
        int | None, typer.Option("--k-shot", help="Solved examples before each question; gsm8k: 5.")
    ] = None,
    data: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TASK=PATH", help="A task's data: a JSON Lines file, or for gsm8k a folder; repeatable."
        ),
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="Prompt template for --data without a run; as task.template.")
    ] = None,
    run_code: Annotated[
        bool, typer.Option("--run-code", help="Consent to running generated code, confined.")
    ] = False,
    confinement: Annotated[
        str,
        typer.Option(help="Of generated code: namespaces, or limits-only (network and files stay in reach)."),
    ] = "namespaces",
    samples: Annotated[int, typer.Option(help="Completions of each prompt; needs --temperature.")] = 1,
    temperature: Annotated[
        float | None, typer.Option(help="Draw tokens at this temperature; greedy unless given.")
    ] = None,
    top_p: Annotated[float | None, typer.Option(help="Draw from the likeliest tokens of this mass.")] = None,
    top_k: Annotated[int | None, typer.Option(help="Draw from so many likeliest tokens.")] = None,
    seed: Annotated[int, typer.Option(help="For drawing tokens and for choosing solved examples.")] = 0,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(help="Of each completion; gsm8k 256, humaneval 512, exact-match and rouge 128."),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Completions made at a time.")] = 16,
    base: Annotated[str | None, typer.Option(metavar="PATH", help="The base model, if it has moved.")] = None,
    precision: Annotated[
        str | None, typer.Option(help="float32 or bfloat16; that of the run unless given, else float32.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    harness: Annotated[str | None, typer.Option(help="`lm-eval` runs every task in it.")] = None,
    out_file: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Add results to this file; default DIR/eval.json."),
    ] = None,
    completions: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Add every prompt and what the model said to this JSON Lines file."
        ),
    ] = None,
) -> None:
    """Evaluate a fine-tuned language model by generation: greedy unless told otherwise, every setting recorded."""
    from fedrot.errors import ConfigError
    from fedrot.evaluation.command import run_command
    from fedrot.evaluation.options import Options, parse_data
    from fedrot.model.generation import Sampling

    if harness not in (None, "lm-eval"):
        raise ConfigError(
            f"--harness {harness}: expected lm-eval, or leave it out for fedrot's own evaluators"
        )
    if precision not in (None, "float32", "bfloat16"):
        raise ConfigError(f"--precision {precision}: expected float32 or bfloat16")
    if temperature is None and (top_p is not None or top_k is not None):
        raise ConfigError(
            "--top-p and --top-k choose among drawn tokens; give --temperature too, or leave them out"
        )
    sampling = None
    if temperature is not None:
        sampling = Sampling(temperature, 1.0 if top_p is None else top_p, top_k, seed)
    options = Options(
        limit=limit,
        k_shot=k_shot,
        data=parse_data(data or ()),
        template=template,
        sampling=sampling,
        samples=samples,
        max_new_tokens=max_new_tokens,
        batch_size=batch_size,
        seed=seed,
        allow_code=run_code,
        confinement=confinement,  # pyright: ignore[reportArgumentType]  # refused by name where it is used
    )
    run_command(
        directory,
        [task.strip() for task in tasks.split(",") if task.strip()],
        options,
        base=base,
        precision=precision,
        device=device,
        harness_only=harness is not None,
        out=out_file,
        completions=completions,
        console=out,
        errors=err,
    )
