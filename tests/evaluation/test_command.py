"""`fedrot eval` from a directory to its results, over a tiny random language model."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from fedrot.cli import app
from fedrot.config import RunConfig, parse_config
from fedrot.errors import ConfigError, DataError, FedrotError, ModelError, OutputError
from fedrot.evaluation import asking, functional, problems
from fedrot.evaluation.command import evaluate_directory
from fedrot.evaluation.functional import Problem
from fedrot.evaluation.generation import Completions
from fedrot.evaluation.options import Options, parse_data
from fedrot.evaluation.place import Place, open_place
from fedrot.model.generation import Sampling


def write(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return str(path)


@pytest.fixture(scope="module")
def adapter(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A PEFT adapter of the tiny model whose updates are not small."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    path = tmp_path_factory.mktemp("adapter")
    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        settings = LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], task_type="CAUSAL_LM")
        peft = get_peft_model(model, settings)
        for name, parameter in peft.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.5)
    peft.save_pretrained(str(path))
    return path


@pytest.fixture
def place(adapter: Path, tmp_path: Path) -> Path:
    """The adapter in a directory of its own, so that results start afresh."""
    for file in adapter.iterdir():
        (tmp_path / "adapter").mkdir(exist_ok=True)
        (tmp_path / "adapter" / file.name).write_bytes(file.read_bytes())
    return tmp_path / "adapter"


@pytest.fixture
def pairs(tmp_path: Path) -> str:
    rows = [
        {"prompt": "Say a.", "completion": "aaa"},
        {"prompt": "Say more.", "completion": "b c b c, so it is"},
    ]
    return write(tmp_path / "pairs.jsonl", rows)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading a model would fail the test."""

    def load(*_: object) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Place, "load", load)


def answers(monkeypatch: pytest.MonkeyPatch, texts: Sequence[Sequence[str]]) -> list[Sequence[str]]:
    """Have the model say these, and return what it is asked."""
    asked: list[Sequence[str]] = []

    def complete(_: Any, __: Any, prompts: Sequence[str], *___: Any, **____: Any) -> Completions:
        asked.append(prompts)
        return Completions(tuple(map(tuple, texts)), 10, 2.0, 5)

    monkeypatch.setattr(asking, "complete", complete)
    return asked


def stored(place: Path) -> list[dict[str, Any]]:
    return json.loads((place / "eval.json").read_text("utf-8"))["results"]


def slow_perplexity(base: Path, adapter: Path, pairs: str) -> float:
    """By definition, one example at a time, with PEFT's own adapter layers."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), str(adapter)
    ).eval()
    total, count = 0.0, 0
    for line in Path(pairs).read_text("utf-8").splitlines():
        row = json.loads(line)
        prompt, answer = tokenizer(row["prompt"])["input_ids"], tokenizer(row["completion"])["input_ids"]
        ids = torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]])
        with torch.no_grad():
            likely = model(ids).logits[0, :-1].double().log_softmax(-1)
        each = likely.gather(1, ids[0, 1:, None])[len(prompt) - 1 :]
        total, count = total - float(each.sum()), count + len(each)
    return float(torch.tensor(total / count, dtype=torch.float64).exp())


def test_perplexity_is_that_of_the_adapted_model_by_definition(
    tiny_llama: Path, place: Path, pairs: str
) -> None:
    options = Options(data={"perplexity": pairs})
    [result] = evaluate_directory(place, ["perplexity"], options, base=str(tiny_llama))
    expected = slow_perplexity(tiny_llama, place, pairs)
    assert result.scores["perplexity"] == pytest.approx(expected, rel=1e-4)
    assert result.counts == {"examples": 2, "answer_tokens": 22, "truncated": 0, "dropped": 0}


def test_an_adapter_beside_narrow_weights_and_one_added_to_them_say_the_same(
    tiny_llama: Path, place: Path, pairs: str
) -> None:
    options = Options(data={"perplexity": pairs})
    wide, narrow = (
        evaluate_directory(place, ["perplexity"], options, base=str(tiny_llama), precision=precision)[0]
        for precision in ("float32", "bfloat16")
    )
    assert narrow.scores["perplexity"] == pytest.approx(wide.scores["perplexity"], rel=0.1)
    assert narrow.scores["perplexity"] != wide.scores["perplexity"]


def test_a_merged_model_needs_no_base_and_scores_alike(tiny_llama: Path, place: Path, pairs: str) -> None:
    options = Options(data={"perplexity": pairs})
    [with_adapter] = evaluate_directory(place, ["perplexity"], options, base=str(tiny_llama))
    merged = place.parent / "merged"
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(tiny_llama, dtype=torch.float32)
    PeftModel.from_pretrained(model, str(place)).merge_and_unload().save_pretrained(merged)
    AutoTokenizer.from_pretrained(tiny_llama).save_pretrained(merged)
    [whole] = evaluate_directory(merged, ["perplexity"], options)
    assert whole.scores["perplexity"] == pytest.approx(with_adapter.scores["perplexity"], rel=1e-5)
    with pytest.raises(ConfigError, match="is a whole model and needs none"):
        evaluate_directory(merged, ["perplexity"], options, base="elsewhere")


@pytest.fixture(scope="module")
def run_directory(tiny_llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two clients that learned to answer with capitals."""
    from fedrot.engines.run import run

    path = tmp_path_factory.mktemp("run")
    rows = [
        {"prompt": f"{letter * 3} in capitals?", "completion": letter.upper() * 3} for letter in "abcdefghij"
    ]
    return run(
        parse_config(
            {
                "model": {"path": str(tiny_llama)},
                "lora": {"rank": 2, "alpha": 4.0, "target_modules": ["q_proj", "v_proj"]},
                "task": {
                    "name": "generate",
                    "data": write(path / "data.jsonl", rows),
                    "max_length": 64,
                    "test_fraction": 0.4,
                },
                "partition": {"kind": "iid"},
                "method": {"name": "fedit"},
                "train": {"lr": 0.05, "local_steps": 4, "batch_size": 2, "device": "cpu"},
                "federation": {"clients": 2, "rounds": 1},
                "output": {"report": False, "dir": str(path / "run")},
            }
        )
    ).directory


def test_a_run_is_scored_on_its_own_test_split_as_it_was_while_training(run_directory: Path) -> None:
    summary = json.loads((run_directory / "summary.json").read_text("utf-8"))
    [result] = evaluate_directory(run_directory, ["perplexity"])
    assert result.counts["examples"] == 4
    assert result.scores["perplexity"] == pytest.approx(summary["final"]["perplexity"], rel=1e-5)
    assert result.scores["token_accuracy"] == pytest.approx(summary["final"]["token_accuracy"])


def test_a_run_writes_prompts_with_its_own_template(
    run_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = answers(monkeypatch, [["AAA"]] * 4)
    evaluate_directory(run_directory, ["exact-match"])
    assert all(prompt.endswith("in capitals?") for prompt in asked[0])
    with pytest.raises(ConfigError, match="the run has its own, 'auto'"):
        evaluate_directory(run_directory, ["rouge"], Options(template="alpaca"))


def test_a_run_without_its_adapter_says_how_to_write_it(run_directory: Path, tmp_path: Path) -> None:
    (tmp_path / "config.toml").write_text((run_directory / "config.toml").read_text("utf-8"), "utf-8")
    with pytest.raises(OutputError, match="fedrot export"):
        evaluate_directory(tmp_path, ["perplexity"])


def test_results_are_added_to_the_file_and_say_what_they_depend_on(
    tiny_llama: Path, place: Path, pairs: str
) -> None:
    data = {"rouge": pairs, "exact-match": pairs}
    sampling = Sampling(temperature=0.8, seed=3)
    options = Options(data=data, limit=1, samples=2, sampling=sampling, max_new_tokens=4)
    evaluate_directory(
        place, ["rouge"], Options(data={"rouge": pairs}, max_new_tokens=4), base=str(tiny_llama)
    )
    evaluate_directory(place, ["exact-match", "rouge"], options, base=str(tiny_llama))
    first, second, third = stored(place)
    assert [one["task"] for one in (first, second, third)] == ["rouge", "exact-match", "rouge"]
    assert set(first["scores"]) == {"rouge1", "rouge2", "rougeL"}
    assert (first["counts"]["examples"], third["counts"]["examples"]) == (2, 1)
    assert first["settings"]["decoding"] == "greedy"
    drawn = {"decoding": "sampling", "temperature": 0.8, "seed": 3, "samples": 2, "limit": 1}
    assert drawn.items() <= third["settings"].items()
    assert first["tokens_per_second"] > 0
    assert {"torch", "transformers", "peft", "fedrot"} <= set(first["versions"])
    assert third["standard_errors"]["rouge1"] is None  # of a single example


def test_gsm8k_counts_answers_found_strictly_and_flexibly(
    tiny_llama: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"question": f"What is {n} + {n}?", "answer": f"#### {2 * n}"} for n in range(4)]
    write(tmp_path / "gsm8k" / "test.jsonl", rows)
    write(
        tmp_path / "gsm8k" / "train.jsonl", [{**row, "question": f"{row['question']} Say."} for row in rows]
    )
    asked = answers(monkeypatch, [["#### 0"], ["it is 2."], ["#### 5"], ["no idea"]])
    options = Options(data={"gsm8k": str(tmp_path / "gsm8k")}, k_shot=2)
    [result] = evaluate_directory(
        place, ["gsm8k"], options, base=str(tiny_llama), completions=tmp_path / "said.jsonl"
    )
    said = [json.loads(line) for line in (tmp_path / "said.jsonl").read_text("utf-8").splitlines()]
    assert [one["exact_match,flexible-extract"] for one in said] == [1, 1, 0, 0]
    assert (said[1]["completions"], said[1]["reference"]) == (["it is 2."], "#### 2")
    assert result.scores == {"exact_match,strict-match": 0.25, "exact_match,flexible-extract": 0.5}
    assert [prompt.count("Question:") for prompt in asked[0]] == [3] * 4
    assert result.settings["k_shot"] == 2


def test_exact_match_finds_numbers_where_every_reference_is_marked(
    tiny_llama: Path, place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    marked = write(tmp_path / "m.jsonl", [{"question": "2 + 2?", "answer": "Four.\n#### 4"}])
    answers(monkeypatch, [["The answer is 4."]])
    [result] = evaluate_directory(
        place, ["exact-match"], Options(data={"exact-match": marked}), base=str(tiny_llama)
    )
    assert result.scores == {
        "exact_match": 0.0,
        "exact_match,strict-match": 0.0,
        "exact_match,flexible-extract": 1.0,
    }


def test_humaneval_runs_completions_and_counts_those_that_pass(
    tiny_llama: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def problem(name: str) -> Problem:
        return Problem(
            name, f"def {name}():\n", name, "def check(f):\n    assert f() == 1\n", "    return 1\n"
        )

    monkeypatch.setattr(functional, "load_problems", lambda: (problem("f"), problem("g")))
    monkeypatch.setattr(problems, "check_confinement", lambda _: None)
    ran: list[str] = []

    def run_tests(programs: Sequence[str], **_: Any) -> list[Any]:
        ran.extend(programs)
        return [
            functional.Outcome("passed" if "return 1" in program else "failed", "", "", 0.1)
            for program in programs
        ]

    monkeypatch.setattr(functional, "run_tests", run_tests)
    answers(monkeypatch, [["    return 1", "    return 2"], ["    pass", "    pass"]])
    options = Options(allow_code=True, samples=2, sampling=Sampling(temperature=0.5), limit=2)
    [result] = evaluate_directory(place, ["humaneval"], options, base=str(tiny_llama))
    assert result.scores == {"pass@1": 0.25}
    assert (result.counts["examples"], result.counts["passed"], result.counts["failed"]) == (2, 1, 3)
    assert result.settings["confinement"] == "namespaces"
    assert ran[0].endswith("check(f)\n")


@pytest.mark.usefixtures("no_model")
@pytest.mark.parametrize(
    ("tasks", "options", "error", "message"),
    [
        (["gsm8kk"], {}, ConfigError, "did you mean 'gsm8k'"),
        (["pass@1"], {}, ConfigError, "a figure of 'humaneval'"),
        ([], {}, ConfigError, "name at least one"),
        (["rouge", "rouge"], {}, ConfigError, "given twice"),
        (["humaneval"], {}, ConfigError, "--run-code"),
        (["perplexity"], {"k_shot": 2}, ConfigError, "--k-shot: none of perplexity takes it"),
        (["perplexity"], {"data": {"rouge": "x"}}, ConfigError, "this task is not in --tasks perplexity"),
        (["rouge"], {}, ConfigError, "is no run and so has no test split"),
        (["rouge"], {"data": {"rouge": "nowhere.jsonl"}}, DataError, "no such file"),
        (["gsm8k"], {"data": {"gsm8k": "nowhere.jsonl"}}, DataError, "no such file"),
        (["gsm8k"], {"limit": 0}, ConfigError, "--limit 0"),
        (["rouge"], {"max_new_tokens": 0}, ConfigError, "--max-new-tokens 0: expected at least 1"),
    ],
)
def test_what_cannot_be_done_is_refused_before_a_model_is_loaded(
    place: Path, tasks: list[str], options: dict[str, Any], error: type[FedrotError], message: str
) -> None:
    with pytest.raises(error, match=message):
        evaluate_directory(place, tasks, Options(**options))


@pytest.mark.usefixtures("no_model")
def test_completions_of_a_task_that_completes_nothing_are_refused(
    place: Path, pairs: str, tmp_path: Path
) -> None:
    options = Options(data={"perplexity": pairs})
    with pytest.raises(ConfigError, match="--completions: none of perplexity takes it"):
        evaluate_directory(place, ["perplexity"], options, completions=tmp_path / "said.jsonl")
    assert not (tmp_path / "said.jsonl").exists()


@pytest.mark.usefixtures("no_model")
def test_empty_splits_and_references_that_cannot_be_scored_are_refused(place: Path, tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.jsonl", [])
    with pytest.raises(DataError, match="holds no examples"):
        evaluate_directory(place, ["gsm8k"], Options(data={"gsm8k": empty}))
    unmarked = write(tmp_path / "unmarked.jsonl", [{"question": "q", "answer": "42"}])
    with pytest.raises(DataError, match="row 1 has no '#### NUMBER'"):
        evaluate_directory(place, ["gsm8k"], Options(data={"gsm8k": unmarked}, k_shot=0))
    foreign = write(tmp_path / "foreign.jsonl", [{"prompt": "q", "completion": "да"}])
    with pytest.raises(DataError, match="row 1 has no words of ASCII"):
        evaluate_directory(place, ["rouge"], Options(data={"rouge": foreign}))


def test_examples_that_do_not_fit_the_context_are_named(
    tiny_llama: Path, place: Path, tmp_path: Path
) -> None:
    rows = [{"question": "How many? " * 10, "answer": "Many.\n#### 4"}] * 5
    write(tmp_path / "gsm8k" / "test.jsonl", rows)
    write(tmp_path / "gsm8k" / "train.jsonl", [{**row, "question": "How far? " * 10} for row in rows])
    options = Options(data={"gsm8k": str(tmp_path / "gsm8k")}, k_shot=4)
    with pytest.raises(DataError, match=r"prompt of question 1 has \d+ tokens.*lower --k-shot"):
        evaluate_directory(place, ["gsm8k"], options, base=str(tiny_llama))


def test_directories_that_cannot_be_evaluated_are_told_apart(place: Path, tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="expected a run directory"):
        evaluate_directory(tmp_path / "nowhere", ["rouge"])
    settings = json.loads((place / "adapter_config.json").read_text("utf-8"))
    (place / "adapter_config.json").write_text(json.dumps({**settings, "task_type": "SEQ_CLS"}), "utf-8")
    with pytest.raises(ConfigError, match="nothing to generate: its task_type is 'SEQ_CLS'"):
        evaluate_directory(place, ["rouge"])
    (place / "adapter_config.json").write_text(json.dumps(settings), "utf-8")
    with pytest.raises(ConfigError, match="--device tpu: expected auto, cpu or cuda"):
        open_place(place).load("tpu")
    unnamed = {**settings, "base_model_name_or_path": None}
    (place / "adapter_config.json").write_text(json.dumps(unnamed), "utf-8")
    with pytest.raises(ModelError, match="give it with --base"):
        evaluate_directory(place, ["rouge"])


@pytest.mark.usefixtures("no_model")
def test_a_run_that_learned_classes_has_nothing_to_generate(
    recipe: Callable[..., RunConfig], tmp_path: Path
) -> None:
    (tmp_path / "config.toml").write_text(recipe().to_toml(), "utf-8")
    with pytest.raises(ConfigError, match="nothing to generate: its task is 'classify'"):
        evaluate_directory(tmp_path, ["gsm8k"])
    (tmp_path / "config.toml").unlink()
    (tmp_path / "config.json").write_text('{"architectures": ["BertModel"]}', "utf-8")
    (tmp_path / "fedrot.json").write_text('{"pooling": "mean", "labels": ["a", "b"]}', "utf-8")
    with pytest.raises(ConfigError, match="nothing to generate: it is a classifier"):
        evaluate_directory(tmp_path, ["gsm8k"])


def test_a_file_of_something_else_is_not_overwritten(
    tiny_llama: Path, place: Path, pairs: str, tmp_path: Path
) -> None:
    other = tmp_path / "other.json"
    other.write_text("[1, 2]", "utf-8")
    options = Options(data={"perplexity": pairs})
    with pytest.raises(OutputError, match="choose another --out"):
        evaluate_directory(place, ["perplexity"], options, base=str(tiny_llama), out=other)
    assert other.read_text("utf-8") == "[1, 2]"


def test_the_command_prints_scores_and_errors_with_their_exit_codes(
    tiny_llama: Path, place: Path, pairs: str
) -> None:
    line = [
        "eval",
        str(place),
        "--tasks",
        "rouge,perplexity",
        "--base",
        str(tiny_llama),
        "--max-new-tokens",
        "4",
    ]
    done = CliRunner().invoke(app, [*line, "--data", f"rouge={pairs}", "--data", f"perplexity={pairs}"])
    assert done.exit_code == 0, done.output
    assert "rougeL" in done.output
    assert str(place / "eval.json") in done.output
    assert len(stored(place)) == 2
    refused = CliRunner().invoke(app, [*line, "--top-p", "0.5"])
    assert isinstance(refused.exception, ConfigError)  # printed by `main`
    assert refused.exception.exit_code == 2


def test_data_is_given_as_task_and_path() -> None:
    assert parse_data(["a=b=c"]) == {"a": "b=c"}
    for text in ("a", "=b", "a="):
        with pytest.raises(ConfigError, match="expected TASK=PATH"):
            parse_data([text])
    with pytest.raises(ConfigError, match="given twice"):
        parse_data(["a=b", "a=c"])
