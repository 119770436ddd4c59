"""The server: FedAvg, and the result as a PEFT adapter."""

from __future__ import annotations

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

from classify_app.task import make_model
from fedrot.flower import FedRotStrategy, peft_to_record, record_to_peft

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    config = context.run_config
    model = make_model(int(config["lora-rank"]))
    # The wrapper is optional: it logs the aggregation error and notices if a client lacks the mod.
    strategy = FedRotStrategy(FedAvg(fraction_train=float(config["fraction-train"])))
    result = strategy.start(
        grid=grid, initial_arrays=peft_to_record(model), num_rounds=int(config["num-server-rounds"])
    )
    record_to_peft(result.arrays, str(config["adapter-path"]), like=model)
