"""Model and data. A tiny BERT and a made-up task, so that everything runs offline in seconds; put yours here."""

from __future__ import annotations

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import BertConfig, BertForSequenceClassification

Data = tuple[torch.Tensor, torch.Tensor]


def make_model(rank: int) -> PeftModel:
    torch.manual_seed(0)  # in place of a pretrained model: the same weights for all
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    lora = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=["query", "value"], task_type="SEQ_CLS")
    return get_peft_model(BertForSequenceClassification(config).eval(), lora)


def make_data(partition: int, examples: int = 128) -> Data:
    """Rows of tokens; 5 and 6 tell the class. Partitions differ in how many of each they have."""
    draw = torch.Generator().manual_seed(partition)
    share = 0.5 if partition < 0 else (0.3, 0.5, 0.7)[partition % 3]
    labels = (torch.rand(examples, generator=draw) < share).long()
    tokens = torch.randint(10, 50, (examples, 12), generator=draw)
    tokens[:, 1:7] = 5 + labels[:, None]
    return tokens, labels


def train_model(model: torch.nn.Module, data: Data, steps: int, lr: float, seed: int) -> float:
    """Some steps of AdamW; the mean loss."""
    tokens, labels = data
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    draw = torch.Generator().manual_seed(seed)
    total = 0.0
    for _ in range(steps):
        rows = torch.randint(0, len(tokens), (16,), generator=draw)
        loss = model(input_ids=tokens[rows], labels=labels[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return total / steps


@torch.no_grad()
def evaluate_model(model: torch.nn.Module, data: Data) -> tuple[float, float]:
    """Loss and accuracy."""
    tokens, labels = data
    output = model(input_ids=tokens, labels=labels)
    return output.loss.item(), (output.logits.argmax(-1) == labels).float().mean().item()
