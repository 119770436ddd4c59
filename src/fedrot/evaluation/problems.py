"""GSM8K and HumanEval: public problems with answers that can be checked."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict
from decimal import Decimal

from fedrot.errors import DataError
from fedrot.evaluation import functional, kshot
from fedrot.evaluation.answers import EXTRACTORS, same_number, strict_match
from fedrot.evaluation.asking import Asking, Judged, Texts, share
from fedrot.evaluation.options import Options
from fedrot.evaluation.place import Place
from fedrot.evaluation.plan import Run
from fedrot.evaluation.sandbox import check_confinement

GSM8K = "openai/gsm8k:main"
SHOTS = 5
TRIES = (1, 10, 100)


def gsm8k(place: Place, options: Options) -> Run:  # noqa: ARG001
    """Share of word problems whose number is right, found strictly (`#### 42`) and flexibly (the last number).

    With several samples, the mean over them.

    Raises:
        DataError: no data, too few solved examples, or a reference answer without `#### NUMBER`.
    """
    path = options.data.get("gsm8k")
    train, test = kshot.load_solved(path, "gsm8k", GSM8K)
    shots = SHOTS if options.k_shot is None else options.k_shot
    rows = options.limited(test, "gsm8k")
    prompts = kshot.prompts(rows, train, shots, options.seed)
    expected = [_number(row.answer, number) for number, row in enumerate(rows, start=1)]

    def judge(texts: Texts) -> Judged:
        figures = [
            {
                f"exact_match,{name}": share([same_number(extract(text), value) for text in each])
                for name, extract in EXTRACTORS.items()
            }
            for each, value in zip(texts, expected, strict=True)
        ]
        return Judged(figures, [{"reference": row.answer} for row in rows])

    return Asking(
        "gsm8k",
        lambda _: (prompts, True),
        judge,
        options.decoding(256),
        settings={
            "data": path or f"hub:{GSM8K}",
            "template": "Question: {question}\nAnswer:",
            "k_shot": shots,
            "seed": options.seed,
            "limit": options.limit,
        },
        stops=kshot.STOPS,
        item="question",
    ).run


def _number(answer: str, row: int) -> Decimal:
    value = strict_match(answer)
    if value is None:
        raise DataError(f"gsm8k, test split: the answer of row {row} has no '#### NUMBER'; complete it")
    return value


def humaneval(place: Place, options: Options) -> Run:  # noqa: ARG001
    """pass@k, the chance that one of k completions of a function passes its tests; 10 and 100 if sampled so often.

    Raises:
        ConfigError: code may not be run, or cannot be confined here.
        DataError: the package with the problems is not installed.
    """
    problems = options.limited(functional.load_problems(), "humaneval")
    functional.check_allowed(options.allow_code, options.confinement)
    check_confinement(options.confinement)
    n = options.samples

    def judge(texts: Texts) -> Judged:
        outcomes = functional.run_tests(
            [problem.program(text) for problem, each in zip(problems, texts, strict=True) for text in each],
            allow_code=options.allow_code,
            confinement=options.confinement,
            limits=options.limits,
        )
        by_problem = [outcomes[first : first + n] for first in range(0, len(outcomes), n)]
        passed = [sum(one.status == "passed" for one in each) for each in by_problem]
        counted = Counter(one.status for one in outcomes)
        return Judged(
            [{f"pass@{k}": functional.pass_at_k(n, count, k) for k in TRIES if k <= n} for count in passed],
            [
                {"problem": problem.name, "outcomes": [[one.status, one.detail] for one in each]}
                for problem, each in zip(problems, by_problem, strict=True)
            ],
            {status: counted[status] for status in ("passed", "failed", "timed out")},
        )

    return Asking(
        "humaneval",
        lambda _: ([problem.prompt for problem in problems], True),
        judge,
        options.decoding(512),
        settings={
            "data": f"{functional.PACKAGE} {functional.VERSION}",
            "template": "{prompt}",
            "limit": options.limit,
            "confinement": options.confinement,
            "limits": asdict(options.limits),
        },
        stops=functional.STOPS,
        item="problem",
    ).run
