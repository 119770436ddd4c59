"""pfl-research: its PyTorch simulation, federated averaging of a PEFT model.

    python benchmarks/peers/pfl_sim.py JOB OUT

Clients are those that fedrot's seed chooses, through pfl's own user sampler.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from common import Batch, Clock, Job, load_model
from peft import get_peft_model_state_dict
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByUser
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchDataDataset
from pfl.hyperparam import NNEvalHyperParams, NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn


def loss(module: nn.Module, **batch: Tensor) -> Tensor:
    module.train()
    return module(**batch).loss


@torch.no_grad()
def metrics(module: nn.Module, **batch: Tensor) -> dict[str, Weighted]:
    module.eval()
    count = len(batch["labels"])
    return {"loss": Weighted(module(**batch).loss.item() * count, count)}


class Rounds(TrainingProcessCallback[PyTorchModel]):
    """Marks the end of each round."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_begin(self, *, model: PyTorchModel) -> Metrics:
        del model
        self.clock.mark()
        return Metrics()

    def after_central_iteration(self, *_: Any, **__: Any) -> tuple[bool, Metrics]:
        self.clock.mark()
        return False, Metrics()


def main(job: Job, out: Path) -> None:
    clock, module = Clock(), load_model(job)
    module.loss, module.metrics = MethodType(loss, module), MethodType(metrics, module)
    trained = [p for p in module.parameters() if p.requires_grad]
    model = PyTorchModel(
        model=module,
        local_optimizer_create=partial(torch.optim.AdamW, weight_decay=0.0),
        central_optimizer=torch.optim.SGD(trained, lr=1.0),
    )
    order = iter([(round, c) for round in range(1, job.rounds + 1) for c in job.chosen(round)])

    def collate(rows: list[Tensor]) -> Batch:
        return job.batch(torch.stack(rows))

    def user(who: tuple[int, int]) -> PyTorchDataDataset:
        rows = job.draws(*who).flatten()
        return PyTorchDataDataset(raw_data=rows, user_id=str(who[1]), collate_fn=collate)

    users = FederatedDataset(user, partial(next, order))
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=job.rounds,
            evaluation_frequency=job.rounds + 1,
            train_cohort_size=job.cohort,
            val_cohort_size=0,
        ),
        SimulatedBackend(training_data=users, val_data=users, postprocessors=[WeightByUser()]),
        model,
        NNTrainHyperParams(
            local_num_epochs=1,
            local_learning_rate=job.lr,
            local_batch_size=job.batch_size,
            local_max_grad_norm=job.clip,
        ),
        NNEvalHyperParams(local_batch_size=64),
        [Rounds(clock)],
    )
    clock.write(out, get_peft_model_state_dict(module))


if __name__ == "__main__":
    main(Job(Path(sys.argv[1])), Path(sys.argv[2]))
