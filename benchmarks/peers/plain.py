"""A plain loop: one PEFT model; load the broadcast, train, keep the result, next client; then the mean.

python benchmarks/peers/plain.py JOB OUT [--dealt]
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from common import Clock, Job, load_model, train_client
from peft import get_peft_model_state_dict


def main(job: Job, out: Path, dealt: bool) -> None:
    clock, model = Clock(), load_model(job)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    broadcast = {name: p.detach().clone() for name, p in trained.items()}
    clock.mark()
    for round in range(1, job.rounds + 1):
        total = {name: torch.zeros_like(p) for name, p in broadcast.items()}
        for client in job.chosen(round):
            with torch.no_grad():
                for name, parameter in trained.items():
                    parameter.copy_(broadcast[name])
            train_client(model, job, job.draws(round, client, dealt))
            for name, parameter in trained.items():
                total[name] += parameter.detach()
        broadcast = {name: t / job.cohort for name, t in total.items()}
        clock.mark()
    with torch.no_grad():
        for name, parameter in trained.items():
            parameter.copy_(broadcast[name])
    clock.write(out, get_peft_model_state_dict(model))


if __name__ == "__main__":
    main(Job(Path(sys.argv[1])), Path(sys.argv[2]), "--dealt" in sys.argv)
