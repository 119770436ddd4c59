"""Our figures beside published ones."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from pydantic import Field

from fedrot.comparison.options import Setting, show_value
from fedrot.comparison.results import MIXED
from fedrot.comparison.stats import estimate
from fedrot.config.load import parse_as
from fedrot.config.section import Section
from fedrot.errors import ConfigError, OutputError, nearest
from fedrot.report.digits import MISSING, decimal
from fedrot.report.scores import Score

Json = Mapping[str, Any]


class PublishedRow(Section):
    """Published values of a variant, one for each column."""

    variant: str
    at: dict[str, Any] = Field(default_factory=dict[str, Any])
    """Recipe keys that hold for the whole row."""
    values: list[float]
    sd: dict[str, float] = Field(default_factory=dict[str, float])
    """Standard deviations over seeds, by column, where they are published."""


class PublishedTable(Section):
    """A published table: `rows` of variants, `columns` the values of one recipe key."""

    title: str
    metric: str
    """The figure, as `results.json` names it, or `TASK:SCORE` of what `fedrot eval` found of the kept adapters."""
    columns: dict[str, list[Any]] = Field(default_factory=dict[str, list[Any]])
    rows: list[PublishedRow]


@dataclass(frozen=True)
class Line:
    """One published figure with ours: a mean over seeds with the half-width of its interval, if there are any."""

    where: str
    variant: str
    published: float
    sd: float | None
    ours: float | None
    half: float | None


def read_published(path: str | Path, name: str) -> PublishedTable:
    """A table of a file of published figures.

    Args:
        path: a JSON file of tables.
        name: of the table; for a sweep its file's name without `.toml`.

    Raises:
        ConfigError: unreadable file, no such table, or rows that do not fit its columns.
    """
    tables = _tables(path)
    if name not in tables:
        raise ConfigError(
            f"--published '{path}': no table [{name}], named like the sweep; {nearest(name, tables)}"
        )
    table = parse_as(PublishedTable, tables[name])
    if len(table.columns) > 1:
        raise ConfigError(f"'{path}': [{name}] columns: expected one recipe key with its values")
    count = len(next(iter(table.columns.values()), [None]))
    for row in table.rows:
        if len(row.values) != count:
            raise ConfigError(
                f"'{path}': [{name}] {row.variant}: {len(row.values)} values for {count} columns; give one each"
            )
    return table


def _tables(path: str | Path) -> dict[str, Any]:
    try:
        found = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"--published '{path}': cannot be read as JSON ({error}); give a file of tables"
        ) from None
    if not isinstance(found, dict):
        raise ConfigError(f"--published '{path}': expected an object of tables by name")
    tables = cast(dict[str, Any], found)
    return {name: table for name, table in tables.items() if isinstance(table, dict)}


def beside(table: PublishedTable, results: Json, directory: Path | None = None) -> list[Line]:
    """Every published figure with ours, where the comparison has that variant at that point.

    Args:
        table: the published figures.
        results: as in `results.json`.
        directory: of the comparison, for what `fedrot eval` found of `adapters/KEY`.
    """
    found: list[Line] = []
    for setting, row, value in _cells(table):
        arm = _arm(results, row.variant, setting)
        mean = None if arm is None else _mean(arm, table.metric, results, directory)
        half = None if mean is None or mean["low"] is None else mean["high"] - mean["mean"]
        column = str(next((setting[key] for key in table.columns), ""))
        where = ", ".join(f"{key.rpartition('.')[2]} {show_value(v)}" for key, v in setting.items())
        ours = None if mean is None else mean["mean"]
        found.append(Line(where, row.variant, value, row.sd.get(column), ours, half))
    return found


def _cells(table: PublishedTable) -> Iterator[tuple[Setting, PublishedRow, float]]:
    for row in table.rows:
        if not table.columns:
            yield dict(row.at), row, row.values[0]
        for key, columns in table.columns.items():
            for column, value in zip(columns, row.values, strict=True):
                yield {**row.at, key: column}, row, value


def _arm(results: Json, variant: str, setting: Setting) -> Json | None:
    """The arm of that variant whose point has all these values; of a sweep without grid, its one point."""
    for arm in results["arms"]:
        if arm["variant"] == variant and all(
            arm["point"].get(key) == value for key, value in setting.items()
        ):
            return arm
    return None


def _mean(arm: Json, metric: str, results: Json, directory: Path | None) -> Json | None:
    if ":" in metric:
        return None if directory is None else _evaluated(arm, metric, directory)
    found = arm["mean"].get(metric)
    if found is None and results.get("metric", {}).get("name") == MIXED and metric == "accuracy":
        return arm["mean"].get(MIXED)
    return found


def _evaluated(arm: Json, metric: str, directory: Path) -> Json | None:
    """The mean over seeds of a score in the adapters' `eval.json`, each file's last; None unless every seed has it."""
    task, _, score = metric.partition(":")
    values: list[float] = []
    for key in arm["keys"].values():
        path = directory / "adapters" / key / "eval.json"
        if not path.is_file():
            return None
        try:
            records = json.loads(path.read_text("utf-8"))["results"]
            found = [r["scores"][score] for r in records if r["task"] == task and score in r["scores"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise OutputError(f"'{path}': expected results of fedrot eval ({error}); run it again") from error
        if not found:
            return None
        values.append(float(found[-1]))
    mean = estimate(values)
    return None if mean is None else mean.to_json()


HEADERS = ["where", "variant", "published", "ours", "difference"]


def published_rows(table: PublishedTable, results: Json, directory: Path | None = None) -> list[list[str]]:
    """`HEADERS` for every published figure; differences of scores in points. A dash where we have no figure."""
    score, share = Score(table.metric), not table.metric.startswith("error")
    rows: list[list[str]] = []
    for line in beside(table, results, directory):
        spread = "" if line.sd is None else f" ± {_shown(line.sd, share)}"
        ours = MISSING if line.ours is None else _shown(line.ours, share)
        half = "" if line.half is None else f" ± {_shown(line.half, share)}"
        if line.ours is None:
            apart = MISSING
        else:
            apart = (
                score.change(line.ours - line.published) if share else f"{line.ours / line.published:.3g} x"
            )
        rows.append(
            [line.where or MISSING, line.variant, _shown(line.published, share) + spread, ours + half, apart]
        )
    return rows


def _shown(value: float, share: bool) -> str:
    return Score().show(value) if share else decimal(value)


def published_markdown(table: PublishedTable, rows: Sequence[Sequence[str]]) -> str:
    """The table as Markdown, with what its columns are."""
    lines = [HEADERS, ["---", "---", *["---:"] * 3], *rows]
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return (
        f"# {table.title}\n\n{body}\n\nPublished: ± is the standard deviation over seeds. Ours: ± is half a 95% "
        "t-interval over seeds; the last round, where published figures are the best of all rounds.\n"
    )
