"""Base models, their LoRA sites, and PEFT adapters in and out: the only part that imports transformers or peft."""

from fedrot.model.base import BaseModel, load_base
from fedrot.model.belonging import load_base_for
from fedrot.model.exchange import load_peft, save_peft
from fedrot.model.fingerprint import fingerprint
from fedrot.model.fold import Fold
from fedrot.model.locate import resolve_path
from fedrot.model.merge import merged, save_merged
from fedrot.model.pooled import PooledClassifier
from fedrot.model.sites import block_of, find_sites, initial_adapter

__all__ = [
    "BaseModel",
    "Fold",
    "PooledClassifier",
    "block_of",
    "find_sites",
    "fingerprint",
    "initial_adapter",
    "load_base",
    "load_base_for",
    "load_peft",
    "merged",
    "resolve_path",
    "save_merged",
    "save_peft",
]
