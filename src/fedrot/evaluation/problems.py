"""GSM8K and HumanEval: public problems with answers that can be checked."""

from __future__ import annotations

import time
from collections import Counter
from dataclasses import asdict

from fedrot.errors import DataError
from fedrot.evaluation import functional, kshot
from fedrot.evaluation.answers import EXTRACTORS, same_number, strict_match
from fedrot.evaluation.generation import complete
from fedrot.evaluation.options import Options, generation_record
from fedrot.evaluation.place import Loaded, Place
from fedrot.evaluation.plan import Run, Tell
from fedrot.evaluation.results import Result, mean_and_error
from fedrot.evaluation.sandbox import check_confinement

GSM8K = "openai/gsm8k:main"
SHOTS = 5


def gsm8k(place: Place, options: Options) -> Run:  # noqa: ARG001
    """Share of word problems whose number is right, found strictly (`#### 42`) and flexibly (the last number).

    With several samples, the mean over them.

    Raises:
        DataError: no data, too few solved examples, or a reference answer without `#### NUMBER`.
    """
    train, test = kshot.load_solved(options.data.get("gsm8k"), "gsm8k", GSM8K)
    shots = SHOTS if options.k_shot is None else options.k_shot
    rows = options.limited(test, "gsm8k")
    prompts = kshot.prompts(rows, train, shots, options.seed)
    expected = [strict_match(row.answer) for row in rows]
    for number, value in enumerate(expected, start=1):
        if value is None:
            raise DataError(
                f"gsm8k, test split: the answer of row {number} has no '#### NUMBER'; complete it"
            )
    decoding = options.decoding(256)

    def run(loaded: Loaded, tell: Tell) -> Result:
        found = complete(
            loaded.module,
            loaded.tokenizer,
            prompts,
            decoding,
            stops=kshot.STOPS,
            what="gsm8k: the prompt of question",
            progress=tell,
        )
        scores: dict[str, float] = {}
        errors: dict[str, float] = {}
        right = {
            f"exact_match,{name}": [
                [same_number(extract(text), value) for text in texts]
                for texts, value in zip(found.texts, expected, strict=True)
                if value is not None
            ]
            for name, extract in EXTRACTORS.items()
        }
        for name, each in right.items():
            scores[name], errors[name] = mean_and_error([sum(one) / len(one) for one in each])
        return Result(
            task="gsm8k",
            scores=scores,
            standard_errors=errors,
            counts={"examples": len(rows), "generated_tokens": found.tokens},
            settings=generation_record(
                decoding,
                options.limit,
                data=options.data.get("gsm8k", f"hub:{GSM8K}"),
                template="Question: {question}\nAnswer:",
                k_shot=shots,
                seed=options.seed,
                stops=list(kshot.STOPS),
            ),
            seconds=found.seconds,
            tokens_per_second=found.tokens_per_second,
            said=[
                {"prompt": prompt, "completions": texts, "reference": row.answer}
                | {name: each[number] for name, each in right.items()}
                for number, (prompt, texts, row) in enumerate(zip(prompts, found.texts, rows, strict=True))
            ],
        )

    return run


def humaneval(place: Place, options: Options) -> Run:  # noqa: ARG001
    """pass@k, the chance that one of k completions of a function passes its tests; 10 and 100 if sampled so often.

    Raises:
        ConfigError: code may not be run, or cannot be confined here.
        DataError: the package with the problems is not installed.
    """
    problems = options.limited(functional.load_problems(), "humaneval")
    functional.check_allowed(options.allow_code, options.confinement)
    check_confinement(options.confinement)
    decoding = options.decoding(512)

    def run(loaded: Loaded, tell: Tell) -> Result:
        found = complete(
            loaded.module,
            loaded.tokenizer,
            [problem.prompt for problem in problems],
            decoding,
            stops=functional.STOPS,
            what="humaneval: the prompt of problem",
            progress=tell,
        )
        start = time.perf_counter()
        outcomes = functional.run_tests(
            [p.program(text) for p, texts in zip(problems, found.texts, strict=True) for text in texts],
            allow_code=options.allow_code,
            confinement=options.confinement,
            limits=options.limits,
        )
        statuses = [outcome.status for outcome in outcomes]
        n = decoding.samples
        passed = [statuses[first : first + n].count("passed") for first in range(0, len(statuses), n)]
        scores: dict[str, float] = {}
        errors: dict[str, float] = {}
        for k in (1, 10, 100):
            if k <= n:
                each = [functional.pass_at_k(n, count, k) for count in passed]
                scores[f"pass@{k}"], errors[f"pass@{k}"] = mean_and_error(each)
        counted = Counter(statuses)
        return Result(
            task="humaneval",
            scores=scores,
            standard_errors=errors,
            counts={
                "problems": len(problems),
                **{status: counted[status] for status in ("passed", "failed", "timed out")},
                "generated_tokens": found.tokens,
            },
            settings=generation_record(
                decoding,
                options.limit,
                data=f"{functional.PACKAGE} {functional.VERSION}",
                template="{prompt}",
                stops=list(functional.STOPS),
                confinement=options.confinement,
                limits=asdict(options.limits),
            ),
            seconds=found.seconds + time.perf_counter() - start,
            tokens_per_second=found.tokens_per_second,
            said=[
                {"problem": problem.name, "prompt": problem.prompt, "completions": texts}
                | {"outcomes": [[one.status, one.detail] for one in outcomes[number * n : (number + 1) * n]]}
                for number, (problem, texts) in enumerate(zip(problems, found.texts, strict=True))
            ],
        )

    return run
