"""Which methods a Flower strategy can apply on the server, around which strategies, and why not the others."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from flwr.serverapp import strategy as flower

from fedrot.errors import ConfigError
from fedrot.methods import Method, Trainable, build
from fedrot.methods.fedrot import FedRot
from fedrot.methods.hetlora import HetLoRA

_CHOOSES = (
    *(flower.Krum, flower.MultiKrum, flower.Bulyan, flower.FedMedian, flower.FedTrimmedAvg, flower.QFedAvg),
    *(flower.DifferentialPrivacyClientSideFixedClipping, flower.DifferentialPrivacyServerSideFixedClipping),
    *(flower.DifferentialPrivacyClientSideAdaptiveClipping,),
    *(flower.DifferentialPrivacyServerSideAdaptiveClipping, flower.FedXgbBagging, flower.FedXgbCyclic),
)
"""Strategies that weigh, pick or clip clients one by one: a server-side method would mix them before."""

_MOMENTS = (flower.FedAdagrad, flower.FedAdam, flower.FedYogi, flower.FedAvgM)


def make_method(name: str, options: Mapping[str, object]) -> Method:
    """The method, if all it asks of clients is what an ordinary Flower app does, with `FedRotMod` or without.

    Raises:
        ConfigError: an unknown method or option, or a method that a strategy cannot carry out; it says why.
    """
    made = build(name, options, seed=0)
    if reason := _refusal(made):
        raise ConfigError(
            f"FedRotStrategy method = {name!r}: {reason}; run it with fedrot's own engines (fedrot run)"
        )
    return made


def _refusal(method: Method) -> str | None:
    """Why a Flower strategy cannot carry out a method."""
    trained = [method.trainable(round) for round in (1, 2)] + [method.uploads(round) for round in (1, 2)]
    if method.laws.personal:
        return "its clients keep a part of the adapter to themselves, which the app's clients do not"
    if method.laws.residual:
        return "it broadcasts a correction that every client must fold into its base weights"
    if any(part != Trainable() for part in trained):
        return "its clients train one factor and freeze the other, which a strategy cannot make them do"
    if not method.laws.stale:
        return (
            "its broadcasts change their rank from round to round, and the clients' models have a fixed one"
        )
    if method.reference_lag:
        return "its clients align to an adapter of an earlier round, which they do not keep"
    prepares = type(method).before_upload is not Method.before_upload
    unpruned = isinstance(method, HetLoRA) and method.prune == "off"
    if prepares and not isinstance(method, FedRot) and not unpruned:
        return "its clients change the factors before they send them, which only FedRotMod does, for 'fedrot'"
    return None


def needs_mod(method: Method) -> bool:
    """Whether clients rotate by themselves, by `FedRotMod`."""
    return isinstance(method, FedRot) and replace(method, refit=0).secure_aggregation


def acts_on_server(method: Method) -> bool:
    """Whether the server does more than average both factors, as any strategy does."""
    return not (method.secure_aggregation and method.laws.factor_mean)


def check_inner(inner: object, method: Method) -> None:
    """Refuse a strategy whose own work a server-side method would undo.

    Raises:
        ConfigError: naming the strategy, the reason and the remedy.
    """
    name = type(inner).__name__
    if not isinstance(inner, flower.Strategy):
        raise ConfigError(
            f"FedRotStrategy(inner={name}): expected a strategy of flwr.serverapp.strategy, such as FedAvg()"
        )
    if not acts_on_server(method):
        return
    if isinstance(inner, _CHOOSES):
        raise ConfigError(
            f"FedRotStrategy(inner={name}, method={method.name!r}): {name} treats clients one by one, and the method "
            "would mix their factors before; use FedRotMod on the clients with method='fedrot', or FedAvg here"
        )
    adapts = isinstance(inner, _MOMENTS) and getattr(inner, "server_opt", True)  # FedAvgM may be plain
    if adapts and method.laws.frame != "kept":
        raise ConfigError(
            f"FedRotStrategy(inner={name}, method={method.name!r}): the method's factors come in a new frame every "
            f"round, and the moments of {name} belong to the old one; use FedAvg, or method='auto'"
        )
