"""Images from folders, tables and a bundled set: read, checked, prepared once, gathered as the processor would."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedrot.config import TaskConfig, parse_config
from fedrot.errors import ConfigError, DataError, ModelError
from fedrot.tasks import load_task
from fedrot.tasks.base import TaskData
from fedrot.tasks.pixels import encode_images


def png(value: int, size: tuple[int, int] = (9, 7), mode: str = "RGB") -> bytes:
    """A noisy picture, another one for every value."""
    from PIL import Image

    noise = np.random.default_rng(value).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).convert(mode).save(file, "png")
    return file.getvalue()


def processor(**changes: Any) -> Any:
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(
        **{"size": {"height": 8, "width": 8}, "image_std": [0.5, 0.25, 0.2], **changes}
    )


def task(data: Path | str, **keys: Any) -> TaskData:
    return load_task(TaskConfig(name="image", data=str(data), **keys), seed=0)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twelve pictures of each of two classes."""
    for number in range(24):
        path = tmp_path / "photos" / ("cat", "dog")[number % 2] / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(png(number))
    return tmp_path / "photos"


def table(tmp_path: Path, rows: list[dict[str, Any]]) -> Path:
    path = tmp_path / "photos.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_a_folder_of_class_folders_is_labelled_by_their_names(folder: Path) -> None:
    (folder / "cat" / "notes.txt").write_text("not a picture")
    made = task(folder)
    assert made.labels == ("cat", "dog")
    assert made.validation is not None
    sizes = len(made.train), len(made.validation), len(made.test)
    assert sum(sizes) == 24
    assert min(sizes) > 0
    for path, label in zip(made.train["image"], made.train["label"], strict=True):
        assert Path(path["path"]).parent.name == made.labels[label]
    assert any("1 files that are no images" in note for note in made.notes)


def test_the_same_image_is_never_in_two_splits(folder: Path) -> None:
    for number in range(24):
        (folder / "cat" / f"again-{number}.png").write_bytes(png(0))
    made = task(folder)
    assert made.validation is not None
    splits = [set(split["image_digest"]) for split in (made.train, made.validation, made.test)]
    assert not splits[0] & splits[1] | splits[0] & splits[2] | splits[1] & splits[2]
    assert len(made.train) + len(made.validation) + len(made.test) == 48


def test_a_table_holds_paths_beside_it_and_other_columns(folder: Path) -> None:
    rows = [
        {"photo": f"photos/{path.parent.name}/{path.name}", "kind": path.parent.name, "site": path.stem}
        for path in sorted(folder.glob("*/*.png"))
    ]
    made = task(table(folder.parent, rows), image="photo", label="kind")
    assert set(made.train.column_names) == {"image", "image_origin", "image_digest", "label", "site"}
    assert all(Path(record["path"]).is_file() for record in made.train["image"])


def test_a_parquet_table_holds_the_files_themselves(tmp_path: Path, folder: Path) -> None:
    from datasets import Dataset, Features, Image, Value

    contents = [path.read_bytes() for path in sorted(folder.glob("*/*.png"))]
    labels = ["cat"] * 12 + ["dog"] * 12
    plain = Dataset.from_dict({"image": contents, "label": labels})
    decoded = Features({"image": Image(), "label": Value("string")})
    wrapped = Dataset.from_dict(
        {"image": [{"bytes": content, "path": None} for content in contents], "label": labels},
        features=decoded,
    )
    found = []
    for name, data in {"plain": plain, "wrapped": wrapped}.items():
        data.to_parquet(tmp_path / f"{name}.parquet")
        made = task(tmp_path / f"{name}.parquet")
        found.append((made.train["image_digest"][:], made.train["label"][:]))
    from_files = task(folder)
    assert found[0] == found[1] == (from_files.train["image_digest"][:], from_files.train["label"][:])


def test_batches_are_what_the_image_processor_gives(folder: Path) -> None:
    from PIL import Image

    made = task(folder)
    encoded = encode_images(made.train, processor(), 1)
    assert encoded.pixels.dtype == torch.uint8
    rows = torch.tensor([5, 0, 5])
    batch = encoded.batch(rows)
    pictures = [Image.open(made.train[int(row)]["image"]["path"]) for row in rows]
    expected = processor()(pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(batch.inputs["pixel_values"], expected, rtol=0, atol=2e-6)
    assert batch.labels.tolist() == [made.train[int(row)]["label"] for row in rows]


def test_grey_transparent_and_turned_pictures_become_upright_colour(tmp_path: Path) -> None:
    from PIL import Image

    for name, mode in (("grey", "L"), ("clear", "RGBA"), ("palette", "P")):
        for number in range(8):
            path = tmp_path / "set" / name / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(number + len(name) * 100, mode=mode))
    turned = Image.open(io.BytesIO(png(77)))
    marks = turned.getexif()
    marks[0x0112] = 3  # upside down
    turned.save(tmp_path / "set" / "grey" / "turned.png", exif=marks)
    made = task(tmp_path / "set", validation_fraction=0, test_fraction=0.05)
    encoded = encode_images(made.train, processor(), 1)
    at = {Path(record["path"]).stem: row for row, record in enumerate(made.train["image"])}
    whole = processor()(turned.rotate(180), return_tensors="pt")["pixel_values"]
    found = encoded.batch(torch.tensor([at["turned"]])).inputs["pixel_values"]
    torch.testing.assert_close(found, whole, rtol=0, atol=2e-6)


def test_images_that_would_fill_the_memory_are_refused(folder: Path) -> None:
    big = processor(size={"height": 512, "width": 512})
    made = task(folder)
    with pytest.raises(
        ConfigError, match=r"image_limit_mb = 2: \d+ images of 3 x 512 x 512 take 1\d MiB; raise"
    ):
        encode_images(made.train, big, 2)


def test_a_damaged_image_is_named_with_its_row(folder: Path) -> None:
    (folder / "cat" / "00.png").write_bytes(png(0)[:60])
    made = task(folder)
    split = next(
        s
        for s in (made.train, made.validation, made.test)
        if s and any("00.png" in o for o in s["image_origin"])
    )
    with pytest.raises(
        DataError, match=r"row 1 of train, '.*cat/00\.png': not a readable image \(.*\); mend or remove it"
    ):
        encode_images(split, processor(), 1)


def test_pictures_of_16_bits_are_refused_rather_than_clipped(folder: Path) -> None:
    from PIL import Image

    deep = Image.fromarray(np.full((8, 8), 40_000, dtype=np.uint16))
    for path in folder.glob("*/*.png"):
        deep.putpixel((0, 0), int(path.stem))
        deep.save(path)
    with pytest.raises(DataError, match=r"more than 8 bits a channel \(mode 'I;16'\); save it with 8"):
        encode_images(task(folder).train, processor(), 1)


def test_images_of_unequal_size_need_a_processor_that_resizes(folder: Path) -> None:
    for number, path in enumerate(sorted(folder.glob("*/*.png"))):
        path.write_bytes(png(number, size=(8 + number, 9)))
    with pytest.raises(
        DataError, match=r"row \d+ of train, .* makes it 3 x 9 x \d+, others 3 x \d+ x \d+; give images"
    ):
        encode_images(task(folder).train, processor(do_resize=False), 10)


def test_a_processor_that_does_more_is_refused(folder: Path) -> None:
    class Inverting(type(processor())):
        def normalize(self, *args: Any, **keys: Any) -> Any:
            return -super().normalize(*args, **keys)

    with pytest.raises(ModelError, match=r"image processor \(Inverting\) does more than resize"):
        encode_images(task(folder).train, Inverting(size={"height": 8, "width": 8}), 1)


def test_bundled_digits_need_no_download() -> None:
    made = task("digits", max_train=40, max_test=20, max_validation=10)
    assert made.labels == tuple("0123456789")
    assert (len(made.train), len(made.test)) == (40, 20)
    encoded = encode_images(made.train, processor(), 1)
    assert encoded.pixels.float().std() > 50


ROWS = [{"image": f"{i}.png", "label": "ab"[i % 2]} for i in range(6)]


@pytest.mark.parametrize(
    ("rows", "keys", "told"),
    [
        (
            [*ROWS[:3], {"image": None, "label": "a"}],
            {},
            r"row 4 of train has no image; complete or remove it",
        ),
        ([*ROWS[:3], {"image": "3.png", "label": None}], {}, r"row 4 of train has no label"),
        (ROWS, {"image": "photo"}, r"train has no column 'photo' \(task\.image\)"),
        (
            [{"image": "what a lovely film", "label": "a"}],
            {},
            r"row 1 of train, '.*what a lovely film': cannot be read \(No such file.*task\.name = 'classify'",
        ),
        ([{"image": 3, "label": "a"}], {}, r"column 'image' of train holds neither images nor paths"),
    ],
    ids=["no image", "no label", "no column", "texts", "numbers"],
)
def test_bad_tables_are_refused(
    tmp_path: Path, rows: list[dict[str, Any]], keys: dict[str, Any], told: str
) -> None:
    for number in range(6):
        (tmp_path / f"{number}.png").write_bytes(png(number))
    with pytest.raises(DataError, match=told):
        task(table(tmp_path, rows), **keys)


def test_bad_folders_are_refused(folder: Path) -> None:
    with pytest.raises(
        DataError, match=r"expected a folder with one folder of images for each class \(looked for"
    ):
        task(folder / "nowhere")
    with pytest.raises(DataError, match=r"a folder without folders; expected one for each class"):
        task(folder / "cat")
    (folder / "eel").mkdir()
    with pytest.raises(
        DataError, match=r"class folder 'eel' holds no image \(\.png, .*\); add some or remove it"
    ):
        task(folder)
    (folder / "eel" / "moray").mkdir()
    with pytest.raises(DataError, match=r"class folder 'eel' holds the folder 'moray'.*task\.test_data"):
        task(folder)


def test_texts_and_images_are_not_mistaken_for_each_other(tmp_path: Path, folder: Path) -> None:
    from datasets import Dataset

    with pytest.raises(
        DataError, match=r"task\.data = 'tweets': a corpus of texts; set task\.name = 'classify'"
    ):
        task("tweets")
    with pytest.raises(DataError, match=r"a folder of images\? Set task\.name = 'image'"):
        load_task(TaskConfig(data=str(folder)), 0)
    with pytest.raises(DataError, match=r"'digits': a set of images\? Set task\.name = 'image'"):
        load_task(TaskConfig(data="digits"), 0)
    Dataset.from_dict({"text": [png(1), png(2)], "label": [0, 1]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(
        DataError, match=r"column 'text' of train holds images, .*task\.name = 'image' and task\.image"
    ):
        load_task(TaskConfig(data=str(tmp_path / "x.parquet")), 0)
    with pytest.raises(
        ConfigError,
        match=r"task\.image = 'photo': only the task 'image' reads it, and task\.name = 'classify'",
    ):
        parse_config({"model": {"path": "x"}, "task": {"data": "tweets", "image": "photo"}})
    with pytest.raises(
        ConfigError, match=r"task\.max_length = \d+: only the tasks 'classify' and 'generate' read it"
    ):
        parse_config({"model": {"path": "x"}, "task": {"name": "image", "data": "digits", "max_length": 3}})
