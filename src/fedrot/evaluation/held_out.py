"""Evaluators on a run's own test split, or on a file of the same form: perplexity, exact match, ROUGE."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fedrot.blocks import TokenHead
from fedrot.config import TaskConfig
from fedrot.core.token_loss import TokenScores
from fedrot.errors import ConfigError, DataError, ModelError
from fedrot.evaluation.answers import EXTRACTORS, exact_match, same_number, strict_match
from fedrot.evaluation.asking import Asking, Judged, Texts
from fedrot.evaluation.options import Options
from fedrot.evaluation.place import Loaded, Place
from fedrot.evaluation.plan import Run, Tell
from fedrot.evaluation.results import Result
from fedrot.evaluation.rouge import rouge, words
from fedrot.tasks.batch import Batch, batches_by_length
from fedrot.tasks.dialogues import messages_of
from fedrot.tasks.fitting import fitting_rows
from fedrot.tasks.generate import Generate
from fedrot.tasks.named import named
from fedrot.tasks.own import NODES
from fedrot.tasks.templates import prompt_text

if TYPE_CHECKING:
    from datasets import Dataset

Score = Callable[[str, str], Mapping[str, float]]
"""Figures of one completion, from itself and the reference."""


@dataclass(frozen=True)
class HeldOut:
    """Conversations that end in the answer to be given, and how their prompts are written."""

    config: TaskConfig
    data: Dataset

    def record(self) -> dict[str, Any]:
        """For the result."""
        return {"data": self.config.data, "template": self.config.template, "system": self.config.system}


def held_out(task: str, place: Place, options: Options) -> HeldOut:
    """The test split of the run, as it was during the run, or all rows of `--data TASK=FILE`.

    Raises:
        ConfigError: neither a run nor data, or a template for a run, which has its own.
        DataError: unusable data, or none.
    """
    own, path = place.config, options.data.get(task)
    if own is not None and options.template is not None:
        raise ConfigError(
            f"--template {options.template!r}: the run has its own, {own.task.template!r}; leave it out"
        )
    if path is not None:
        if own is not None:
            config = own.task.model_copy(update={"data": path, "test_data": None})
        else:
            config = TaskConfig(
                name="generate", data=path, template=options.template or "auto", max_length=512
            )
        data = Generate(config).load_own((), f"--data {task}")
    elif own is None:
        raise ConfigError(
            f"{task}: '{place.directory}' is no run and so has no test split; give examples with --data {task}=FILE"
        )
    else:
        config, objective = own.task, Generate(own.task)
        nodes = config.data == NODES
        data = (objective.load_held_out(own.seed) if nodes else objective.load(own.seed)).test
    if len(data) == 0:
        raise DataError(f"{task}: its test split is empty; give it examples with --data {task}=FILE")
    return HeldOut(config, data.select(range(min(len(data), options.limit or len(data)))))


def perplexity(place: Place, options: Options) -> Run:
    """Perplexity of the reference answers, and the share of their tokens that were likeliest.

    What is longer than `task.max_length` is cut or dropped as in training.

    Raises:
        ConfigError, DataError: as `held_out`.
    """
    split = held_out("perplexity", place, options)

    def run(loaded: Loaded, tell: Tell) -> Result:
        start, objective = time.perf_counter(), Generate(split.config)
        asked = loaded.tokenizer, loaded.base.opening
        data, _ = fitting_rows(objective, split.data, "perplexity", "test", *asked)
        with named("perplexity", data):
            encoded = objective.encode(data, *asked).to(loaded.base.device)
        forward = Plain(loaded)
        rows: list[Tensor] = []
        observed: list[Tensor] = []
        with torch.no_grad():
            for chunk in batches_by_length(encoded, options.batch_size):
                observed.append(objective.observe(forward, encoded.unpacked(chunk), None))
                rows.append(chunk)
                tell(sum(map(len, rows)), len(encoded))
        scores = objective.metrics(torch.cat(observed), encoded)
        return Result(
            task="perplexity",
            scores=scores,
            counts={
                "examples": len(encoded),
                "answer_tokens": int(encoded.counts.sum()),
                "truncated": encoded.truncated,
                "dropped": len(split.data) - len(data),
            },
            settings={**split.record(), "max_length": split.config.max_length, "limit": options.limit},
            seconds=time.perf_counter() - start,
        )

    return run


class Plain:
    """A language model without stacked clients, as tasks ask it."""

    def __init__(self, loaded: Loaded) -> None:
        name = loaded.base.output_layer
        if name is None:
            raise ModelError(f"'{loaded.base.path}': it has no output layer; expected a language model")
        self.head = TokenHead(loaded.base.module, name)

    def token_scores(self, batch: Batch, hidden: Tensor | None = None) -> TokenScores:  # noqa: ARG002
        """Of every token that the batch asks for."""
        return self.head.scores(batch)


def exact(place: Place, options: Options) -> Run:
    """Share of completions that are the reference, up to case, white space and a full stop.

    Where every reference ends as GSM8K's do, in `#### 42`, also the shares whose number is right.

    Raises:
        ConfigError, DataError: as `held_out`.
    """
    split = held_out("exact-match", place, options)
    numbers = [strict_match(messages[-1]["content"]) for messages in messages_of(split.data)]
    marked = all(number is not None for number in numbers)

    def score(text: str, reference: str) -> dict[str, float]:
        found = {"exact_match": float(exact_match(text, reference))}
        expected = strict_match(reference) if marked else None
        if expected is not None:
            for name, extract in EXTRACTORS.items():
                found[f"exact_match,{name}"] = float(same_number(extract(text), expected))
        return found

    return _compared("exact-match", split, options, score)


def rouge_scores(place: Place, options: Options) -> Run:
    """ROUGE-1, ROUGE-2 and ROUGE-L, F1, mean over the examples.

    Raises:
        ConfigError, DataError: as `held_out`; also a reference without a word in ASCII, which would score 0.
    """
    split = held_out("rouge", place, options)
    for number, messages in enumerate(messages_of(split.data), start=1):
        if not words(messages[-1]["content"]):
            raise DataError(
                f"rouge: the reference of row {number} has no words of ASCII letters or digits, which is all that "
                "ROUGE counts; use exact-match, or remove the row"
            )
    return _compared("rouge", split, options, rouge)


def _compared(task: str, split: HeldOut, options: Options, score: Score) -> Run:
    """Complete every prompt and score each completion against its reference."""
    conversations = messages_of(split.data)
    references = [messages[-1]["content"] for messages in conversations]

    def prompts(tokenizer: Any) -> tuple[list[str], bool]:
        written = [prompt_text(each, split.config.template, tokenizer) for each in conversations]
        return [text for text, _ in written], written[0][1]

    def judge(texts: Texts) -> Judged:
        figures = [
            _mean([score(text, reference) for text in each])
            for each, reference in zip(texts, references, strict=True)
        ]
        return Judged(figures, [{"reference": reference} for reference in references])

    return Asking(task, prompts, judge, options.decoding(128), {**split.record(), "limit": options.limit}).run


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(one[name] for one in scores) / len(scores) for name in scores[0]}
