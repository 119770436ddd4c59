"""`[task]` of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from fedrot.config.section import Section


class TaskConfig(Section):
    """What is learned, from which data."""

    name: Literal["classify", "generate", "image"] = "classify"
    """`classify`: a class for every text. `generate`: answers to prompts. `image`: a class for every image."""
    data: str
    """Of `classify`: `tweets`, `bbc`, `newsgroups`, `newsgroup-pairs`, `reuters-r8`, `reuters-r52`, `glue:TASK`. Of
    `generate`: `bbc-headlines`, `python-functions`. Of `image`: `digits`, or a folder with one folder for each class.
    Of all: `hub:ID`, a file (CSV, JSONL, parquet), or `nodes`: every node of a deployed federation has training data of
    its own, and the server evaluates on `test_data`."""
    test_data: str | None = None
    labels: list[str] | None = None
    """Names of the classes, where `data = "nodes"`: their order is that of the class numbers. Unset, the labels that
    `test_data` has."""
    text: str = "text"
    text_pair: str | None = None
    label: str = "label"
    prompt: str | None = None
    """Of `generate`: the column with the prompt. Unset, `messages`, or `instruction` (with `input`) and `output`,
    `prompt` and `completion` or `response`, `question` and `answer`, whichever the data has."""
    response: str | None = None
    """Of `generate`: the column with the answer."""
    system: str | None = None
    """Of `generate`: a system message for conversations that have none."""
    template: str = "auto"
    """Of `generate`: `chat` (the tokenizer's chat template), `plain` (prompt, answer, end token), `alpaca`, or a text
    with `{prompt}` in it. `auto` is `chat` where the tokenizer has one, else `plain`."""
    answers: Literal["all", "last"] = "all"
    """Of `generate`: learn every answer of a conversation, or the last one only."""
    overlong: Literal["cut-end", "cut-start", "cut-answer", "drop", "error"] = "cut-end"
    """Of `generate`: what a conversation of more than `max_length` tokens loses: the end or the start of its longest
    user message, or the end of its answer; or nothing, and it is left out and counted, or an error."""
    packing: bool = False
    """Of `generate`: lay several short examples of a client's batch in one row of up to `max_length` tokens. Attention
    stays within each, so that the numbers are the same and only padding is saved."""
    image: str = "image"
    """Of `image`: the column with the image: its bytes, or a path that starts in the table's folder."""
    image_limit_mb: int = Field(default=4096, gt=0)
    """Of `image`: refuse a split whose images would take more than so many MiB, one byte for each of their numbers."""
    max_length: int = Field(default=128, gt=0)
    test_fraction: float = Field(default=0.1, gt=0, lt=1)
    validation_fraction: float = Field(default=0.1, ge=0, lt=1)
    max_train: int | None = Field(default=None, gt=0)
    max_test: int | None = Field(default=None, gt=0)
    max_validation: int | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _keys_of_the_task(self) -> TaskConfig:
        """Refuse a key that the task does not read; its default may stand there, as in a resolved recipe."""
        own = {
            ("classify",): ("text", "text_pair"),
            ("classify", "image"): ("label", "labels"),
            ("generate",): ("prompt", "response", "system", "template", "answers", "overlong", "packing"),
            ("classify", "generate"): ("max_length",),
            ("image",): ("image", "image_limit_mb"),
        }
        for tasks, keys in own.items():
            for key in keys:
                if self.name not in tasks and getattr(self, key) != type(self).model_fields[key].default:
                    who = " and ".join(map(repr, tasks))
                    only = f"the task {who} reads" if len(tasks) == 1 else f"the tasks {who} read"
                    raise ValueError(f"{key}: only {only} it, and task.name = {self.name!r}")
        return self
