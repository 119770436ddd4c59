"""Conversations as text, and which of its characters are answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from fedrot.errors import ConfigError

Message = dict[str, str]

NAMED = {
    "plain": "{prompt}",
    "alpaca": (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.\n\n"
        "### Instruction:\n{prompt}\n\n### Response:\n"
    ),
}
"""Prompt templates with a name; the answer and the tokenizer's end token follow."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text.

    Attributes:
        answers: character spans to be learned, each with the mark that ends the turn.
        cuttable: the span of the longest user message, from which an overlong conversation may lose tokens.
        special: whether the tokenizer is to add its own first token.
    """

    text: str
    answers: tuple[tuple[int, int], ...]
    cuttable: tuple[int, int]
    special: bool


def renderer(template: str, tokenizer: Any, every_answer: bool) -> Callable[[Sequence[Message]], Rendered]:
    """How to write conversations down.

    Args:
        template: `auto` (the tokenizer's chat template if it has one, else `plain`), `chat`, a name of `NAMED`, or a
            text with `{prompt}` in it, and `{system}` if it likes.
        tokenizer: of the base model.
        every_answer: learn every answer of a conversation, or the last one only.

    Raises:
        ConfigError: `chat` with a tokenizer that has no chat template, or a text without `{prompt}`.
    """
    has_chat = getattr(tokenizer, "chat_template", None) is not None
    if template == "chat" and not has_chat:
        raise ConfigError(
            "task.template = 'chat': the tokenizer has no chat template; set task.template = 'plain', 'alpaca' or a "
            "text with {prompt} in it"
        )
    if template == "chat" or (template == "auto" and has_chat):
        return lambda messages: _chat(messages, tokenizer, every_answer)
    text = NAMED["plain"] if template == "auto" else NAMED.get(template, template)
    if "{prompt}" not in text:
        raise ConfigError(
            f"task.template = {template!r}: expected 'auto', 'chat', {', '.join(map(repr, NAMED))}, or a text with "
            "{prompt} in it"
        )
    if tokenizer.eos_token is None:
        raise ConfigError(
            f"task.template = {template!r}: the tokenizer has no end token to close an answer with; set one and save "
            "it again"
        )
    return lambda messages: _single(messages, text, tokenizer.eos_token)


def prompt_text(messages: Sequence[Message], template: str, tokenizer: Any) -> tuple[str, bool]:
    """What a model is given to continue: the conversation without its last answer; and `Rendered.special`."""
    rendered = renderer(template, tokenizer, every_answer=False)(messages)
    return rendered.text[: rendered.answers[-1][0]], rendered.special


def _chat(messages: Sequence[Message], tokenizer: Any, every_answer: bool) -> Rendered:
    def written(count: int, ask: bool) -> str:
        return str(
            tokenizer.apply_chat_template(list(messages[:count]), tokenize=False, add_generation_prompt=ask)
        )

    text = written(len(messages), ask=False)
    # What is said before the first user message answers nothing; templates may refuse to write what comes before it.
    asked = next(index for index, message in enumerate(messages) if message["role"] == "user")
    turns = [index for index in range(asked, len(messages)) if messages[index]["role"] == "assistant"]
    answers: list[tuple[int, int]] = []
    for index in turns if every_answer else turns[-1:]:
        before, after = written(index, ask=True), written(index + 1, ask=False).rstrip()
        if not (text.startswith(before) and text.startswith(after)):
            raise ConfigError(
                "task.template: the tokenizer's chat template writes earlier turns otherwise once later ones follow, "
                "so that answers cannot be told apart; set task.answers = 'last', or task.template = 'plain' or a text "
                "with {prompt} in it"
            )
        answers.append((len(before), len(after)))
    return Rendered(text, tuple(answers), _longest_user(messages, text), special=False)


def _single(messages: Sequence[Message], template: str, end: str) -> Rendered:
    users = [message for message in messages if message["role"] == "user"]
    if len(users) != 1 or messages[-1]["role"] != "assistant" or len(messages) > 3:
        raise ConfigError(
            f"task.template: a conversation of {len(messages)} messages needs the tokenizer's chat template "
            "(task.template = 'chat'); a text with {prompt} takes one user message and one answer"
        )
    system = messages[0]["content"] if messages[0]["role"] == "system" else ""
    if system and "{system}" not in template:
        raise ConfigError(
            "task.template: there is a system message (task.system, or in the data) and no {system} in the template; "
            "add it, or leave the message out"
        )
    before, _, after = template.partition("{prompt}")
    before, after = before.replace("{system}", system), after.replace("{system}", system)
    prompt = users[0]["content"]
    head = before + prompt + after
    text = head + messages[-1]["content"] + end
    return Rendered(text, ((len(head), len(text)),), (len(before), len(before) + len(prompt)), special=True)


def _longest_user(messages: Sequence[Message], text: str) -> tuple[int, int]:
    """Where the longest user message lies, looked for from the end: a system message may hold the same words."""
    sizes = [len(message["content"]) if message["role"] == "user" else -1 for message in messages]
    longest, stop = sizes.index(max(sizes)), len(text)
    for number in range(len(messages) - 1, longest - 1, -1):
        content = messages[number]["content"].strip()
        start = text.rfind(content, 0, stop)
        if number == longest and start >= 0:
            return start, start + len(content)
        stop = start if start >= 0 else stop  # a template may leave parts of an answer out
    return 0, 0
