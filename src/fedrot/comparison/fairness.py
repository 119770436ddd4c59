"""What all runs of a comparison must have in common, held to by what every cell wrote down of its own start."""

from __future__ import annotations

from fedrot.comparison.design import Arm
from fedrot.comparison.sources import named_by
from fedrot.comparison.store import Json
from fedrot.config import differences, parse_config
from fedrot.errors import ConfigError

CHANGED = "the data or model files changed in between"


class Fairness:
    """Holds runs to the same files, and all variants of a grid point and seed to the same start and evaluation."""

    def __init__(self) -> None:
        self.first: dict[tuple[str, int], tuple[str, Json]] = {}
        self.sources: dict[tuple[str, str], tuple[Arm, Json]] = {}

    def check(self, arm: Arm, cell: Json) -> None:
        """Compare a finished cell with those before it.

        Raises:
            ConfigError: something differs; the recipe keys that differ are named, or that files changed.
        """
        self._check_start(arm, cell)
        self._check_sources(arm, cell)

    def _check_start(self, arm: Arm, cell: Json) -> None:
        """Against the first cell of its grid point and seed."""
        place = (str(arm.point), cell["config"]["seed"])
        other, reference = self.first.setdefault(place, (arm.variant, cell))
        unlike = sorted(
            name
            for name in cell["digests"].keys() | reference["digests"].keys()
            if cell["digests"].get(name) != reference["digests"].get(name)
        )
        if not unlike:
            return
        keys = differences(parse_config(reference["config"]), parse_config(cell["config"]))
        because = [line for line in keys if not line.startswith(("method.", "train.lr"))]
        why = "it comes from\n  " + "\n  ".join(because) if because else CHANGED
        raise ConfigError(
            f"{other!r} and {arm.variant!r} do not start alike with seed {place[1]}"
            + (f" at {arm.where}" if arm.where else "")
            + f" ({', '.join(unlike)}); {why}\nvariants and tuned keys may not change this; a grid key may"
        )

    def _check_sources(self, arm: Arm, cell: Json) -> None:
        """Against the first cell whose recipe names the same source; cells of before they were kept have none."""
        recipe = named_by(parse_config(cell["config"]))
        for name, digest in cell.get("sources", {}).items():
            place = (name, recipe[name])
            other, reference = self.sources.setdefault(place, (arm, cell))
            if reference["sources"][name] == digest:
                continue
            one, two = (f"seed {c['config']['seed']}" for c in (reference, cell))
            raise ConfigError(
                f"{other.name!r}, {one}, and {arm.name!r}, {two}, do not start alike ({name}); {CHANGED}\n"
                "put the files back and delete the cell that was run on others, "
                f"'cells/{reference['key']}.json' or 'cells/{cell['key']}.json', or start a new comparison with "
                "another --out"
            )
