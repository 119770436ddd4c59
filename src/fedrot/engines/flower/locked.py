"""A file's lock, which the system takes back when the process that holds it ends, however that happens."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fedrot.errors import ConfigError, OutputError


@contextmanager
def locked(path: Path, refusal: str = "") -> Iterator[None]:
    """Hold the lock of a file, which is made if it is not there and stays.

    Args:
        path: of the file.
        refusal: what to say if another process holds it. Empty: wait for it.

    Raises:
        ConfigError: with the refusal.
        OutputError: the file cannot be written.
    """
    import fcntl  # not on every system, and only nodes and servers with folders of their own need it

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        file = path.open("a")
    except OSError as error:
        raise OutputError(
            f"'{path}': cannot be written ({error.strerror}); check the path and free space"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if refusal else 0))
        except BlockingIOError as error:
            raise ConfigError(f"'{path}': {refusal}") from error
        yield
