"""The client, in the shape of Flower's template for language models."""

from __future__ import annotations

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from fedrot.flower import FedRotMod
from llm_app.dataset import encode, texts
from llm_app.models import cosine_annealing, get_model

app = ClientApp(mods=[FedRotMod()])  # without alignment: ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Load what was received, train with this round's learning rate, return the adapter."""
    config = context.run_config
    partition = int(context.node_config["partition-id"])
    number = int(message.content["config"]["server-round"])
    data = encode(texts(partition), int(config["train.seq-length"]))

    model = get_model(config)
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    lr = cosine_annealing(
        number,
        int(config["num-server-rounds"]),
        float(config["train.learning-rate-max"]),
        float(config["train.learning-rate-min"]),
    )
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=lr)
    draw = torch.Generator().manual_seed(1000 * number + partition)
    steps, total = int(config["train.max-steps"]), 0.0
    for _ in range(steps):
        rows = data[torch.randint(0, len(data), (int(config["train.batch-size"]),), generator=draw)]
        loss = model(input_ids=rows, labels=rows).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()

    metrics = {"train_loss": total / steps, "num-examples": len(data)}
    content = RecordDict(
        {"arrays": ArrayRecord(get_peft_model_state_dict(model)), "metrics": MetricRecord(metrics)}
    )
    return Message(content, reply_to=message)
