"""Adapters trained apart, merged: plain averaging fails where frames differ, alignment undoes that.

Three parties fit the same function from a start of their own, each with PEFT and settings of its own, and save their
adapters. No base model is needed to merge them. Seconds on one core, nothing is downloaded.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model

import fedrot

RANK, WIDTH = 4, 24
PARTIES = ({"lora_alpha": 8}, {"lora_alpha": 2}, {"lora_alpha": 6, "use_rslora": True})


class Base(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layer(x)


def task() -> tuple[torch.Tensor, torch.Tensor]:
    """Inputs, and the base model's outputs plus a change of rank 4 that is to be learned."""
    draw = torch.Generator().manual_seed(1)
    x = torch.randn(256, WIDTH, generator=draw)
    change = torch.randn(WIDTH, RANK, generator=draw) @ torch.randn(RANK, WIDTH, generator=draw) / 5
    with torch.no_grad():
        return x, Base()(x) + x @ change.T


def train(seed: int, settings: dict[str, object], directory: Path) -> None:
    """One party: its own initial factors, its own noisy view of the outputs."""
    base = Base()
    torch.manual_seed(100 + seed)
    model = get_peft_model(base, LoraConfig(r=RANK, target_modules=["layer"], **settings))
    x, y = task()
    y = y + 0.3 * torch.randn_like(y)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
    for _ in range(400):
        optimizer.zero_grad()
        (model(x) - y).square().mean().backward()
        optimizer.step()
    model.save_pretrained(str(directory))


def loss(directory: Path) -> float:
    x, y = task()
    with torch.no_grad():
        return (PeftModel.from_pretrained(Base(), str(directory))(x) - y).square().mean().item()


def main() -> None:
    x, y = task()
    with torch.no_grad():
        untouched = (Base()(x) - y).square().mean().item()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parties = [folder / f"party{number}" for number in range(len(PARTIES))]
        for number, (settings, directory) in enumerate(zip(PARTIES, parties, strict=True)):
            train(number, settings, directory)
        print("adapter         relative error  loss on the task")
        print(f"none            {'-':14}  {untouched:.4f}")
        for directory in parties:
            print(f"{directory.name:14}  {'-':14}  {loss(directory):.4f}")
        losses, errors = {}, {}
        for method in ("fedit", "fedrot"):
            result = fedrot.merge(parties, method, out=folder / method)
            errors[method], losses[method] = result.error, loss(folder / method)
            print(f"{method:14}  {result.error:14.4f}  {losses[method]:.4f}")
        print(f"best of rank {RANK}  {result.error_best:14.4f}")
    assert errors["fedit"] > 0.5, "the parties' frames have nothing in common"
    assert errors["fedrot"] < 0.1, "alignment finds a common one"
    assert losses["fedrot"] < 0.1 * losses["fedit"]


if __name__ == "__main__":
    main()
