"""`[privacy]` of a recipe."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from fedrot.config.section import Section


class PrivacyConfig(Section):
    """What is hidden of single clients: by noise, see [Privacy](privacy.md), and from the server, by masks."""

    mechanism: Literal["none", "central", "local"] = "none"
    """`central`: clients clip, the server adds noise to their sum, and is trusted. `local`: every client adds noise to
    its own message, and nobody else is trusted."""
    clip: float = Field(default=1.0, gt=0)
    """Largest L2 norm of a client's update: all it uploads minus what it received, over all sites and the head."""
    noise: float = Field(default=1.0, ge=0)
    """Standard deviation of the noise in every number, over `clip`. With 0 updates are clipped and nothing is promised.
    """
    delta: float = Field(default=1e-5, gt=0, lt=1)
    """The probability with which the promise may fail; well below 1 / clients."""
    adjacency: Literal["replace-one", "zero-out"] = "replace-one"
    """What is hidden of one client: which of any two data sets it has, or (a weaker promise, with half the sensitivity)
    whether its updates are its own or zero."""
    noise_source: Literal["system", "seed"] = "system"
    """Where noise comes from: the operating system's secure source, or the recipe's seed, which makes a simulation
    repeatable and protects from nobody who knows the seed."""
    secure_aggregation: bool = False
    """The server learns the weighted mean of the clients' uploads and not the uploads, see
    [Secure aggregation](secure-aggregation.md). For a server that is honest but curious."""
    secure_threshold: float = Field(default=0.67, gt=0, le=1)
    """Share of a round's clients that must stay to its end, else the round is given up; never less than half."""
    secure_range: float = Field(default=8.0, ge=2.0**-20, le=2.0**20)
    """Largest size of a number in an upload; a client with a larger one leaves the round."""
    secure_bits: Literal[32, 64] = 32
    """Of each number that is sent under a mask; 64 is finer than float32 and doubles uploads."""
