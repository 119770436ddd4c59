"""What all parties of one round of secure aggregation agree on beforehand."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256

from fedrot.errors import SecureAggregationError
from fedrot.secagg.fixed_point import EXTRAS, FixedPoint

NONCE_BYTES = 16
MAX_CLIENTS = 1 << 16


@dataclass(frozen=True)
class Session:
    """One round of secure aggregation: who takes part, and under which rules.

    Every message carries the digest of all of this, and every derived key contains it: parties that disagree on
    anything refuse one another, and a message of another run or round is refused as foreign.

    So is one of another attempt at the round, as long as the server draws a new nonce for it. Nothing rests on that:
    clients draw new keys in every attempt and bind shares and consents to the keys of all, so that those of an earlier
    attempt are refused under any nonce. A server that brings back keys of a client from an attempt that it has left
    loses this client.

    Attributes:
        run: a name of the run.
        round: counted from 1.
        clients: those chosen, in ascending order; at least 2 of at most 65,536.
        threshold: how many must stay to the end. More than half, so that the server cannot collect both kinds of
            shares from two halves; with signatures more than two thirds, so that it cannot do so either while a
            third of the clients helps it.
        length: values in a client's vector.
        numbers: how values become ring elements; for as many clients as there are here.
        nonce: 16 bytes of the server, random if it is honest, so that a round begun again is a new session.
        signed: whether clients sign what they tell one another.
        layout: says what the positions of a vector mean, in any form that is the same for all.

    Raises:
        SecureAggregationError: an attribute out of range.
    """

    run: str
    round: int
    clients: tuple[int, ...]
    threshold: int
    length: int
    numbers: FixedPoint
    nonce: bytes
    signed: bool = False
    layout: str = ""

    def __post_init__(self) -> None:
        number = len(self.clients)
        if not 2 <= number <= MAX_CLIENTS or list(self.clients) != sorted(set(self.clients)):
            raise SecureAggregationError(
                f"clients {self.clients}: expected 2 to {MAX_CLIENTS} distinct ones in ascending order"
            )
        if not 0 <= self.clients[0] <= self.clients[-1] < 1 << 32:
            raise SecureAggregationError(f"clients {self.clients}: expected numbers from 0 to 2^32 - 1")
        least = least_threshold(number, self.signed)
        if not least <= self.threshold <= number:
            raise SecureAggregationError(
                f"threshold = {self.threshold} of {number} clients: expected {least} to {number}"
            )
        if self.length < 1:
            raise SecureAggregationError(f"length = {self.length}: expected at least one value")
        if not 1 <= self.round < 1 << 63:
            raise SecureAggregationError(f"round = {self.round}: expected at least 1")
        if self.numbers.clients != number:
            raise SecureAggregationError(
                f"a fixed point for {self.numbers.clients} clients: expected one for {number}"
            )
        if len(self.nonce) != NONCE_BYTES:
            raise SecureAggregationError(
                f"a nonce of {len(self.nonce)} bytes: expected {NONCE_BYTES} random ones"
            )

    @cached_property
    def digest(self) -> bytes:
        """32 bytes that stand for everything above."""
        numbers = self.numbers
        fields = (
            *(
                "fedrot/secagg/2",
                self.run,
                self.round,
                self.threshold,
                self.length,
                self.nonce.hex(),
                self.signed,
            ),
            *(numbers.clip.hex(), numbers.max_weight, numbers.bits, self.layout, *self.clients),
        )
        # repr quotes text, so that no two sessions have the same text.
        return sha256(repr(fields).encode()).digest()

    @property
    def elements(self) -> int:
        """Ring elements a client sends."""
        return self.length + EXTRAS

    def point(self, client: int) -> int:
        """Where shares of `client` lie on the polynomials: its place among the clients, from 1."""
        return self._points[client]

    @cached_property
    def _points(self) -> dict[int, int]:
        return {client: place for place, client in enumerate(self.clients, start=1)}

    def expect(self, clients: Sequence[int], stage: str) -> None:
        """Refuse to go on with fewer than `threshold` of this session's clients, or with others.

        Raises:
            SecureAggregationError: naming the stage.
        """
        if len(set(clients)) != len(clients) or not set(clients) <= set(self.clients):
            raise SecureAggregationError(
                f"{stage} names clients {list(clients)}: expected distinct ones of {list(self.clients)}"
            )
        if len(clients) < self.threshold:
            raise SecureAggregationError(
                f"{len(clients)} of {len(self.clients)} clients are left after {stage}, expected at least the "
                f"threshold of {self.threshold}: the round is given up and nothing is revealed"
            )


def least_threshold(clients: int, signed: bool) -> int:
    """The smallest safe threshold: more than half of the clients, and more than two thirds where they sign."""
    return 2 * clients // 3 + 1 if signed else max(2, clients // 2 + 1)


def threshold_of(share: float, clients: int, signed: bool) -> int:
    """`share` of the clients, rounded up, and no less than the smallest safe threshold."""
    # 0.07 * 100 is 7.000000000000001 in binary, and means 7.
    wanted = math.ceil(share * clients - 1e-9)
    return min(clients, max(least_threshold(clients, signed), wanted))
