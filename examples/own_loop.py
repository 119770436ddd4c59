"""A plain federated PEFT loop, and the three lines that align its clients.

The model is a tiny BERT made from a configuration and the task is made up (which of two tokens occurs), so
that everything runs offline in seconds. Each loop is run twice: with clients that send their factors as
trained, and with clients that pass them through a truncated SVD, as compressing clients do. Alignment is
expected to matter only for the second kind; see the page on the method.
"""

from __future__ import annotations

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from transformers import BertConfig, BertForSequenceClassification

import fedrot

CLIENTS, ROUNDS, STEPS, RANK = 3, 4, 15, 4
State = dict[str, torch.Tensor]


def make_model() -> torch.nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64
    )
    lora = LoraConfig(r=RANK, lora_alpha=2 * RANK, target_modules=["query", "value"], task_type="SEQ_CLS")
    return get_peft_model(BertForSequenceClassification(config).eval(), lora)


def make_data(client: int, examples: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(client)
    labels = torch.randint(0, 2, (examples,), generator=draw)
    tokens = torch.randint(10, 50, (examples, 12), generator=draw)
    tokens[:, 1:7] = 5 + labels[:, None]  # tokens 5 and 6 tell the class
    return tokens, labels


def train(model: torch.nn.Module, received: State, client: int, number: int) -> tuple[State, float]:
    """The usual local training: load what was received, take some steps, return what was learned."""
    set_peft_model_state_dict(model, received)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    tokens, labels = make_data(client)
    draw = torch.Generator().manual_seed(1000 * number + client)
    total = 0.0
    for _ in range(STEPS):
        rows = torch.randint(0, len(tokens), (16,), generator=draw)
        loss = model(input_ids=tokens[rows], labels=labels[rows]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        total += loss.item()
    return copied(model), total / STEPS


def copied(model: torch.nn.Module) -> State:
    return {key: value.detach().clone() for key, value in get_peft_model_state_dict(model).items()}


def compress(sent: State) -> None:
    """A client that sends its adapter in singular value form: the same products in a frame of its own."""
    for key in [key for key in sent if "lora_A" in key]:
        other = key.replace("lora_A", "lora_B")
        u, s, vh = torch.linalg.svd(sent[other] @ sent[key], full_matrices=False)
        root = s[:RANK].sqrt()
        sent[key], sent[other] = root[:, None] * vh[:RANK], u[:, :RANK] * root


def relative_error(states: list[State]) -> float:
    """How far averaging factors is from averaging products, over all sites."""
    squares = ideals = 0.0
    for key in [key for key in states[0] if "lora_A" in key]:
        a, b = (torch.stack([state[k] for state in states]) for k in (key, key.replace("lora_A", "lora_B")))
        error = fedrot.aggregation_error(a, b, weights=[1] * len(states))
        squares += float(error.absolute) ** 2
        ideals += float(error.ideal) ** 2
    return (squares / ideals) ** 0.5


def one_client(
    model: torch.nn.Module, received: State, client: int, number: int, *, aligned: bool, compressed: bool
) -> tuple[State, float]:
    sent, loss = train(model, received, client, number)
    if compressed:
        compress(sent)
    if aligned:
        # --8<-- [start:lines]
        for a in [key for key in sent if "lora_A" in key]:
            b = a.replace("lora_A", "lora_B")
            sent[a], sent[b], _ = fedrot.align(sent[a], sent[b], received[a], received[b], "joint", 1.0)
        # --8<-- [end:lines]
    return sent, loss


def federate(*, aligned: bool, compressed: bool) -> tuple[list[float], float]:
    """Mean training loss of every round, and the mean relative aggregation error after the first round."""
    model = make_model()
    received = copied(model)
    losses, errors = [], []
    for number in range(1, ROUNDS + 1):
        states, loss = [], 0.0
        for client in range(CLIENTS):
            sent, own = one_client(model, received, client, number, aligned=aligned, compressed=compressed)
            states.append(sent)
            loss += own / CLIENTS
        received = {key: torch.stack([state[key] for state in states]).mean(0) for key in received}
        losses.append(loss)
        if number > 1:
            errors.append(relative_error(states))
    return losses, sum(errors) / len(errors)


def main() -> None:
    found = {}
    print("clients send  aligned  first loss  last loss  relative aggregation error")
    for compressed in (False, True):
        for aligned in (False, True):
            losses, error = found[compressed, aligned] = federate(aligned=aligned, compressed=compressed)
            how = "SVD form" if compressed else "as trained"
            done = "yes" if aligned else "no"
            print(f"{how:12}  {done:7}  {losses[0]:10.4f}  {losses[-1]:9.4f}  {error:26.4f}")
    assert all(losses[-1] < losses[0] for losses, _ in found.values()), "every loop was expected to learn"
    assert found[True, True][1] < 0.5 * found[True, False][1], "frames of their own: alignment must help"


if __name__ == "__main__":
    main()
