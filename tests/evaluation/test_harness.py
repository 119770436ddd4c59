"""What lm-eval is handed, and what is made of its answer; a module in its place records the call."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from fedrot.errors import ConfigError, DataError
from fedrot.evaluation import command, harness
from fedrot.evaluation.command import evaluate_directory
from fedrot.evaluation.options import Options
from fedrot.evaluation.place import Loaded
from fedrot.model.generation import Sampling

ANSWER = {
    "results": {"arc_easy": {"alias": "arc_easy", "sample_len": 4, "acc,none": 0.5, "acc_stderr,none": 0.1}},
    "n-samples": {"arc_easy": {"original": 100, "effective": 4}},
    "n-shot": {"arc_easy": 2},
    "versions": {"arc_easy": 1.0},
}


class TaskManager:
    all_tasks = ("arc_easy", "gsm8k", "humaneval")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """lm-eval's modules, and what `simple_evaluate` was called with."""
    made: list[dict[str, Any]] = []

    def simple_evaluate(**settings: Any) -> dict[str, Any]:
        made.append(settings)
        return ANSWER

    contents = {
        "lm_eval": {"simple_evaluate": simple_evaluate},
        "lm_eval.tasks": {"TaskManager": TaskManager},
        "lm_eval.models": {},
        "lm_eval.models.huggingface": {"HFLM": lambda **settings: settings},
    }
    for name, members in contents.items():
        module = ModuleType(name)
        vars(module).update(members)
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(harness, "is_installed", lambda: True)
    monkeypatch.setattr(harness, "version", lambda: "0.4.13")
    return made


def evaluated(llama: tuple[Any, Any], options: Options) -> Any:
    loaded = Loaded(base=None, module=llama[0], tokenizer=llama[1])  # pyright: ignore[reportArgumentType]
    return harness.run_harness(loaded, "arc_easy", options, harness.check_tasks(["arc_easy"]))


def test_the_loaded_model_and_every_setting_are_handed_over(
    llama: tuple[Any, Any], calls: list[dict[str, Any]]
) -> None:
    sampling = Sampling(temperature=0.5, top_k=3, seed=9)
    [result] = evaluated(llama, Options(limit=4, k_shot=2, sampling=sampling, max_new_tokens=7, seed=5))
    [call] = calls
    assert call["model"] == {"pretrained": llama[0], "tokenizer": llama[1], "batch_size": 16}
    assert (call["tasks"], call["num_fewshot"], call["limit"]) == (["arc_easy"], 2, 4)
    generation = {"max_gen_toks": 7, "do_sample": True, "temperature": 0.5, "top_p": 1.0, "top_k": 3}
    assert call["gen_kwargs"] == generation
    assert (call["fewshot_random_seed"], call["torch_random_seed"]) == (5, 9)
    assert "confirm_run_unsafe_code" not in call
    assert (dict(result.scores), dict(result.standard_errors)) == ({"acc,none": 0.5}, {"acc,none": 0.1})
    assert (result.counts, result.evaluator) == ({"examples": 4}, "lm-eval")
    assert result.settings["k_shot"] == 2


def test_a_task_that_is_not_ours_goes_there_and_its_result_to_the_same_file(
    tiny_llama: Path, tmp_path: Path, calls: list[dict[str, Any]]
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "completion": "b"}\n', "utf-8")
    options = Options(data={"perplexity": str(rows)}, limit=4)
    out = tmp_path / "eval.json"
    evaluate_directory(tiny_llama, ["arc_easy", "perplexity"], options, out=out)
    evaluate_directory(tiny_llama, ["gsm8k"], out=out, harness_only=True)
    stored = json.loads(out.read_text("utf-8"))["results"]
    assert [(one["task"], one["evaluator"]) for one in stored[:2]] == [
        ("perplexity", "fedrot"),
        ("arc_easy", "lm-eval"),
    ]
    assert [call["tasks"] for call in calls] == [["arc_easy"], ["gsm8k"]]


def test_greedy_leaves_generation_to_the_task(llama: tuple[Any, Any], calls: list[dict[str, Any]]) -> None:
    evaluated(llama, Options())
    assert calls[0]["gen_kwargs"] is None


@pytest.mark.usefixtures("calls")
def test_a_task_that_neither_has_is_refused_with_the_nearest_of_both() -> None:
    with pytest.raises(ConfigError, match="neither fedrot nor lm-eval has it; did you mean 'arc_easy'"):
        harness.check_tasks(["arc_esy"])
    with pytest.raises(ConfigError, match="did you mean 'perplexity'"):
        harness.check_tasks(["perplexty"])


@pytest.mark.usefixtures("calls")
def test_what_lm_eval_raises_is_said_in_a_line(
    llama: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(error: Exception) -> Any:
        def simple_evaluate(**_: Any) -> None:
            raise error

        return simple_evaluate

    monkeypatch.setattr(sys.modules["lm_eval"], "simple_evaluate", fails(ConnectionError("no hub\nmore")))
    with pytest.raises(DataError, match=r"could not evaluate arc_easy: ConnectionError: no hub$"):
        evaluated(llama, Options())
    monkeypatch.setattr(sys.modules["lm_eval"], "simple_evaluate", fails(ValueError("unsafe code")))
    with pytest.raises(ConfigError, match="lm-eval refuses arc_easy: unsafe code"):
        evaluated(llama, Options())


def test_without_lm_eval_its_command_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(command.harness, "is_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install 'fedrot\[eval\]'"):
        evaluate_directory("anywhere", ["gsm8k"], harness_only=True)
    with pytest.raises(ConfigError, match=r"pip install 'fedrot\[eval\]'"):
        evaluate_directory("anywhere", ["arc_easy"])
