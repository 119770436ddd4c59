"""The tasks there are, by their names in recipes."""

from __future__ import annotations

from fedrot.config import TaskConfig
from fedrot.tasks.base import TaskData
from fedrot.tasks.classify import Classify, ClassifyImages
from fedrot.tasks.corpora import CORPORA
from fedrot.tasks.dialogue_corpora import DIALOGUES
from fedrot.tasks.generate import Generate
from fedrot.tasks.glue import REGRESSION
from fedrot.tasks.grade import Grade
from fedrot.tasks.images import PICTURES
from fedrot.tasks.objective import Objective

TASKS: dict[str, type[Objective]] = {"classify": Classify, "generate": Generate, "image": ClassifyImages}
"""`task.name` to the class."""

BUNDLED = frozenset({*CORPORA, *DIALOGUES, *PICTURES})
"""Values of `task.data` that stand for public data of an installed package."""


def objective(config: TaskConfig) -> Objective:
    """The task that a recipe names; for the grades of STS-B, regression."""
    if config.name == "classify" and config.data == REGRESSION:
        return Grade(config)
    return TASKS[config.name](config)


def load_task(config: TaskConfig, seed: int) -> TaskData:
    """The split data that a recipe names.

    Raises:
        DataError: data that cannot be found, read or used; the message names the key, the row and the remedy.
        ConfigError: keys that do not fit each other or the data.
    """
    return objective(config).load(seed)
