"""Which recipes secure aggregation suits. The protocol is `fedrot.secagg`; `engines.flower.secagg` runs it."""

from __future__ import annotations

from fedrot.config import RunConfig
from fedrot.errors import ConfigError
from fedrot.methods import Laws, Method, build, methods


def check_secure(config: RunConfig, method: Method) -> None:
    """Refuse a recipe with `privacy.secure_aggregation` of which the server would have to see single uploads.

    Raises:
        ConfigError: names the key and what can be done.
    """
    if not config.privacy.secure_aggregation:
        return
    key = "privacy.secure_aggregation = true"
    if config.engine.name != "flower":
        raise ConfigError(
            f"{key}: the engine {config.engine.name!r} keeps all clients in one process, where there is nobody to hide "
            "from; use engine.name = 'flower', or leave it out"
        )
    if config.engine.backend != "inline":
        raise ConfigError(
            f"{key}: with engine.backend = {config.engine.backend!r} a client's process does not last from message to "
            "message of a round; use 'inline'"
        )
    if method.laws.personal:
        raise ConfigError(
            f"{key}: clients of {_named(config, method)} keep parts of the model to themselves, which is not joined "
            f"with secure aggregation; use {_able()}"
        )
    if not method.secure_aggregation:
        raise ConfigError(
            f"{key}: the server of {_named(config, method)} needs every single upload; use {_able()}"
        )
    if config.privacy.mechanism == "central":
        raise ConfigError(
            f"{key}: privacy.mechanism = 'central' rests on a server that clips every upload, and its epsilon knows no "
            "rounding to whole numbers; use 'local', or one of the two alone"
        )
    if config.output.diagnostics:
        raise ConfigError(
            f"{key}: output.diagnostics = true needs every single upload; leave one of them out"
        )
    if config.federation.stale and config.federation.stale_weight != 1:
        raise ConfigError(
            f"{key}: federation.stale_weight = {config.federation.stale_weight:g} makes weights that are no whole "
            "numbers, and those alone are summed; set it to 1, or federation.stale to 0"
        )


def _named(config: RunConfig, method: Method) -> str:
    options = {name: value for name, value in config.method.options.items() if name != "name"}
    shown = ", ".join(f"{name} = {value!r}" for name, value in options.items())
    return f"method.name = {method.name!r}" + (f" with {shown}" if shown and _without_options(method) else "")


def _without_options(method: Method) -> bool:
    """Whether the method could take part with its default options."""
    return build(method.name, {}, 0).secure_aggregation


def _able() -> str:
    return "one of " + ", ".join(repr(name) for name, cls in methods().items() if _suits(cls.laws))


def _suits(laws: Laws) -> bool:
    """Whether the server needs sums alone, and clients keep nothing."""
    return laws.secure_aggregation and not laws.personal
