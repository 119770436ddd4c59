"""Tables about recipes, methods, partitions and exit codes, made from the code; a page names one in a marker."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import textwrap
from collections.abc import Callable, Iterator
from typing import Any, Literal, Union, get_args, get_origin

from evaluation_tables import evaluators, generation  # beside this file; MkDocs puts its folder on the path
from experiments_charts import score_by_bytes
from experiments_tables import experiment, private
from mkdocs.exceptions import PluginError
from models_tables import models as models_tried
from paper_tables import paper
from pydantic import BaseModel
from scale_tables import many_clients
from secure_tables import secure_aggregation
from speed_tables import speed

import fedrot
from fedrot import config, errors, partition_options
from fedrot.methods import Laws
from fedrot.methods.options import expected, option_hints

FUTURE = "from __future__ import annotations"
MEANINGS = {
    "seed": "Seed of the run. Everything random is derived from it.",
    "model.attention": "Attention implementation of transformers; `auto` leaves the choice to it.",
    "lora.rank": "Rank r of every site. At most the smaller side of the smallest adapted layer.",
    "lora.alpha": "The update is `(alpha / rank) b a`.",
    "lora.dropout": "Dropout on the input of the LoRA branch while training.",
    "lora.layers": "`all`, or the last or first k blocks of each stack, such as `last:3`.",
    "lora.rslora": "Scale by `alpha / sqrt(rank)` instead.",
    "lora.train_head": "Train and average the classification head as well.",
    "task.test_data": "A separate source of test examples, named like `data`.",
    "task.text": "Column of the text.",
    "task.text_pair": "Column of the second text, for tasks of pairs.",
    "task.label": "Column of the class, of texts and images.",
    "task.max_length": "Tokens kept of a text.",
    "task.test_fraction": "Share split off for testing where the source has no test split.",
    "task.validation_fraction": "Share of training split off for validation; 0 for none.",
    "task.max_train": "Keep a stratified subsample of at most so many training examples.",
    "task.max_test": "The same for test.",
    "task.max_validation": "The same for validation.",
    "partition.kind": "How training examples are dealt to clients; see [Your own data](own-data.md#partitions).",
    "method.name": "Aggregation method; see [All methods](methods.md).",
    "train.optimizer": "Local optimiser; it starts afresh every round.",
    "train.lr": "Learning rate of the factors.",
    "train.head_lr": "Learning rate of the head; `lr` unless set.",
    "train.momentum": 'Used by `optimizer = "momentum"`.',
    "train.weight_decay": "Weight decay of the optimiser.",
    "train.local_steps": "Local steps a round, 10 unless this or `local_epochs` is set.",
    "train.local_epochs": "Passes over the client's own examples a round, instead of `local_steps`.",
    "train.batch_size": "Examples of one client in a step.",
    "train.accumulate": "Batches added up before a step.",
    "train.clip": "Largest norm of one client's gradient, or `off`.",
    "train.precision": "Arithmetic of the base model. Adapters stay in float32.",
    "train.device": "`auto` is the first GPU if there is one.",
    "train.cache_frozen": "Keep the states that enter the first adapted block; needs `lora.layers`.",
    "train.cache_limit_mb": "Refuse a cache larger than so many MiB.",
    "federation.rounds": "Rounds of training and aggregation.",
    "federation.fraction": "Share of the clients that take part in a round.",
    "federation.weighting": "Weights of the mean: training examples of a client, or all alike.",
    "federation.evaluate_every": "Evaluate every so many rounds, and in the last.",
    "federation.evaluate_batch": "Examples in an evaluation batch.",
    "engine.name": "`local`: in this process. `flower`: over Flower's messages; see [Real federations](flower.md).",
    "output.report": "Write `report.html` and the plots at the end.",
    "output.keep_checkpoints": "Newest checkpoints to keep.",
}
"""Meanings of keys that have no docstring in `fedrot.config`."""


def rows(*header: str, body: list[list[str]]) -> str:
    lines = [list(header), ["---"] * len(header), *body]
    return (
        "\n".join(f"| {' | '.join(cell.replace('|', '&#124;') for cell in line)} |" for line in lines) + "\n"
    )


def recipe() -> str:
    """One table per section, from the pydantic models and the docstrings of their attributes."""
    docs = attribute_docstrings()
    unused, parts = set(MEANINGS), []
    for name, field in config.RunConfig.model_fields.items():
        section = field.annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            parts.append((name, [(name, field)]))
            continue
        parts.append((name, [(f"{name}.{key}", inner) for key, inner in section.model_fields.items()]))
    text = []
    for name, keys in parts:
        body = []
        for key, field in keys:
            meaning = docs.get(key) or MEANINGS.get(key)
            if meaning is None:
                raise PluginError(
                    f"recipe key {key!r} has no meaning: give it a docstring in fedrot/config"
                )
            if key not in docs:
                unused.discard(key)
            body.append([f"`{key.split('.')[-1]}`", kind_of(field), default_of(field), meaning])
        title = f"## `[{name}]`" if "." in keys[0][0] else f"## `{name}`"
        text.append(f"{title}\n\n{rows('key', 'value', 'default', 'meaning', body=body)}")
    if unused:
        raise PluginError(
            f"docs/page_tables.py explains keys that recipes do not have: {', '.join(sorted(unused))}"
        )
    return "\n".join(text)


def attribute_docstrings() -> dict[str, str]:
    """`section.key` to the string below the key's definition."""
    fields = config.RunConfig.model_fields
    owners = {"RunConfig": ""} | {f.annotation.__name__: f"{n}." for n, f in fields.items() if f.annotation}
    sections = (config.sections, config.task, config.private, config.compat)
    source = "\n".join(inspect.getsource(module).replace(FUTURE, "") for module in sections)
    classes = {n.name: n for n in ast.parse(source).body if isinstance(n, ast.ClassDef)}
    found = {}
    for owner, prefix in owners.items():
        for node, after in (
            zip(classes[owner].body, classes[owner].body[1:], strict=False) if owner in classes else ()
        ):
            if (
                isinstance(node, ast.AnnAssign)
                and isinstance(after, ast.Expr)
                and isinstance(after.value, ast.Constant)
            ):
                found[f"{prefix}{ast.unparse(node.target)}"] = " ".join(str(after.value.value).split())
    return found


def kind_of(field: Any) -> str:
    limits = []
    for limit in field.metadata:
        for attribute, sign in (("gt", ">"), ("ge", ">="), ("lt", "<"), ("le", "<=")):
            if (value := getattr(limit, attribute, None)) is not None:
                limits.append(f"{sign} {value}")
    return " ".join([words(field.annotation), ", ".join(limits)]).strip()


def words(hint: Any) -> str:
    if get_origin(hint) is Literal:
        return " or ".join(f"`{choice}`" for choice in get_args(hint))
    if get_origin(hint) in (Union, type(int | str)):
        return " or ".join(words(part) for part in get_args(hint) if part is not type(None))
    if get_origin(hint) is dict:
        return f"table of {words(get_args(hint)[1])}s"
    if get_origin(hint) is list:
        return f"list of {words(get_args(hint)[0])}s"
    return {int: "integer", float: "number", str: "text", bool: "true or false"}[hint]


def default_of(field: Any) -> str:
    if field.is_required():
        return "required"
    return shown(field.default)


def shown(value: object) -> str:
    if value is None:
        return "unset"
    return f"`{str(value).lower()}`" if isinstance(value, bool) else f"`{value}`"


def methods() -> str:
    """What every method trains, sends and promises."""
    laws = [law.name for law in dataclasses.fields(Laws) if len(held(law.name)) > 1]
    marks = ("–", "yes")
    body = []
    for name, cls in fedrot.methods().items():
        travels = [" and ".join(k for k in "ab" if getattr(cls().uploads(n), k)) for n in (1, 2)]
        sent = travels[0] if travels[0] == travels[1] else f"{travels[0]} (odd rounds), {travels[1]} (even)"
        promises = [getattr(cls.laws, law) for law in laws]
        body.append(
            [f"[`{name}`](#{name})", sent, *(p if isinstance(p, str) else marks[p] for p in promises)]
        )
    return rows("method", "uploads", *(law.replace("_", " ") for law in laws), body=body)


def laws() -> str:
    """What each law means, from the docstring of `Laws`, and whether all methods agree on it."""
    who = {(True,): "all methods", (False,): "no method so far"}
    body = [
        [law.replace("_", " "), meaning, who.get(tuple(held(law)), "see above")]
        for law, meaning in attributes(Laws).items()
    ]
    return rows("law", "promise", "who", body=body)


def held(law: str) -> set[bool]:
    """The values that methods declare for a law."""
    return {getattr(cls.laws, law) for cls in fedrot.methods().values()}


def method_options() -> str:
    """A section per method: its summary and its options."""
    parts = []
    for name, cls in fedrot.methods().items():
        about = inspect.cleandoc(cls.__doc__ or "").split("\nAttributes:")[0].strip()
        parts.append(f"### `{name}`\n\n{about}\n")
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        means = {key: text for base in reversed(cls.__mro__) for key, text in attributes(base).items()}
        body = [
            [f"`{option}`", expected(hint), shown(defaults[option]), means[option]]
            for option, hint in option_hints(cls).items()
        ]
        parts.append(rows("option", "value", "default", "meaning", body=body) if body else "No options.\n")
    return "\n".join(parts)


def attributes(cls: type) -> dict[str, str]:
    """The `Attributes:` section of a docstring."""
    section = inspect.cleandoc(cls.__doc__ or "").partition("Attributes:\n")[2]
    items = re.split(r"^(\w+): ", textwrap.dedent(section), flags=re.M)[1:]
    return {name: " ".join(text.split()) for name, text in zip(items[::2], items[1::2], strict=True)}


def partitions() -> str:
    """Every kind of partition with its own options."""
    body = []
    for kind, cls in partition_options.kinds().items():
        parameters = dict(inspect.signature(cls.__init__).parameters)
        parameters.pop("self")
        counted = "num_partitions" in parameters
        for set_elsewhere in ("num_partitions", "min_partition_size"):
            parameters.pop(set_elsewhere, None)
        body.append(
            [f"`{kind}`", "needed" if counted else "fixed by the kind", "<br>".join(options(parameters))]
        )
    return rows("kind", "`federation.clients`", "options (default)", body=body)


def options(parameters: dict[str, inspect.Parameter]) -> Iterator[str]:
    set_by_fedrot = {"partition_by": '`"label"`', "seed": "derived from `seed`"}
    for key, parameter in parameters.items():
        default = set_by_fedrot.get(key)
        if default is None:
            default = "required" if parameter.default is parameter.empty else shown(parameter.default)
        yield f"`{key}`: {partition_options._expected(parameter.annotation)} ({default})"


def exit_codes() -> str:
    """From the error classes."""
    body = [["0", "", "Done."]]
    for cls in (
        errors.ConfigError,
        *(c for c in errors.FedrotError.__subclasses__() if c is not errors.ConfigError),
    ):
        body.append([str(cls.exit_code), f"`{cls.__name__}`", " ".join((cls.__doc__ or "").split())])
    body.append(
        ["130", "", "Interrupted (Ctrl-C or SIGTERM). Finished rounds are kept; continue with `--resume`."]
    )
    return rows("code", "error", "meaning", body=sorted(body, key=lambda row: int(row[0])))


TABLES: dict[str, Callable[..., str]] = {
    "recipe": recipe,
    "methods": methods,
    "laws": laws,
    "method-options": method_options,
    "partitions": partitions,
    "models": models_tried,
    "exit-codes": exit_codes,
    "evaluators": evaluators,
    "generation": generation,
    "experiment": experiment,
    "score-by-bytes": score_by_bytes,
    "private-experiment": private,
    "secure-aggregation": secure_aggregation,
    "speed": speed,
    "many-clients": many_clients,
    "paper": paper,
}
