"""The command line as scripts and newcomers meet it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from typer.testing import CliRunner

from fedrot import __version__
from fedrot.cli import app
from fedrot.config import RunConfig
from tests.processes import fedrot, start

Make = Callable[..., RunConfig]


def as_a_module(*arguments: str) -> subprocess.CompletedProcess[str]:
    """A process that begins with nothing imported."""
    command = [sys.executable, "-m", "fedrot", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=180, check=False)


@pytest.fixture
def recipe_file(recipe: Make, tmp_path: Path) -> Path:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe().to_toml(), "utf-8")
    return path


def test_run_report_export_and_their_refusals(recipe_file: Path, tmp_path: Path) -> None:
    arguments = ["run", str(recipe_file), "--out", str(tmp_path / "run"), "--set", "output.report=true"]
    done = as_a_module(*arguments)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert any(
        line.startswith("round 1/2  loss ") and "client-steps/s" in line and "ETA" in line for line in lines
    )
    assert "final test accuracy" in done.stdout
    assert f"report:  {tmp_path / 'run' / 'report.html'}" in done.stdout
    assert f"adapter: {tmp_path / 'run' / 'adapter'}" in done.stdout
    assert "\x1b" not in done.stdout, "no terminal, no escape codes"
    again = fedrot("run", recipe_file, "--out", tmp_path / "run")
    assert again.returncode == 5
    assert "already holds a run" in again.stderr
    assert "Traceback" not in again.stderr
    (tmp_path / "run" / "report.html").unlink()
    assert fedrot("report", tmp_path / "run").returncode == 0
    assert (tmp_path / "run" / "report.html").exists()
    merged = fedrot("export", tmp_path / "run", "--merge")
    assert merged.returncode == 0, merged.stderr
    assert (tmp_path / "run" / "merged" / "model.safetensors").exists()
    nothing = fedrot("export", tmp_path)
    assert nothing.returncode == 5
    assert "holds no run" in nothing.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--set", "method.strenght=0.3"], 2, "did you mean 'strength'"),
        (["--set", "method.strength=1.5"], 2, "method.strength = 1.5"),
        (["--set", "train.lr"], 2, "expected section.key=value"),
        (["--set", "task.data=missing.csv"], 3, "missing.csv"),
        (["--set", "lora.rank=500"], 4, "lora.rank = 500"),
    ],
)
def test_exit_codes_tell_what_went_wrong(
    recipe_file: Path, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    done = fedrot("run", recipe_file, "--out", tmp_path / "run", *arguments)
    assert done.returncode == code, done.stderr
    assert said in " ".join(done.stderr.split())
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "run").exists()


def test_ctrl_c_finishes_cleanly_and_resumes(recipe: Make, tmp_path: Path) -> None:
    path = tmp_path / "recipe.toml"
    path.write_text(recipe(federation__rounds=500).to_toml(), "utf-8")
    target = tmp_path / "run"
    process = start("run", path, "--out", target)
    deadline = time.monotonic() + 120
    while not (target / "checkpoint" / "round-000003").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.signal(signal.SIGINT)
    stopped = process.wait(60)
    assert stopped.returncode == 130, stopped.stderr
    assert f"--resume --out {target}" in " ".join(stopped.stderr.split())
    assert "Traceback" not in stopped.stderr
    assert (target / "adapter" / "adapter_model.safetensors").exists()
    rounds = max(int(path.name.removeprefix("round-")) for path in (target / "checkpoint").glob("round-*"))
    done = fedrot("run", "--resume", "--out", target, "--set", f"federation.rounds={rounds}")
    assert done.returncode == 0, done.stderr
    assert "resuming after round" in done.stderr


def test_ctrl_c_names_a_command_that_works(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fedrot.engines.run.run", stopped)
    monkeypatch.setattr("fedrot.cli.stop_like_an_interrupt", lambda: None)
    target = tmp_path / ("long [bold] name" * 10)
    command = ["run", str(recipe_file), "--out", str(target)]
    early = CliRunner().invoke(app, command)
    assert early.exit_code == 130
    assert early.stderr == "interrupted before anything was written; there is nothing to resume\n"
    assert CliRunner().invoke(app, command[:2]).stderr == early.stderr
    target.mkdir()
    (target / "config.toml").write_text("", "utf-8")
    late = CliRunner().invoke(app, command)
    assert late.stderr.endswith(f"continue with `fedrot run --resume --out '{target}'`\n")


def test_the_version_is_said() -> None:
    assert as_a_module("--version").stdout == f"fedrot {__version__}\n"


def test_help_shows_examples_and_methods_are_listed() -> None:
    shown = fedrot("run", "--help")
    assert shown.returncode == 0
    assert "fedrot run recipes/demo.toml --set method.name=fedit" in " ".join(shown.stdout.split())
    listed = fedrot("methods")
    assert listed.returncode == 0
    for name in ("fedit", "fedrot", "ffa", "rolora", "random-rotation", "rescale"):
        assert name in listed.stdout
    assert fedrot("run").returncode == 2
    assert fedrot("no-such-command").returncode == 2


def commands(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every command with the words that call it."""
    yield path, command
    for name, below in getattr(command, "commands", {}).items():
        yield from commands(below, (*path, name))


def test_help_says_what_every_argument_is() -> None:
    found = [
        (path, argument)
        for path, command in commands(typer.main.get_command(app))
        for argument in command.params
        if argument.param_type_name == "argument"
    ]
    assert len(found) > 8
    for path, argument in found:
        shown = CliRunner().invoke(app, [*path, "--help"], env={"COLUMNS": "200"}).output
        expected = (argument.help or "no help: another click than constraints.txt has?").replace("\\[", "[")
        assert expected in shown, path
