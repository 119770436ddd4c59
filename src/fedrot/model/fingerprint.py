"""Whether two machines hold the same base model: a digest of its weights and of what prepares its input."""

from __future__ import annotations

import hashlib
import json

import torch

from fedrot.model.base import VISION, BaseModel


@torch.no_grad()
def fingerprint(base: BaseModel) -> str:
    """SHA-256 over names, types, shapes and bytes of all weights but the head's, and over the vocabulary, or the
    settings of the image processor.

    The head is left out: it is trained, travels with the adapter, and starts from what the server broadcasts. Weights
    of another precision give another digest.
    """
    digest = hashlib.sha256()
    head = base.head_parameters()
    for name, tensor in sorted(base.module.state_dict().items()):
        if name in head:
            continue
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(memoryview(tensor.detach().contiguous().cpu().reshape(-1).view(torch.uint8).numpy()))
    if base.kind == VISION:
        digest.update(json.dumps(base.processor.to_dict(), sort_keys=True, default=str).encode())
        return digest.hexdigest()
    for token, number in sorted(base.tokenizer.get_vocab().items(), key=lambda item: item[1]):
        digest.update(f"{number} {token}\n".encode())
    return digest.hexdigest()
