"""What methods promise; the contract suite holds each to its promises."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Frame = Literal["kept", "turned", "fresh"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Laws:
    """What a method promises with its default options; the contract suite holds it to every promise.

    Attributes:
        exact: the broadcast, with its residual, represents `sum p_i b_i a_i`.
        secure_aggregation: the server needs only weighted sums of uploads.
        mixed_ranks: clients may have fewer directions than the server (zero-padded before aggregation).
        factor_mean: the broadcast factors are the weighted means of the uploaded ones.
        lone_client: a round with one client gives it its own update back (as a product).
        identical_clients: clients that agree get the update they agree on (as a product).
        personal: what a client does not upload it keeps for itself from round to round.
        residual: broadcasts carry a correction that every receiver folds into its base weights.
        frame: the broadcast's factors continue the frame of those received (`"kept"`), come in a new one
            (`"turned"`, as after an SVD), or start afresh (`"fresh"`).
        stale: an update computed from an earlier broadcast may join a later round.
    """

    exact: bool
    secure_aggregation: bool
    mixed_ranks: bool
    factor_mean: bool
    lone_client: bool = True
    identical_clients: bool = True
    personal: bool = False
    residual: bool = False
    frame: Frame = "kept"
    stale: bool = True
