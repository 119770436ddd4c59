"""The server, in the shape of Flower's template for language models: FedAvg, evaluated and saved as it goes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from flwr.app import ArrayRecord, Context, MetricRecord
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from peft import get_peft_model_state_dict, set_peft_model_state_dict

from llm_app.dataset import encode, texts
from llm_app.models import get_model

app = ServerApp()


def get_evaluate_fn(config: dict[str, Any]) -> Callable[[int, ArrayRecord], MetricRecord]:
    """After every round: the loss on texts of all kinds; every so often and at the end: the adapter on disk."""
    model = get_model(config)
    data = encode(texts(-1), int(config["train.seq-length"]))

    @torch.no_grad()
    def evaluate(server_round: int, arrays: ArrayRecord) -> MetricRecord:
        set_peft_model_state_dict(model, arrays.to_torch_state_dict())
        last = server_round == int(config["num-server-rounds"])
        if server_round and (last or server_round % int(config["train.save-every-round"]) == 0):
            model.save_pretrained(Path(str(config["save-path"])) / f"peft_{server_round}")
        return MetricRecord({"loss": model(input_ids=data, labels=data).loss.item()})

    return evaluate


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    strategy = FedAvg(
        fraction_train=float(config["strategy.fraction-train"]),
        fraction_evaluate=float(config["strategy.fraction-evaluate"]),
    )
    strategy.start(
        grid=grid,
        initial_arrays=ArrayRecord(get_peft_model_state_dict(get_model(config))),
        num_rounds=int(config["num-server-rounds"]),
        evaluate_fn=get_evaluate_fn(config),
    )
