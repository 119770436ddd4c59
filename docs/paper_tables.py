"""The published figures of FedRot-LoRA, from `recipes/paper/published.json`, a table for each sweep."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

PUBLISHED = Path(__file__).parent.parent / "recipes" / "paper" / "published.json"


def paper() -> str:
    """Every table under its title, with the sweep that makes it."""
    tables = {name: table for name, table in json.loads(PUBLISHED.read_text("utf-8")).items() if name != "source"}
    return "\n".join(section(name, table) for name, table in tables.items())


def section(name: str, table: dict[str, Any]) -> str:
    """One table."""
    columns = next(iter(table.get("columns", {}).values()), ["published"])
    lines = [["", *map(str, columns)], ["---", *["---:"] * len(columns)]]
    for row in table["rows"]:
        where = ", ".join(f"{value} {key.rpartition('.')[2]}" for key, value in row.get("at", {}).items())
        cells = [
            shown(value) + (f" ± {shown(row['sd'][str(column)])}" if str(column) in row.get("sd", {}) else "")
            for column, value in zip(columns, row["values"], strict=True)
        ]
        lines.append([f"`{row['variant']}`" + (f", {where}" if where else ""), *cells])
    body = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"### {table['title']}\n\nSweep: `recipes/paper/{name}.toml`\n\n{body}\n"


def shown(value: float) -> str:
    """Shares without their leading zero, small numbers with an exponent."""
    return f"{value:.2e}" if value < 0.02 else f"{value:.4g}".removeprefix("0")
