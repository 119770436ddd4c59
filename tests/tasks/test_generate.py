"""Conversations: what is read of a table, what of it is asked, and what gives way when it is too long."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset

from fedrot.config import TaskConfig
from fedrot.errors import ConfigError, DataError
from fedrot.tasks import Encoded, TaskData, load_task, objective
from fedrot.tasks.base import Source
from fedrot.tasks.dialogue_corpora import functions_of
from fedrot.tasks.dialogues import conversations, messages_of
from fedrot.tasks.exchanges import EncodedExchanges
from fedrot.tasks.objective import Objective
from fedrot.tasks.packing import packed
from tests.language import CHAT, jsonl, rows, tiny_tokenizer
from tests.shapes import tokenizer


def load(path: Path, records: list[dict[str, Any]], **keys: Any) -> TaskData:
    return load_task(config(path, records, **keys), 3)


def config(path: Path, records: list[dict[str, Any]], **keys: Any) -> TaskConfig:
    return TaskConfig(name="generate", data=str(jsonl(path / "data.jsonl", records)), **keys)


def encoded(path: Path, record: dict[str, Any], *, chat: bool = True, **keys: Any) -> Encoded:
    """One conversation's tokens."""
    settings = config(path, [record, *rows(5)], **keys)
    table, _ = conversations(Dataset.from_list([record]), settings, source([record]), "train")
    return objective(settings).encode(table, tiny_tokenizer(chat))


def source(records: list[dict[str, Any]], *, curated: bool = False) -> Source:
    return Source("here", Dataset.from_list(records), "", "", curated=curated)


def asked(data: Encoded, tokenizer: Any) -> list[str]:
    assert data.asked is not None
    return tokenizer.convert_ids_to_tokens(data.input_ids[data.asked].tolist())


def words(data: Encoded, tokenizer: Any) -> list[str]:
    return tokenizer.convert_ids_to_tokens(data.input_ids.tolist())


@pytest.mark.parametrize(
    ("record", "prompt", "answer"),
    [
        ({"prompt": "say : river", "completion": "river"}, "say : river", "river"),
        ({"prompt": "say : river", "response": "river"}, "say : river", "river"),
        ({"instruction": "say", "input": "river", "output": "RIVER"}, "say\n\nriver", "RIVER"),
        ({"instruction": "say", "input": "", "output": "RIVER"}, "say", "RIVER"),
        ({"question": "say", "answer": "river"}, "say", "river"),
    ],
)
def test_columns_that_are_known_by_their_names(
    tmp_path: Path, record: dict[str, str], prompt: str, answer: str
) -> None:
    records = [{**record, "who": str(number)} for number in range(8)]
    for number, one in enumerate(records):
        one[next(iter(record))] += " more" * number
    data = load(tmp_path, records)
    found = messages_of(data.train)[0]
    assert [message["role"] for message in found] == ["user", "assistant"]
    assert found[0]["content"].startswith(prompt.split("\n")[0])
    assert found[1]["content"] == answer
    assert data.train.column_names == ["messages", "who"]
    assert data.labels == ()


def test_columns_named_by_the_recipe(tmp_path: Path) -> None:
    records = [{"ask": f"say {number}", "tell": "river", "prompt": "other"} for number in range(8)]
    data = load(tmp_path, records, prompt="ask", response="tell", system="short")
    found = messages_of(data.train)[0]
    assert [message["role"] for message in found] == ["system", "user", "assistant"]
    assert found[2]["content"] == "river"
    assert "prompt" in data.train.column_names


def test_splits_share_no_conversation_and_depend_on_the_seed_alone(tmp_path: Path) -> None:
    records = rows(80) + rows(80)  # every one twice
    settings = config(tmp_path, records)
    one, again, other = load_task(settings, 3), load_task(settings, 3), load_task(settings, 4)
    assert one.validation is not None
    splits = [set(split["messages"]) for split in (one.train, one.validation, one.test)]
    assert not splits[0] & splits[1]
    assert not splits[0] & splits[2]
    assert not splits[1] & splits[2]
    assert one.test["messages"] == again.test["messages"] != other.test["messages"]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (
            {"prompt": "say", "completion": None},
            r"row 3 of train has no text in column 'completion' \(it is missing\)",
        ),
        (
            {"prompt": "say", "completion": " "},
            r"row 3 of train has no text in column 'completion' \(it is empty\)",
        ),
        ({"prompt": None, "completion": "x"}, r"row 3 of train has no text in column 'prompt'"),
    ],
)
def test_a_row_without_its_response_is_named(tmp_path: Path, record: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load(tmp_path, [*rows(2), record, *rows(3)])


def test_a_public_corpus_loses_rows_without_a_response_and_says_how_many(tmp_path: Path) -> None:
    records = [
        {"prompt": "say", "completion": text, "who": who}
        for text, who in (("x", "a"), (None, "b"), ("", "c"))
    ]
    public = source(records, curated=True)
    table, notes = conversations(public.train, config(tmp_path, rows(3)), public, "train")
    assert table["who"] == ["a"]
    assert messages_of(table)[0][1]["content"] == "x"
    assert notes == ("here: 2 rows of train without prompt or response dropped",)


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "has no messages"),
        ([{"role": "user", "content": "say"}], "has no response"),
        ([{"role": "assistant", "content": "river"}], "has no message of a user"),
        ([{"role": "human", "content": "say"}], "has message 1 without a role"),
        ([{"role": "user"}], "has message 1 without content"),
    ],
)
def test_messages_that_are_no_conversation_are_named(
    tmp_path: Path, messages: list[Any], message: str
) -> None:
    good = [{"role": "user", "content": "say"}, {"role": "assistant", "content": "river"}]
    with pytest.raises(DataError, match=f"row 2 of train {message}"):
        load(tmp_path, [{"messages": json.dumps(good)}, {"messages": json.dumps(messages)}])


def test_tables_without_a_prompt_or_a_response_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"expected 'messages', 'instruction' and 'output'"):
        load(tmp_path, [{"text": "river"}])
    with pytest.raises(DataError, match=r"a column 'instruction' but none for the response.*task\.response"):
        load(tmp_path, [{"instruction": "say", "text": "river"}])
    with pytest.raises(DataError, match=r"no column 'ask' \(task\.prompt\)"):
        load(tmp_path, rows(3), prompt="ask")
    with pytest.raises(DataError, match=r"expected a bundled corpus.*did you mean 'bbc-headlines'"):
        load_task(TaskConfig(name="generate", data="bbc-headline"), 0)


def test_keys_of_another_task_are_refused() -> None:
    with pytest.raises(ValueError, match=r"template: only the task 'generate' reads it"):
        TaskConfig(name="classify", data="x.csv", template="chat")
    with pytest.raises(ValueError, match=r"label: only the tasks 'classify' and 'image' read it"):
        TaskConfig(name="generate", data="x.csv", label="topic")


def test_only_answers_and_their_end_are_asked(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    data = encoded(tmp_path, {"prompt": "say : river", "completion": "river stone"})
    assert words(data, tokenizer) == [
        "<user>",
        "say",
        ":",
        "river",
        "<end>",
        "<assistant>",
        "river",
        "stone",
        "<end>",
    ]
    assert asked(data, tokenizer) == ["river", "stone", "<end>"]
    assert data.counts.tolist() == [3]


def test_what_an_assistant_says_before_any_user_is_no_answer(tmp_path: Path) -> None:
    said = [("assistant", "say"), ("user", "apple"), ("assistant", "river")]
    for system in ([], [("system", "horse")]):
        turns = [{"role": role, "content": content} for role, content in (*system, *said)]
        data = encoded(tmp_path, {"messages": turns})
        assert asked(data, tiny_tokenizer()) == ["river", "<end>"]
        assert "say" in words(data, tiny_tokenizer())


def test_the_user_message_is_cut_where_it_stands_and_not_where_another_quotes_it(tmp_path: Path) -> None:
    text = "apple river stone cloud horse"
    turns = [("system", f"say {text}"), ("user", text), ("assistant", "garden")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    data = encoded(tmp_path, record, max_length=14)
    kept = f"<system> say {text} <end> <user> apple <end> <assistant> garden <end>"
    assert words(data, tiny_tokenizer()) == kept.split()


@pytest.mark.parametrize("trimmed", [True, False])
def test_white_space_of_an_answer_is_asked_and_that_of_its_prompt_is_not(
    tmp_path: Path, trimmed: bool
) -> None:
    """Many tokenizers of bytes leave white space out of the characters that a token stands for."""
    from tokenizers import processors

    closing = tokenizer("llama")
    closing.backend_tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=trimmed),
            processors.TemplateProcessing(
                single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 2), ("[EOS]", 3)]
            ),
        ]
    )
    record = {"prompt": "def f:\n  ", "response": "    x\n  y \n"}
    settings = config(tmp_path, [record, *rows(5)], template="{prompt}")
    table, _ = conversations(Dataset.from_list([record]), settings, source([record]), "train")
    data = objective(settings).encode(table, closing)
    assert words(data, closing)[0] == "[BOS]"
    assert closing.decode(data.input_ids[data.asked]) == "    x\n  y \n[EOS]"


def test_every_answer_of_a_conversation_is_asked_or_the_last_alone(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer()
    turns = [("user", "say"), ("assistant", "river"), ("user", "more"), ("assistant", "stone cloud")]
    record = {"messages": [{"role": role, "content": content} for role, content in turns]}
    every = encoded(tmp_path, record)
    assert asked(every, tokenizer) == ["river", "<end>", "stone", "cloud", "<end>"]
    assert asked(encoded(tmp_path, record, answers="last"), tokenizer) == ["stone", "cloud", "<end>"]


@pytest.mark.parametrize(
    ("template", "before"), [("plain", "a river"), ("say : {prompt} of the ", "say : a river of the")]
)
def test_templates_without_chat(tmp_path: Path, template: str, before: str) -> None:
    tokenizer = tiny_tokenizer(chat=False)
    record = {"prompt": "a river ", "completion": "stone"}
    data = encoded(tmp_path, record, chat=False, template=template)
    assert words(data, tokenizer) == [*before.split(), "stone", "<end>"]
    assert asked(data, tokenizer) == ["stone", "<end>"]


def test_templates_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    record = {"prompt": "say", "completion": "river"}
    with pytest.raises(ConfigError, match=r"'chat': the tokenizer has no chat template"):
        encoded(tmp_path, record, chat=False, template="chat")
    with pytest.raises(
        ConfigError, match=r"expected 'auto', 'chat', 'plain', 'alpaca', or a text with \{prompt\}"
    ):
        encoded(tmp_path, record, template="Question:")
    with pytest.raises(ConfigError, match=r"there is a system message .* no \{system\} in the template"):
        encoded(tmp_path, record, template="plain", system="short")
    turns = [("user", "say"), ("assistant", "river"), ("user", "more"), ("assistant", "stone")]
    messages = [{"role": role, "content": content} for role, content in turns]
    with pytest.raises(
        ConfigError, match=r"a conversation of 4 messages needs the tokenizer's chat template"
    ):
        encoded(tmp_path, {"messages": messages}, template="plain")


LONG = {"prompt": "say apple river stone cloud horse", "completion": "garden window"}


@pytest.mark.parametrize(
    ("rule", "kept"),
    [
        ("cut-end", "<user> say apple river <end> <assistant> garden window <end>"),
        ("cut-start", "<user> stone cloud horse <end> <assistant> garden window <end>"),
        ("cut-answer", "<user> say apple river stone cloud horse <end> <assistant>"),
    ],
)
def test_what_gives_way_to_max_length(tmp_path: Path, rule: str, kept: str) -> None:
    tokenizer = tiny_tokenizer()
    if rule == "cut-answer":
        with pytest.raises(
            DataError, match=r"row 1: no token of its answer is left to learn; raise task\.max_length"
        ):
            encoded(tmp_path, LONG, overlong=rule, max_length=9)
        data = encoded(tmp_path, LONG, overlong=rule, max_length=10)
        assert words(data, tokenizer) == [*kept.split(), "garden"]
        return
    data = encoded(tmp_path, LONG, overlong=rule, max_length=9)
    assert words(data, tokenizer) == kept.split()
    assert data.truncated == 1
    assert asked(data, tokenizer) == ["garden", "window", "<end>"]


def test_an_answer_longer_than_the_context_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"row 1: 12 tokens, of which 3 are answer; task\.max_length = 5: cutting .*"
    ):
        encoded(tmp_path, LONG, max_length=5)
    with pytest.raises(DataError, match=r"row 1: 12 tokens.* and task\.overlong = 'error'"):
        encoded(tmp_path, LONG, max_length=9, overlong="error")


def test_an_encoder_reads_the_prompt_and_its_decoder_learns_the_answer(tmp_path: Path) -> None:
    closing = tokenizer("t5")

    def table(record: dict[str, Any], **keys: Any) -> tuple[Objective, Dataset]:
        settings = config(tmp_path, [record, *rows(5)], **keys)
        found, _ = conversations(Dataset.from_list([record]), settings, source([record]), "train")
        return objective(settings), found

    def apart(record: dict[str, Any], **keys: Any) -> EncodedExchanges:
        goal, found = table(record, **keys)
        data = goal.encode(found, closing, opening=0)
        assert isinstance(data, EncodedExchanges)
        return data

    record = {"prompt": "abcdef", "response": "xyz"}
    data = apart(record, max_length=32, template="<{prompt}>")
    prompt, answer = data.last_answer(0)
    assert closing.decode(prompt) == "<abcdef>[EOS]"
    assert closing.decode(answer) == "xyz[EOS]", "closed once, though template and tokenizer both close it"
    assert data.answers.sequence(0) == [0, *answer]
    assert (data.lengths.tolist(), data.counts.tolist(), data.truncated) == ([14], [4], 0)
    batch = data.batch(torch.tensor([0, 0]))
    assert batch.asked is not None
    assert batch.inputs["decoder_input_ids"].flatten()[batch.asked.place].tolist() == [*answer, *answer]
    cut = apart(record, max_length=10, template="<{prompt}>")
    assert [closing.decode(part) for part in cut.last_answer(0)] == ["<abc>[EOS]", "xyz[EOS]"]
    assert cut.truncated == 1
    for limit, kept in ((13, [0]), (12, [])):
        goal, found = table(record, max_length=limit, template="<{prompt}>", overlong="drop")
        assert goal.fitting(found, closing, opening=0) == kept
    with pytest.raises(ConfigError, match=r"task\.packing = true: the encoder .*set task\.packing = false"):
        apart(record, packing=True)
    closing.chat_template = CHAT
    turns = [{"role": role, "content": "hi"} for role in ("user", "assistant", "user", "assistant")]
    with pytest.raises(ConfigError, match=r"a conversation has 2 answers.*set task\.answers = 'last'"):
        apart({"messages": turns})
    prompt, answer = apart({"messages": turns}, answers="last", max_length=256).last_answer(0)
    assert closing.decode(prompt).endswith("<user> hi <end>\n<assistant> ")
    assert closing.decode(answer) == "hi <end>"


def test_packed_rows_hold_every_token_once_and_start_each_sequence_at_zero(tmp_path: Path) -> None:
    settings = config(tmp_path, rows(40), max_length=32, packing=True)
    data = load_task(settings, 3)
    whole = objective(settings).encode(data.train, tiny_tokenizer())
    picked = torch.arange(12)
    batch = whole.batch(picked, clients=3)
    assert batch.input_ids.shape[0] < 12
    assert batch.input_ids.shape[0] % 3 == 0
    assert batch.input_ids.shape[1] <= 32
    real = batch.attention_mask.bool()
    assert torch.equal(batch.where[real].sort().values, torch.arange(int(whole.offsets[12])))
    assert batch.position_ids is not None
    starts = (batch.position_ids == 0) & real
    assert int(starts.sum()) == 12
    assert batch.asked is not None
    plain = whole.unpacked(picked)
    assert plain.asked is not None
    assert torch.equal(
        batch.input_ids.flatten()[batch.asked.place], plain.input_ids.flatten()[plain.asked.place]
    )
    assert torch.equal(batch.asked.example, plain.asked.example)


def test_who_shares_a_row_depends_on_the_client_alone() -> None:
    lengths = torch.tensor([5, 3, 4, 2, 9, 9, 9, 9])
    both, own = packed(lengths, 2, 10), packed(lengths[:4], 1, 10)
    assert both.rows == 8
    assert both.width == own.width == 9, "no wider than what is used"
    assert [(s // both.width, s % both.width) for s in both.start[:4].tolist()] == [
        (s // own.width, s % own.width) for s in own.start.tolist()
    ]


def test_documented_functions_of_a_file() -> None:
    source = '''
class A:
    def f(self, x):
        """Doubles."""
        y = 2 * x
        return y

    def g(self):
        """Nothing."""
        raise NotImplementedError

def bare(x):
    return x
'''
    assert functions_of(source) == [('def f(self, x):\n    """Doubles."""', "    y = 2 * x\n    return y")]


def test_bundled_prompts_and_answers() -> None:
    data = load_task(TaskConfig(name="generate", data="bbc-headlines", max_train=50, max_test=10), 0)
    assert len(data.train) == 50
    assert set(data.train["topic"]) <= {"business", "entertainment", "politics", "sports", "tech"}
    found = messages_of(data.test)[0]
    assert found[0]["content"].startswith("Write a headline for this news article.")
    assert 2 <= len(found[1]["content"].split()) <= 12
