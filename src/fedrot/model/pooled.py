"""A sequence classifier that pools hidden states its own way."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedrot.errors import ModelError
from fedrot.model.words import CARD, first_line

POOLINGS = ("mean", "cls")
WEIGHTS = "model.safetensors"
OF_BACKBONE = {r"^backbone\.": ""}
"""How the names in a merged model become those of its backbone alone."""


class PooledClassifier(nn.Module):
    """A transformers encoder, a pooling of its last hidden states, and a linear classifier.

    For encoders whose own classification class pools in a way they were not trained for (sentence encoders are
    trained with the mean over tokens). Called like a transformers sequence classifier.
    """

    def __init__(self, backbone: Any, labels: int, pooling: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.config: Any = backbone.config
        self.pooling = pooling
        self.classifier = nn.Linear(self.config.hidden_size, labels)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> PooledClassifier:
        """Read a merged model that `fedrot export --merge` wrote.

        Raises:
            ModelError: another kind of directory.
        """
        import safetensors.torch
        from transformers import AutoConfig, AutoModel

        directory = Path(directory)
        facts = pooled_card(directory)
        if facts is None:
            raise ModelError(
                f"'{directory}': expected a merged model written by fedrot, with config.json, {WEIGHTS} and a {CARD} "
                "that says how it pools; one without loads with transformers alone"
            )
        try:
            settings = AutoConfig.from_pretrained(directory)
            backbone = AutoModel.from_config(settings, **without_pooler(settings))
            model = cls(backbone, len(facts["labels"]), facts["pooling"])
            model.load_state_dict(safetensors.torch.load_file(directory / WEIGHTS))
        except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            raise ModelError(
                f"'{directory}': the merged model cannot be read ({first_line(error)}); export it again"
            ) from error
        return model

    @torch.no_grad()
    def read_head(self, directory: str | Path) -> None:
        """Take the head of a merged model."""
        import safetensors

        with safetensors.safe_open(Path(directory) / WEIGHTS, "pt") as stored:
            for name, parameter in self.classifier.named_parameters():
                parameter.copy_(stored.get_tensor(f"classifier.{name}"))

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Any:
        """`input_ids, attention_mask: (n, length)` -> an output whose `logits` are `(n, labels)`."""
        from transformers.modeling_outputs import SequenceClassifierOutput

        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(pool(hidden, attention_mask, self.pooling)))


def pooled_card(directory: str | Path) -> dict[str, Any] | None:
    """What `fedrot.json` says of a merged model that pools its own way: `pooling` and `labels`; None for all else.

    An adapter's `fedrot.json` says so too, of its base model.
    """
    directory = Path(directory)
    if not (directory / "config.json").is_file() or (directory / "adapter_config.json").exists():
        return None
    try:
        facts = json.loads((directory / CARD).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    known = (
        isinstance(facts, dict) and facts.get("pooling") in POOLINGS and isinstance(facts.get("labels"), list)
    )
    return facts if known else None


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """`hidden: (n, length, width)`, `mask: (n, length)` -> `(n, width)`: first token, or mean over real tokens."""
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1)


_POOLED = ("bert", "roberta", "xlm-roberta", "camembert", "data2vec-text", "mpnet", "ernie", "xlm-roberta-xl")


def without_pooler(settings: Any) -> dict[str, bool]:
    """Our own pooling leaves the model's pooler unused: do not build it."""
    return {"add_pooling_layer": False} if settings.model_type in _POOLED else {}
