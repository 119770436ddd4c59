"""One frozen base model, many clients: LoRA layers and heads that hold a stack of clients at once.

With `G` clients loaded, a batch holds `G * n` examples, client after client. The base layers see one large batch; each
adapted layer views its input as `(G, n * length, d_in)` and adds every client's own low-rank product by two batched
products. Examples of different clients never meet, so gradients of the sum of the clients' losses are each client's
own. `G = 1` is the ordinary loop.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from fedrot.blocks import FrozenPrefix, Recomputed, TokenHead, first_block, forward
from fedrot.core.adapter import Adapter, Factors
from fedrot.core.alike import copied
from fedrot.core.dropout import keep_mask
from fedrot.core.linear import stacked_linear
from fedrot.core.token_loss import TokenScores
from fedrot.errors import ModelError
from fedrot.first_token import keep_first_token
from fedrot.model import BaseModel, Fold
from fedrot.model.attention import forget_padding, know_padding
from fedrot.model.dense import KINDS, facing, is_dense
from fedrot.tasks.batch import Batch


class StackedLoRA(nn.Module):
    """A frozen dense layer plus `scale * b @ a` of the client each row belongs to."""

    def __init__(self, base: nn.Module, site: int) -> None:
        super().__init__()
        self.base: Any = base
        self.site = site
        self.a: Tensor | None = None  # (G, rank, d_in)
        self.b: Tensor | None = None  # (G, d_out, rank)
        self.scale = 1.0
        self.dropout = 0.0
        self.seeds: Tensor | None = None  # (G,), set while training with dropout

    @property
    def weight(self) -> Tensor:
        """Of the base layer: some models look at its precision (T5)."""
        return self.base.weight

    def forward(self, x: Tensor) -> Tensor:
        """`x: (G * n, ..., d_in)` -> `(G * n, ..., d_out)`."""
        if self.a is None or self.b is None:
            return self.base(x)
        clients = self.a.shape[0]
        rows = x.reshape(clients, -1, x.shape[-1])
        mask = None
        if self.dropout and self.seeds is not None:
            mask = keep_mask(self.seeds + self.site, x, clients, self.dropout).view_as(rows)
        a, b = self.a.to(x.dtype), self.b.to(x.dtype)
        if not self.base.weight.is_floating_point():
            # Quantised: only the layer itself knows how to multiply by its weights.
            inner = (rows if mask is None else rows * mask) @ a.mT
            return self.base(x) + (inner @ b.mT).mul(self.scale).view(*x.shape[:-1], -1)
        weight = facing(self.base, self.base.weight)
        out = stacked_linear(rows, weight, self.base.bias, a, b, self.scale, mask)
        return out.view(*x.shape[:-1], -1)


class StackedDense(nn.Module):
    """A trained `nn.Linear` of the head, one weight and bias per client."""

    def __init__(self, base: nn.Linear) -> None:
        super().__init__()
        self.base = base
        self.weight: Tensor | None = None  # (G, out, in)
        self.bias: Tensor | None = None  # (G, out)

    def forward(self, x: Tensor) -> Tensor:
        """`x: (G * n, ..., in)` -> `(G * n, ..., out)`."""
        if self.weight is None:
            return self.base(x)
        rows = x.reshape(self.weight.shape[0], -1, x.shape[-1])
        out = rows @ self.weight.to(x.dtype).transpose(-1, -2)
        if self.bias is not None:
            out = out + self.bias.to(x.dtype).unsqueeze(1)
        return out.view(*x.shape[:-1], -1)


class StackedModel:
    """A base model whose adapted layers and head hold the tensors of the clients loaded last.

    The base module is changed in place: its adapted layers are wrapped. `close()` puts the original layers back.
    """

    def __init__(self, base: BaseModel, initial: Adapter, *, dropout: float = 0.0) -> None:
        self.base = base
        self.module = base.module
        self.layers: dict[str, StackedLoRA] = {}
        self.dense: dict[str, StackedDense] = {}
        self.loaded: Adapter | None = None
        for index, site in enumerate(initial.sites):
            layer = base.module.get_submodule(site)
            self.layers[site] = StackedLoRA(_expect_dense(site, layer), index)
            self.layers[site].scale = initial.scale
            self.layers[site].dropout = dropout
            base.module.set_submodule(site, self.layers[site])
        for name in dict.fromkeys(parameter.rpartition(".")[0] for parameter in initial.head):
            layer = base.module.get_submodule(name)
            if not isinstance(layer, nn.Linear):
                raise ModelError(
                    f"lora.modules_to_save reaches {name!r}, a {type(layer).__name__}; a trained head may hold "
                    "nn.Linear layers only: name another module, or set lora.train_head = false"
                )
            self.dense[name] = StackedDense(layer)
            base.module.set_submodule(name, self.dense[name])
        self.fold = Fold({site: layer.base for site, layer in self.layers.items()})
        first = first_block(base.module, list(initial.sites))
        self.prefix = FrozenPrefix(base.module, *first) if first else None
        # Dropout on the adapters' inputs is drawn for the whole batch: with it nothing may be left out.
        self.first_token = None if dropout else keep_first_token(base)
        know_padding(base.module)
        self.token_head = TokenHead(base.module, base.output_layer) if base.output_layer else None

    def load(
        self,
        adapter: Adapter,
        *,
        residual: Mapping[str, Factors] = MappingProxyType({}),
        a: bool = False,
        b: bool = False,
        head: bool = False,
    ) -> Adapter:
        """Hold a stack of clients `(G, ...)`, copying the parts to be trained and viewing the others.

        Args:
            adapter: the stack; it carries no residual of its own, since all its clients share the base weights.
            residual: of all clients alike, not stacked; folded into the base weights of the adapted layers.
            a, b, head: what is to be trained.

        Returns:
            The adapter held: its tensors are leaves, and those of trained parts require gradients.
        """
        if adapter.residual:
            raise ModelError(
                "the stacked adapter carries a residual, which training would leave out: clients loaded together share "
                "one, to be given as `residual`, not stacked"
            )
        self.fold.hold(residual, adapter.scale)

        own = copied(adapter.sites, a=a, b=b)
        sites = {
            site: Factors(f.a.detach().requires_grad_(a), f.b.detach().requires_grad_(b))
            for site, f in own.items()
        }
        heads = {
            name: t.detach().clone().requires_grad_() if head else t.detach()
            for name, t in adapter.head.items()
        }
        held = Adapter(sites, heads, adapter.scale)
        for site, layer in self.layers.items():
            layer.a, layer.b = held.sites[site].a, held.sites[site].b
        for name, layer in self.dense.items():
            layer.weight, layer.bias = held.head.get(f"{name}.weight"), held.head.get(f"{name}.bias")
        self.loaded = held
        return held

    def unload(self) -> None:
        """Hold no client and no residual: the bare base model."""
        self.fold.restore()
        for layer in self.layers.values():
            layer.a = layer.b = None
        for layer in self.dense.values():
            layer.weight = layer.bias = None
        self.loaded = None

    def close(self) -> None:
        """Put the base model's own layers back, with their original weights."""
        self.fold.restore()
        if self.first_token is not None:
            self.first_token.remove()
        forget_padding(self.module)
        for name, layer in (*self.layers.items(), *self.dense.items()):
            self.module.set_submodule(name, layer.base)

    def logits(self, batch: Batch, hidden: Tensor | None = None) -> Tensor:
        """`(G * n, labels)` in float32 or better; `hidden: (G * n, length, width)` stands in for the frozen layers."""
        with self._entered(hidden):
            logits: Tensor = forward(self.module, batch).logits
        return logits.to(torch.promote_types(logits.dtype, torch.float32))

    def token_scores(self, batch: Batch, hidden: Tensor | None = None) -> TokenScores:
        """Loss of every token that the batch asks for, in the order of `batch.asked`; needs a language model."""
        assert self.token_head is not None
        with self._entered(hidden):
            return self.token_head.scores(batch)

    def recomputed(self) -> AbstractContextManager[None]:
        """Within, blocks keep only what enters them for the backward pass, which must happen within too."""
        return Recomputed(self.module, list(self.layers))()

    def _entered(self, hidden: Tensor | None) -> AbstractContextManager[None]:
        if hidden is None:
            return nullcontext()
        assert self.prefix is not None
        return self.prefix.replaced(hidden)

    def features(self, batch: Batch, hidden: Tensor | None = None) -> Tensor:
        """What the head's first layer sees, `(n, width)`: the input of a linear probe."""
        if not self.base.head:
            raise ModelError("the model has no head to probe; set output.probe = false")
        seen: list[Tensor] = []
        name = next(n for n in self._head_layers())
        module = self.module.get_submodule(name)
        handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        try:
            self.logits(batch, hidden)
        finally:
            handle.remove()
        return seen[0].float()

    @contextmanager
    def dropout_seeds(self, seeds: Tensor) -> Iterator[None]:
        """Train with dropout: `seeds: (G,)` of one local step."""
        for layer in self.layers.values():
            layer.seeds = seeds
        try:
            yield
        finally:
            for layer in self.layers.values():
                layer.seeds = None

    def _head_layers(self) -> Iterator[str]:
        for name, module in self.module.named_modules():
            inside = any(name == head or name.startswith(f"{head}.") for head in self.base.head)
            if inside and isinstance(module, (nn.Linear, StackedDense)):
                yield name


def _expect_dense(name: str, layer: nn.Module) -> nn.Module:
    if not is_dense(layer):
        raise ModelError(f"site {name!r} is a {type(layer).__name__} in this model; expected {KINDS}")
    return layer
