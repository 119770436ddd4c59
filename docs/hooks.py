"""What the pages say about recipes, methods, partitions and exit codes comes from the code; what they show is checked.

A page holds a marker such as `<!-- fedrot:recipe -->`, which is replaced by a table. Every fenced block of TOML is
validated as a part of a recipe, every `fedrot` command against the command line, and every Python block is parsed and
its imports of fedrot tried. A build fails where page and code disagree.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from page_checks import check_blocks  # beside this file; MkDocs puts its folder on the path
from page_tables import TABLES

from fedrot import errors


def on_pre_build(config: Any) -> None:
    """Check the README too, whose commands are the first that anyone types."""
    readme = Path(config.config_file_path).parent / "README.md"
    check_blocks(readme.read_text("utf-8"), readme.name)


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Fill in the tables, then check every block of code."""
    where = page.file.src_path

    def table(match: re.Match[str]) -> str:
        if match[1] not in TABLES:
            raise PluginError(f"{where}: marker {match[1]!r}; {errors.nearest(match[1], TABLES)}")
        return TABLES[match[1]](*match[2].split())

    check_blocks(markdown, where)
    return re.sub(r"<!-- fedrot:([a-z-]+)((?: [a-z-]+)?) -->", table, markdown)
