"""What a node's clients may spend of their privacy, over all runs: the owner's word, whatever a recipe says.

With mechanism `local` the server need not be trusted, so neither can its recipe be: it could ask for no noise, or for
the same round a thousand times. A node whose owner set `epsilon` in `node.toml` counts for itself. A message with noise
multiplier `sigma` is `2 / sigma`-GDP for the client (any two data sets), and squares of `mu` add up, across noise
levels and runs (see `fedrot.privacy.accountant`). They are on disk, file and name, before a client trains; a message
that is then not sent counts too.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from fedrot.config import PrivacyConfig
from fedrot.engines.flower.locked import locked
from fedrot.engines.flower.node import NODE_FILE, NodeSettings
from fedrot.errors import ConfigError, OutputError
from fedrot.privacy import epsilon_of
from fedrot.rundir import write_whole


class Budget:
    """Counts what every client of a node has spent, in a file of the node's `state` folder."""

    def __init__(self, settings: NodeSettings) -> None:
        """Nothing is read yet.

        Args:
            settings: of the node; without `epsilon` nothing is counted and everything is allowed.
        """
        self._settings = settings

    def check(self, privacy: PrivacyConfig) -> None:
        """Refuse a recipe whose messages are not protected before they leave the node.

        Raises:
            ConfigError: another mechanism than `local`, no noise, or noise that the server could draw too.
        """
        limit = self._settings.epsilon
        if limit is None:
            return
        asked = {
            "mechanism": (privacy.mechanism, privacy.mechanism == "local", "'local'"),
            "noise": (privacy.noise, privacy.noise > 0, "more than 0"),
            "noise_source": (privacy.noise_source, privacy.noise_source == "system", "'system'"),
        }
        for key, (value, fits, expected) in asked.items():
            if not fits:
                raise ConfigError(
                    f"node {self._settings.name!r}: the recipe asks for privacy.{key} = {value!r}, but the node's "
                    f"owner allows epsilon = {limit:g} ({NODE_FILE}): expected {expected}"
                )

    def spend(self, clients: Sequence[int], privacy: PrivacyConfig) -> None:
        """Count one message of each client, before it is made.

        Raises:
            ConfigError: as `check`; or a client would have spent more than its owner allows. Nothing is counted then.
            OutputError: the count cannot be read or written.
        """
        self.check(privacy)
        limit = self._settings.epsilon
        if limit is None:
            return
        # Other processes of this node wait, so that no message is counted on top of an older count.
        with locked(self._path.with_suffix(".lock")):
            spent = self._read()
            for client in clients:
                total = spent.get(str(client), 0.0) + (2 / privacy.noise) ** 2
                if (epsilon := epsilon_of(math.sqrt(total), self._settings.delta)) > limit:
                    raise ConfigError(
                        f"node {self._settings.name!r}: one more message of client {client} would bring it to epsilon "
                        f"= {epsilon:.3g} at delta = {self._settings.delta:g}, and its owner allows {limit:g} "
                        f"({NODE_FILE})"
                    )
                spent[str(client)] = total
            write_whole(self._path, json.dumps(spent) + "\n")

    @property
    def _path(self) -> Path:
        assert self._settings.ledger is not None, "a node with a budget has a state folder"
        return Path(self._settings.ledger)

    def _read(self) -> dict[str, float]:
        if not self._path.exists():
            return {}
        try:
            found = json.loads(self._path.read_text("utf-8"))
            spent = {str(client): float(total) for client, total in found.items()}
            if wrong := [total for total in spent.values() if not 0 <= total < math.inf]:
                raise ValueError(f"{wrong[0]} is not what a client can have spent")
            return spent
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise OutputError(
                f"'{self._path}': what this node's clients have spent of their privacy cannot be read ({error}); "
                "restore the file from a copy"
            ) from error
