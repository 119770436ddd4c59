"""A small comparison from Python: two methods, three seeds, learning rates chosen on validation.

Uses the reviews and the tiny model of `run_recipe.py`, so that it takes seconds; the accuracies say nothing about the
methods.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from run_recipe import RECIPE, write_model, write_reviews

import fedrot


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_reviews(folder / "reviews.csv")
        write_model(folder / "model")
        recipe = folder / "recipe.toml"
        recipe.write_text(RECIPE.format(folder=folder), encoding="utf-8")

        found = fedrot.compare(
            recipe,
            methods=["fedit", "fedrot"],
            seeds=[1, 2, 3],
            tune={"train.lr": [1e-4, 5e-3]},
            out=folder / "comparison",
        )
        print((found.directory / "table.md").read_text(encoding="utf-8"))
        assert found.failed == []
        for arm in found.results["arms"]:
            assert arm["chosen"] == {"train.lr": 5e-3}, "the smaller rate learns nothing in four rounds"
            assert arm["mean"]["accuracy"]["seeds"] == 3

        more = fedrot.compare(None, seeds=[1, 2, 3, 4], out=folder / "comparison", resume=True)
        assert more.results["arms"][0]["mean"]["accuracy"]["seeds"] == 4, "a comparison can be extended"
        assert (more.directory / "compare.html").exists()


if __name__ == "__main__":
    main()
