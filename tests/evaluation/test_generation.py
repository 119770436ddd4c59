"""Completions in batches against completions one at a time, and what ends them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedrot.errors import ConfigError, DataError
from fedrot.evaluation.generation import Decoding, check_room, complete, cut
from fedrot.model.generation import Draw, Sampling, StopsSaid, generate_batch
from tests.shapes import build

PROMPTS = ["def f(x):", "a", "Question: how many?\nAnswer:", "Once upon a time there was", "ü"]


def slow_greedy(model: Any, ids: list[int], steps: int) -> list[int]:
    """The likeliest token again and again, without cache, padding or batch."""
    new: list[int] = []
    with torch.no_grad():
        for _ in range(steps):
            token = int(model(torch.tensor([ids + new])).logits[0, -1].argmax())
            if token == model.generation_config.eos_token_id:
                break
            new.append(token)
    return new


def test_a_padded_batch_with_cache_gives_what_each_prompt_gives_alone(llama: tuple[Any, Any]) -> None:
    model, tokenizer = llama
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    found = generate_batch(model, tokenizer, prompts, max_new_tokens=12)
    assert found == [slow_greedy(model, prompt, 12) for prompt in prompts]


@pytest.mark.parametrize("shape", ["bart", "t5"])
def test_an_encoder_reads_a_short_prompt_in_a_batch_as_it_does_alone(shape: str, tmp_path: Path) -> None:
    """BART's encoder counts positions from the first column, padding or not."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    path = build(shape, tmp_path)
    model, tokenizer = AutoModelForSeq2SeqLM.from_pretrained(path).eval(), AutoTokenizer.from_pretrained(path)
    prompts = [tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    seen: list[torch.Tensor] = []  # what the encoder makes of them
    model.get_encoder().register_forward_hook(lambda _, __, out: seen.append(out[0]))
    found = generate_batch(model, tokenizer, prompts, max_new_tokens=4)
    assert found == [generate_batch(model, tokenizer, [prompt], max_new_tokens=4)[0] for prompt in prompts]
    for prompt, together, alone in zip(prompts, seen[0], seen[1:], strict=True):
        torch.testing.assert_close(together[: len(prompt)], alone[0], rtol=1e-4, atol=1e-4)


def test_texts_come_in_the_order_of_their_prompts_whatever_the_batches(llama: tuple[Any, Any]) -> None:
    ways = [complete(*llama, PROMPTS, Decoding(max_new_tokens=8, batch_size=size)) for size in (1, 2, 16)]
    assert ways[0].texts == ways[1].texts == ways[2].texts
    assert len(set(ways[0].texts)) > 1
    assert ways[0].tokens == ways[2].tokens > 0


def test_the_models_own_sampling_defaults_are_not_used(llama: tuple[Any, Any]) -> None:
    model, tokenizer = llama
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    before = generate_batch(model, tokenizer, [prompt], max_new_tokens=8)
    own = model.generation_config
    try:
        own.do_sample, own.repetition_penalty, own.temperature, own.top_k = True, 9.0, 5.0, 3
        assert generate_batch(model, tokenizer, [prompt], max_new_tokens=8) == before
    finally:
        own.do_sample, own.repetition_penalty, own.temperature, own.top_k = None, None, None, None


def test_an_end_token_ends_a_text_and_is_left_out(llama: tuple[Any, Any]) -> None:
    model, tokenizer = llama
    prompt = tokenizer(PROMPTS[0])["input_ids"]
    new = slow_greedy(model, prompt, 8)
    end = model.generation_config.eos_token_id
    try:
        model.generation_config.eos_token_id = [end, new[3]]
        [found] = generate_batch(model, tokenizer, [prompt], max_new_tokens=8)
    finally:
        model.generation_config.eos_token_id = end
    assert found == new[: new.index(new[3])]


def test_a_stop_string_ends_a_text_before_it_and_is_not_looked_for_in_the_prompt(
    llama: tuple[Any, Any],
) -> None:
    long = complete(*llama, PROMPTS, Decoding(max_new_tokens=40))
    stop = long.texts[0][0][10:12]
    assert len(stop) == 2
    found = complete(*llama, [PROMPTS[0], stop + PROMPTS[3]], Decoding(max_new_tokens=40), stops=["§§", stop])
    assert found.texts[0][0] == cut(long.texts[0][0], [stop])
    whole = complete(*llama, [stop + PROMPTS[3]], Decoding(max_new_tokens=40))
    assert found.texts[1][0] == cut(whole.texts[0][0], [stop]) != ""
    assert found.tokens < 60  # it stopped early, and did not only cut


def test_padding_behind_a_text_that_ended_first_is_not_counted(llama: tuple[Any, Any]) -> None:
    texts = [text for (text,) in complete(*llama, PROMPTS, Decoding(max_new_tokens=40)).texts]
    stop = next(sign for sign in texts[0] if any(sign not in text for text in texts))
    counts = [
        complete(*llama, PROMPTS, Decoding(max_new_tokens=40, batch_size=size), stops=[stop]).tokens
        for size in (1, 5)
    ]
    assert counts[0] == counts[1] < 5 * 40


def dropping_the_first_space() -> Any:
    """Bytes, and words with their space before them, decoded as Llama 2's tokenizer does."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    signs = ["<unk>", "<s>", "</s>", *(f"<0x{number:02X}>" for number in range(256)), "▁", *"abcdefgx:"]
    merges = [("▁", "▁"), ("▁▁", "▁▁"), ("▁", "x")]
    signs += [first + second for first, second in merges]
    model = models.BPE({sign: number for number, sign in enumerate(signs)}, merges, byte_fallback=True)
    inner = Tokenizer(model)
    inner.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    inner.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )


def test_completions_keep_the_space_that_they_begin_with(
    llama: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = dropping_the_first_space()
    prompt = "def f:\n"
    new = tokenizer.convert_tokens_to_ids(["▁▁▁▁", "x", "<0x0A>", "▁▁▁▁", "a"])
    assert tokenizer.decode(new) == "   x\n    a"
    monkeypatch.setattr("fedrot.evaluation.generation.generate_batch", lambda *_, **__: [new])
    assert complete(llama[0], tokenizer, [prompt], Decoding(max_new_tokens=8)).texts == (("    x\n    a",),)


def test_stop_strings_are_looked_for_in_the_text_that_is_cut_at_them() -> None:
    tokenizer = dropping_the_first_space()
    prompt = tokenizer("def f:\n")["input_ids"]
    new = tokenizer.convert_tokens_to_ids(["▁▁▁▁", "x", "a", "a"])
    ids = torch.tensor([prompt + new])
    for stop, there in (
        ("    x", True),
        ("\n    x", False),
    ):  # a line that the prompt ends is not the model's
        assert bool(StopsSaid(tokenizer, [stop], len(prompt))(ids, None)) is there


def test_samples_depend_on_their_seed_and_not_on_their_batch(llama: tuple[Any, Any]) -> None:
    def drawn(seed: int, batch_size: int) -> tuple[tuple[str, ...], ...]:
        sampling = Sampling(temperature=0.9, top_p=0.9, top_k=50, seed=seed)
        return complete(
            *llama,
            PROMPTS[:3],
            Decoding(max_new_tokens=8, batch_size=batch_size, samples=2, sampling=sampling),
        ).texts

    before = torch.random.get_rng_state()
    assert drawn(1, 1) == drawn(1, 4)
    assert drawn(1, 4) != drawn(2, 4)
    assert all(first != second for first, second in drawn(1, 4))
    assert torch.equal(before, torch.random.get_rng_state())


def frequencies(sampling: Sampling, scores: torch.Tensor, draws: int) -> torch.Tensor:
    draw = Draw(sampling, range(draws), torch.device("cpu"))
    chosen = draw(torch.empty(draws, 0), scores.expand(draws, -1)).argmax(1)
    return torch.bincount(chosen, minlength=len(scores)) / draws


def test_draws_follow_the_distribution_that_was_asked_for() -> None:
    scores = torch.tensor([2.0, 1.0, 0.5, -1.0])
    draws = 4000
    error = 4 * 0.5 / draws**0.5  # four standard errors of a share
    for sampling, expected in [
        (Sampling(temperature=0.7), (scores / 0.7).softmax(0)),
        (Sampling(top_k=2), torch.tensor([2.0, 1.0, -torch.inf, -torch.inf]).softmax(0)),
        # of .60, .22, .13, .03 the first two fall short of .9
        (Sampling(top_p=0.9), torch.tensor([2.0, 1.0, 0.5, -torch.inf]).softmax(0)),
    ]:
        assert torch.allclose(frequencies(sampling, scores, draws), expected, rtol=0, atol=error)


def test_a_prompt_that_leaves_no_room_is_named_before_anything_is_generated(llama: tuple[Any, Any]) -> None:
    with pytest.raises(DataError, match=r"prompt 2 has 500 tokens.*max_new_tokens = 13.*context of 512"):
        complete(*llama, ["a", "b" * 500], Decoding(max_new_tokens=13))
    check_room([[1] * 500], 13, 512, "prompt", apart=True)  # an encoder has the context for itself
    with pytest.raises(DataError, match=r"prompt 1 has 513 tokens"):
        check_room([[1] * 513], 1, 512, "prompt", apart=True)
    with pytest.raises(DataError, match="prompt 1 has no tokens"):
        complete(*llama, [""], Decoding())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 2}, "greedy decoding gives the same completion"),
        ({"max_new_tokens": 0}, "max_new_tokens = 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Decoding(**settings)


@pytest.mark.parametrize("settings", [{"temperature": 0.0}, {"top_p": 1.5}, {"top_k": 0}])
def test_sampling_outside_its_bounds_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(settings))} = "):
        Sampling(**settings)
