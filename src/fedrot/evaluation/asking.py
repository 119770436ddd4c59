"""What all tasks that generate have in common: ask, judge every example, take means."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedrot.evaluation.generation import Decoding, complete
from fedrot.evaluation.place import Loaded
from fedrot.evaluation.plan import Tell
from fedrot.evaluation.results import Result, mean_and_error

Texts = Sequence[Sequence[str]]
"""The completions of every example."""

Prompts = Callable[[Any], tuple[list[str], bool]]
"""From a tokenizer the prompts, and whether the tokenizer is to add its own first token."""


@dataclass(frozen=True)
class Judged:
    """What was made of the completions.

    Attributes:
        figures: of each example, alike in their names; the scores are their means.
        details: of each example, to be kept beside its completions.
        counts: of all together.
    """

    figures: Sequence[Mapping[str, float]]
    details: Sequence[Mapping[str, Any]]
    counts: Mapping[str, int] = field(default_factory=dict[str, int])


@dataclass(frozen=True)
class Asking:
    """A task that generates, made ready.

    Attributes:
        task: its name.
        prompts: how its prompts are written.
        judge: called with the completions.
        decoding: how they are made.
        settings: what else the scores depend on, for the result.
        stops: strings before which completions are cut.
        item: what an example is called in messages.
    """

    task: str
    prompts: Prompts
    judge: Callable[[Texts], Judged]
    decoding: Decoding
    settings: Mapping[str, Any]
    stops: Sequence[str] = ()
    item: str = "row"

    def run(self, loaded: Loaded, tell: Tell) -> Result:
        """Ask the model and judge what it says. Seconds include the judging, tokens a second do not.

        Raises:
            DataError: a prompt that does not fit the model's context.
        """
        prompts, special = self.prompts(loaded.tokenizer)
        found = complete(
            loaded.module,
            loaded.tokenizer,
            prompts,
            self.decoding,
            stops=self.stops,
            special=special,
            what=f"{self.task}: the prompt of {self.item}",
            progress=tell,
        )
        start = time.perf_counter()
        judged = self.judge(found.texts)
        names = judged.figures[0]
        means = {name: mean_and_error([one[name] for one in judged.figures]) for name in names}
        return Result(
            task=self.task,
            scores={name: mean for name, (mean, _) in means.items()},
            standard_errors={name: error for name, (_, error) in means.items()},
            counts={"examples": len(prompts), "generated_tokens": found.tokens, **judged.counts},
            settings={**self.settings, "stops": list(self.stops), **self.decoding.record()},
            seconds=found.seconds + time.perf_counter() - start,
            tokens_per_second=found.tokens_per_second,
            said=[
                {"prompt": prompt, "completions": texts, **detail, **figures}
                for prompt, texts, detail, figures in zip(
                    prompts, found.texts, judged.details, judged.figures, strict=True
                )
            ],
        )


def share(right: Sequence[bool]) -> float:
    """Of an example's completions, how many are right."""
    return sum(right) / len(right)
