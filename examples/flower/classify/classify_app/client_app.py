"""The client: an ordinary Flower client of a PEFT model, with one mod."""

from __future__ import annotations

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from classify_app.task import evaluate_model, make_data, make_model, train_model
from fedrot.flower import FedRotMod

app = ClientApp(mods=[FedRotMod()])  # without alignment: ClientApp()


def received_model(message: Message, context: Context) -> PeftModel:
    model = make_model(int(context.run_config["lora-rank"]))
    set_peft_model_state_dict(model, message.content["arrays"].to_torch_state_dict())
    return model


@app.train()
def train(message: Message, context: Context) -> Message:
    model = received_model(message, context)
    partition = int(context.node_config["partition-id"])
    data = make_data(partition)
    loss = train_model(
        model,
        data,
        steps=int(context.run_config["local-steps"]),
        lr=float(context.run_config["learning-rate"]),
        seed=1000 * message.content["config"]["server-round"] + partition,
    )
    content = RecordDict(
        {
            "arrays": ArrayRecord(get_peft_model_state_dict(model)),
            "metrics": MetricRecord({"train_loss": loss, "num-examples": len(data[0])}),
        }
    )
    return Message(content, reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    data = make_data(1000 + int(context.node_config["partition-id"]))
    loss, accuracy = evaluate_model(received_model(message, context), data)
    metrics = MetricRecord({"eval_loss": loss, "eval_acc": accuracy, "num-examples": len(data[0])})
    return Message(RecordDict({"metrics": metrics}), reply_to=message)
