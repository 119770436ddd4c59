"""The ClientApp of `flower_sim.py`, in a module of its own so that actors import it and keep what it holds.

Written after Flower's FlowerTune example: load the received adapter, train, send the adapter back. Unlike there, an
actor keeps its model between messages (`PEERS_RELOAD=1` loads it for every message, as the example does).
"""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from common import Job, load_model, train_client
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import get_peft_model_state_dict, set_peft_model_state_dict
from torch import nn

app = ClientApp()


@cache
def job() -> Job:
    return Job(Path(os.environ["PEERS_JOB"]))


@cache
def kept() -> nn.Module:
    return load_model(job())


@app.train()
def train(message: Message, context: Context) -> Message:
    client, round = int(context.node_config["partition-id"]), int(message.content["config"]["server-round"])
    module = load_model(job()) if os.environ.get("PEERS_RELOAD") else kept()
    set_peft_model_state_dict(module, message.content["arrays"].to_torch_state_dict())
    train_client(module, job(), job().draws(round, client))
    content = {
        "arrays": ArrayRecord(get_peft_model_state_dict(module)),
        "metrics": MetricRecord({"num-examples": 1}),  # clients count alike in all contenders
    }
    return Message(content=RecordDict(content), reply_to=message)
