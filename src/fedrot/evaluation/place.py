"""The directory that is evaluated: a run, an exported adapter, or a merged model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fedrot.config import ModelConfig, RunConfig, load_config
from fedrot.errors import ConfigError, ModelError, OutputError
from fedrot.model import BaseModel, load_base
from fedrot.model.attach import attach_peft
from fedrot.model.pooled import pooled_card
from fedrot.model.words import CARD
from fedrot.rundir import RunDirectory

LANGUAGE = "causal-lm"


@dataclass(frozen=True)
class Loaded:
    """A language model with its adapter, ready to be asked."""

    base: BaseModel
    module: nn.Module
    tokenizer: Any


@dataclass(frozen=True)
class Place:
    """What lies in the directory, found without loading a model."""

    directory: Path
    model: ModelConfig
    adapter: Path | None
    """None where the model is whole already."""
    precision: str
    config: RunConfig | None = None
    """Of a run."""

    def load(self, device: str = "auto") -> Loaded:
        """Load the base model and put the adapter on it.

        Raises:
            ModelError: base model or adapter cannot be loaded, or do not belong together.
            ConfigError: a device that is not there.
        """
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        visible = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
        if device not in {"cpu", *visible, *(["cuda"] if visible else [])}:
            raise ConfigError(
                f"--device {device}: expected auto, cpu or cuda; {len(visible)} GPUs are visible"
            )
        base = load_base(self.model, (), kind=LANGUAGE, precision=self.precision, device=device)
        module = base.module if self.adapter is None else attach_peft(base, self.adapter)
        return Loaded(base, module, base.tokenizer)

    def record(self) -> dict[str, Any]:
        """For the result: what was evaluated."""
        return {
            "directory": str(self.directory),
            "base_model": self.model.path,
            "adapter": None if self.adapter is None else str(self.adapter),
            "precision": self.precision,
        }


def open_place(directory: str | Path, base: str | None = None, precision: str | None = None) -> Place:
    """Recognise a run directory (`config.toml`), a PEFT adapter (`adapter_config.json`) or a model (`config.json`).

    Args:
        directory: the place.
        base: where the base model lies, if it is not where the run or the adapter says.
        precision: of the arithmetic; by default that of the run, else float32.

    Raises:
        OutputError: nothing of the kind, or a run whose adapter has not been written.
        ConfigError: a classifier, which has nothing to generate, or `base` for a whole model.
    """
    path = Path(directory)
    run = RunDirectory(path)
    if run.config.exists():
        config = load_config(run.config)
        _generative(config.task.name == "generate", path, f"its task is {config.task.name!r}")
        if not (run.adapter / "adapter_config.json").exists():
            raise OutputError(f"'{path}' has no adapter yet; write it with `fedrot export {path}`")
        model = config.model.model_copy(update={"path": base or config.model.path, "adapter": None})
        return Place(path, model, run.adapter, precision or config.train.precision, config)
    if (path / "adapter_config.json").exists():
        card, settings = _read(path / CARD, {}), _read(path / "adapter_config.json")
        kind = settings.get("task_type")
        _generative(
            kind in ("CAUSAL_LM", "SEQ_2_SEQ_LM", None) and not card.get("labels"),
            path,
            f"its task_type is {kind!r}",
        )
        named = base or card.get("base_model") or settings.get("base_model_name_or_path")
        if not named:
            raise ModelError(f"'{path}' does not name its base model; give it with --base")
        return Place(path, ModelConfig(path=named), path, precision or "float32")
    if (path / "config.json").exists():
        if base is not None:
            raise ConfigError(f"--base {base}: '{path}' is a whole model and needs none; leave it out")
        kinds = _read(path / "config.json").get("architectures") or []
        _generative(not any("Classification" in kind for kind in kinds), path, f"it is a {', '.join(kinds)}")
        _generative(pooled_card(path) is None, path, "it is a classifier")
        return Place(path, ModelConfig(path=str(path)), None, precision or "float32")
    raise OutputError(
        f"'{path}': expected a run directory (config.toml), an exported adapter (adapter_config.json) or a merged "
        "model (config.json)"
    )


def _generative(is_so: bool, path: Path, why: str) -> None:
    if not is_so:
        raise ConfigError(
            f"'{path}' has nothing to generate: {why}. These evaluators need a language model; the metrics of a "
            "classifier stand in its run's summary.json"
        )


def _read(file: Path, otherwise: dict[str, Any] | None = None) -> dict[str, Any]:
    if otherwise is not None and not file.exists():
        return otherwise
    try:
        found = json.loads(file.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"'{file}': cannot be read ({error}); restore it") from error
    if not isinstance(found, dict):
        raise ModelError(f"'{file}': expected a JSON object, found a {type(found).__name__}; restore it")
    return found
