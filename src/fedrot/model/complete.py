"""Whether a checkpoint held the model's weights: transformers draws whatever it lacks at random, and only logs it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fedrot.errors import ModelError

_NEW = ("classifier", "score", "classification_head", "head", "dist_head", "fc", "pooler", "mask_token")
"""Parts that a checkpoint of another task may lack: a head is trained, a pooler's dense layer belongs to it, and
nothing is masked."""


def check_complete(path: str, module: Any, report: Mapping[str, Any], labels: int = 0) -> None:
    """Refuse a model of which more than a new head would be random.

    Args:
        path: what `model.path` says.
        module: the model, as transformers loaded it.
        report: its `output_loading_info`.
        labels: of a classifier, whose head may be new; 0 for other models, which must be stored whole.

    Raises:
        ModelError: weights that are missing, or of another shape; the first are named.
    """
    for name, stored, expected in sorted(report["mismatched_keys"]):
        if stored[1:] != expected[1:] or expected[0] != labels:
            raise ModelError(
                f"model.path = {path!r}: its weights {name!r} are {tuple(stored)}, the model needs {tuple(expected)}; "
                "config.json and the weights do not belong together"
            )
    named = [name for name, _ in module.named_parameters()]
    missing = sorted(set(report["missing_keys"]).intersection(named))  # what is no parameter is computed
    if labels:
        missing = _of_backbone(module, missing)
    if missing:
        shown = ", ".join(map(repr, missing[:3])) + (", ..." if len(missing) > 3 else "")
        raise ModelError(
            f"model.path = {path!r}: the weights lack {len(missing)} of the {len(named)} that a "
            f"{type(module).__name__} has ({shown}), which would be drawn at random; expected the weights that belong "
            "to its config.json, named as transformers names them: save the model again with its own save_pretrained"
        )


def _of_backbone(module: Any, names: list[str]) -> list[str]:
    """Without what a new head may lack."""
    prefix = "" if module.base_model is module else f"{module.base_model_prefix}."
    return [name for name in names if name.startswith(prefix) and not set(name.split(".")).intersection(_NEW)]
