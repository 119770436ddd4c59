"""A GGUF file: its model trains like any other, and what is merged into it is an ordinary model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from fedrot.config import LoraSettings, ModelConfig
from fedrot.core import Factors
from fedrot.model import initial_adapter, load_base
from fedrot.model.base import LANGUAGE
from fedrot.model.merge import save_merged

gguf = pytest.importorskip("gguf")

WIDTH, INNER, HEADS, BLOCKS = 32, 48, 4, 2
LETTERS = "abcdefgh"


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama whose tokens are letters."""
    path = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    tokens = ["<s>", "</s>", *LETTERS, "ab"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(INNER)
    writer.add_block_count(BLOCKS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10000.0)
    writer.add_rope_dimension_count(WIDTH // HEADS)
    writer.add_vocab_size(len(tokens))
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_merges(["a b"])
    writer.add_token_types([3, 3, *([1] * (len(tokens) - 2))])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    draws = torch.Generator().manual_seed(5)

    def put(name: str, *shape: int) -> None:
        writer.add_tensor(name, (torch.randn(*shape, generator=draws) / shape[-1] ** 0.5).numpy())

    put("token_embd.weight", len(tokens), WIDTH)
    put("output.weight", len(tokens), WIDTH)
    put("output_norm.weight", WIDTH)
    for block in range(BLOCKS):
        for name in ("attn_q", "attn_k", "attn_v", "attn_output"):
            put(f"blk.{block}.{name}.weight", WIDTH, WIDTH)
        for name in ("attn_norm", "ffn_norm"):
            put(f"blk.{block}.{name}.weight", WIDTH)
        put(f"blk.{block}.ffn_gate.weight", INNER, WIDTH)
        put(f"blk.{block}.ffn_up.weight", INNER, WIDTH)
        put(f"blk.{block}.ffn_down.weight", WIDTH, INNER)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_merged_model_is_saved_whole_and_read_without_the_file(file: Path, tmp_path: Path) -> None:
    base = load_base(ModelConfig(path=str(file)), [], kind=LANGUAGE)
    ids = torch.tensor([[2, 3, 4, 5, 6]])
    plain = base.module(input_ids=ids).logits
    start = initial_adapter(base, LoraSettings(rank=2, target_modules=["q_proj", "v_proj"]), seed=1)
    sites = {s: Factors(f.a, torch.ones_like(f.b) / 8) for s, f in start.sites.items()}
    trained = type(start)(sites, start.head, start.scale)
    save_merged(tmp_path / "merged", base, trained)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "merged")
    assert not hasattr(again.config, "quantization_config")
    with torch.no_grad():
        merged = again(input_ids=ids).logits
        for site, f in sites.items():
            base.module.get_parameter(f"{site}.weight").add_(trained.scale * f.b @ f.a)
        torch.testing.assert_close(merged, base.module(input_ids=ids).logits, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(merged, plain, atol=1e-3)
