"""What cannot be made private as asked, refused with the keys that say so."""

from __future__ import annotations

import dataclasses

from fedrot.config import PrivacyConfig, RunConfig
from fedrot.errors import ConfigError
from fedrot.methods import Method, methods


def check_privacy(config: RunConfig, method: Method) -> None:
    """Refuse a recipe whose aggregate has no bounded sensitivity, or whose records would undo the promise.

    Raises:
        ConfigError: names the keys, the reason and the remedy.
    """
    settings = config.privacy
    if settings.mechanism == "none":
        return
    asked = f"privacy.mechanism = {settings.mechanism!r}"
    if not _sums_alone(method):
        able = ", ".join(repr(name) for name, cls in methods().items() if _sums_alone(cls()))
        raise ConfigError(
            f"{asked}: {_culprit(method)} needs more than the sum of what clients upload, and that is all that noise "
            f"covers; methods that can: {able}; or set privacy.mechanism = 'none'"
        )
    federation, ranks = config.federation, config.lora.ranks
    mixed = ranks is not None and {int(rank) for rank in ranks} != {config.lora.rank}
    for refused, key, why in (
        (
            federation.weighting != "uniform",
            f"federation.weighting = {federation.weighting!r}",
            "weights that come from the clients are private themselves and bound no client's influence; "
            "set federation.weighting = 'uniform'",
        ),
        (
            federation.stale > 0,
            f"federation.stale = {federation.stale:g}",
            "the update of a stale client is clipped around another broadcast than the one it joins; set it to 0",
        ),
        (
            mixed,
            f"lora.ranks = {ranks!r}",
            "a smaller client also changes the directions it does not have; give all clients lora.rank",
        ),
        (
            config.output.diagnostics,
            "output.diagnostics = true",
            "they are measured on updates without clip and noise; set it to false",
        ),
    ):
        if refused:
            raise ConfigError(f"{key} with {asked}: {why}")


def check_delta(settings: PrivacyConfig, clients: int) -> None:
    """Refuse a delta with which publishing one client's data outright would count as private.

    Raises:
        ConfigError: `privacy.delta` is not below 1 / clients.
    """
    if settings.mechanism != "none" and settings.delta >= 1 / clients:
        raise ConfigError(
            f"privacy.delta = {settings.delta:g}: expected a number below 1 / clients = {1 / clients:g}; it is the "
            "share of clients that may lose all privacy"
        )


def check_secret(settings: PrivacyConfig) -> None:
    """Refuse noise that others can draw as well; for engines whose clients are other people's machines.

    Raises:
        ConfigError: `privacy.noise_source` is the seed.
    """
    if settings.mechanism != "none" and settings.noise_source == "seed":
        raise ConfigError(
            "privacy.noise_source = 'seed': every node knows the recipe's seed and could take the noise off again; "
            "set privacy.noise_source = 'system'"
        )


def covers(settings: PrivacyConfig) -> dict[str, str]:
    """In plain words: who learns no more than epsilon says (`covered`), and what the promise leaves out."""
    if settings.noise == 0:
        return {
            "covered": "nothing: without noise updates are clipped, and no more",
            "not_covered": "every upload and every broadcast",
        }
    hidden = {
        "replace-one": "which data one client holds",
        "zero-out": "whether one client's updates are its own or zero",
    }[settings.adjacency]
    if settings.mechanism == "central":
        covered = f"{hidden}, from whoever sees every broadcast adapter and head; the server is trusted"
        left = "what the server itself sees, and every recorded loss, norm, rotation and count"
    else:
        covered = f"{hidden}, from whoever sees every message of the client, the server too"
        left = "nothing that a client sends; what is recorded comes from noised messages and the server's own data"
    secret = "" if settings.noise_source == "system" else "anyone who knows the recipe's seed; "
    return {
        "covered": covered,
        "not_covered": f"{secret}{left}; who takes part and who drops out; partition counts, labels and linear probes",
    }


def _sums_alone(method: Method) -> bool:
    laws = method.laws
    return method.secure_aggregation and laws.factor_mean and not laws.personal and not laws.residual


def _culprit(method: Method) -> str:
    """The method, with the first option that makes it need more than sums."""
    for option in dataclasses.fields(method):
        value = getattr(method, option.name)
        if value != option.default and _sums_alone(
            dataclasses.replace(method, **{option.name: option.default})
        ):
            return f"method {method.name!r} with method.{option.name} = {value!r}"
    return f"method {method.name!r}"
