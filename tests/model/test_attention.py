"""Masks made from what the host knows of padding: the same states of every token that is not padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fedrot.model.attention import NAME, Padding, forget_padding, know_padding, padding_is
from tests.shapes import SHAPES, build

TEXTS = [name for name, shape in SHAPES.items() if shape.texts and not name.startswith(("t5", "bart"))]
LENGTHS = {"none": [20, 20, 20], "right": [20, 7, 13], "left": [20, 7, 13]}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    from transformers import AutoModel

    place = tmp_path_factory.mktemp("models")
    return {name: AutoModel.from_pretrained(build(name, place / name)).eval() for name in TEXTS}


def texts(padding: str) -> dict[str, torch.Tensor]:
    lengths = torch.tensor(LENGTHS[padding]).unsqueeze(1)
    column = torch.arange(20).expand(3, -1)
    mask = (column >= 20 - lengths) if padding == "left" else (column < lengths)
    ids = torch.randint(5, 60, (3, 20), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids * mask, "attention_mask": mask.long()}


@pytest.mark.parametrize("padding", ["none", "right", "left"])
@pytest.mark.parametrize("name", TEXTS)
def test_states_are_the_same(name: str, padding: Padding, models: dict[str, Any]) -> None:
    model, inputs = models[name], texts(padding)
    real = inputs["attention_mask"].bool()
    with torch.no_grad():
        usual = model(**inputs).last_hidden_state[real]
        know_padding(model)
        try:
            with padding_is(padding):
                known = model(**inputs).last_hidden_state[real]
            unsaid = model(**inputs).last_hidden_state[real]
        finally:
            forget_padding(model)
    torch.testing.assert_close(known, usual, rtol=1e-4, atol=1e-5)
    assert torch.equal(unsaid, usual)


@pytest.mark.parametrize("name", ["bert", "llama"])
def test_padding_that_is_said_is_not_looked_for(name: str, models: dict[str, Any]) -> None:
    """A batch without padding, said to be padded, gets the mask that nobody needs; the other way round it gets none."""
    model, full, padded = models[name], texts("none"), texts("left")
    masks: list[torch.Tensor | None] = []
    attention = next(m for n, m in model.named_modules() if n.endswith(("self_attn", "attention.self")))
    handle = attention.register_forward_pre_hook(
        lambda _, args, kwargs: masks.append(
            kwargs.get("attention_mask", args[1] if len(args) > 1 else None)
        ),
        with_kwargs=True,
    )
    know_padding(model)
    try:
        with torch.no_grad():
            for said, inputs in (("left", full), ("none", padded)):
                with padding_is(said):  # type: ignore[arg-type]
                    model(**inputs)
    finally:
        forget_padding(model)
        handle.remove()
    assert masks[0] is not None
    assert masks[1] is None


def test_the_name_is_not_saved(models: dict[str, Any], tmp_path: Path) -> None:
    model = models["llama"]
    know_padding(model)
    try:
        assert model.config._attn_implementation == NAME
        model.save_pretrained(tmp_path)
    finally:
        forget_padding(model)
    assert model.config._attn_implementation == "sdpa"
    assert NAME not in (tmp_path / "config.json").read_text("utf-8")
