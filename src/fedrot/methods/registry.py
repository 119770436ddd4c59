"""All methods by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import TypeVar

from fedrot.errors import ConfigError, nearest
from fedrot.methods.base import Method
from fedrot.methods.laws import Frame, Laws

_registry: dict[str, type[Method]] = {}


M = TypeVar("M", bound=Method)


def method(
    name: str,
    *,
    exact: bool,
    secure_aggregation: bool,
    mixed_ranks: bool,
    factor_mean: bool,
    lone_client: bool = True,
    identical_clients: bool = True,
    personal: bool = False,
    residual: bool = False,
    frame: Frame = "kept",
    stale: bool = True,
) -> Callable[[type[M]], type[M]]:
    """Register a method class under `name`, with the laws it declares (see `Laws`)."""
    laws = Laws(
        exact=exact,
        secure_aggregation=secure_aggregation,
        mixed_ranks=mixed_ranks,
        factor_mean=factor_mean,
        lone_client=lone_client,
        identical_clients=identical_clients,
        personal=personal,
        residual=residual,
        frame=frame,
        stale=stale,
    )

    def register(cls: type[M]) -> type[M]:
        if name in _registry:
            raise ConfigError(
                f"method {name!r} is registered twice: {_registry[name].__name__}, {cls.__name__}"
            )
        cls.name, cls.laws = name, laws
        _registry[name] = cls
        return cls

    return register


def methods() -> Mapping[str, type[Method]]:
    """Every registered method by name."""
    return MappingProxyType(dict(sorted(_registry.items())))


def build(name: str, options: Mapping[str, object], seed: int) -> Method:
    """The method `name` with `options`; `seed` goes to methods that draw random numbers and were given none.

    Raises:
        ConfigError: an unknown method or option, or a value out of range; keys read `method.<option>`.
    """
    if name not in _registry:
        raise ConfigError(f"method.name = {name!r}: no such method; {nearest(name, _registry)}")
    cls = _registry[name]
    known = [option.name for option in dataclasses.fields(cls)]
    for key in options:
        if key not in known:
            raise ConfigError(f"method.{key}: not an option of {name!r}; {nearest(key, known)}")
    return cls(**({"seed": seed} if "seed" in known else {}) | dict(options))
