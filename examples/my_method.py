"""A method of one's own in one file: clients align, the server takes a trimmed mean.

The mean of each number over clients leaves out the largest and the smallest ones, so that a few clients that
send nonsense do no harm (Yin et al., ICML 2018). Numbers can be compared across clients only where frames
agree: hence the alignment before the upload.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, final

import torch

import fedrot
from fedrot.core import Adapter, Factors, align_adapter, stack
from fedrot.errors import ConfigError
from fedrot.methods import Method, MethodState, Update, Upload, build, method
from fedrot.methods.options import Between


# --8<-- [start:method]
@final
@method("trimmed-mean", exact=False, secure_aggregation=False, mixed_ranks=False, factor_mean=False)
@dataclass(frozen=True, kw_only=True)
class TrimmedMean(Method):
    """Clients align; the server averages each number without its extremes (Yin et al., ICML 2018).

    Attributes:
        trim: share of the clients left out at either end.
        strength: of the alignment, see `fedrot.align`.
    """

    trim: Annotated[float, Between(0, 0.49)] = 0.2
    strength: Annotated[float, Between(0, 1)] = 1.0

    def before_upload(
        self,
        trained: Adapter,
        received: Adapter,
        round: int,
        *,
        reference: Adapter | None = None,
        clients: Sequence[int] = (0,),
    ) -> Upload:
        """The trained adapter in the frame of the received one; sites without a frame yet are left alone."""
        del round, clients
        return Upload(*align_adapter(trained, reference or received, "joint", self.strength))

    def aggregate(
        self, updates: Sequence[Update], received: Adapter, state: MethodState, round: int
    ) -> tuple[Adapter, MethodState]:
        """The trimmed mean of every number. Sample counts are ignored: a client could lie about them."""
        del round
        adapters, _ = self.gather(updates, received)  # checked, and in client order
        cut = int(self.trim * len(adapters))

        def trimmed(tensor: torch.Tensor) -> torch.Tensor:
            return tensor.sort(0).values[cut : len(adapters) - cut].mean(0)

        return stack(adapters).map(trimmed), state


# --8<-- [end:method]


def main() -> None:
    assert "trimmed-mean" in fedrot.methods()
    try:
        build("trimmed-mean", {"trim": 0.7}, seed=0)
    except ConfigError as error:
        print(f"refused: {error}")
    else:
        raise AssertionError("an option out of range must be refused")

    draw = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw)

    received = Adapter({"layer": Factors(noise(4, 32), noise(24, 4))})
    clients = []
    for _ in range(10):
        f = received.sites["layer"]
        turn = torch.linalg.qr(noise(4, 4))[0]
        turn[:, 0] *= torch.linalg.det(turn).sign()
        a, b = f.a + 0.05 * noise(4, 32), f.b + 0.05 * noise(24, 4)
        clients.append(Adapter({"layer": Factors(turn.T @ a, b @ turn)}))
    ideal = torch.stack([c.sites["layer"].b @ c.sites["layer"].a for c in clients[:9]]).mean(0)
    clients[9] = clients[9].map(lambda tensor: 100 * tensor)  # sends nonsense

    found = {}
    for name in ("fedit", "fedrot", "trimmed-mean"):
        rule = build(name, {"strength": 1.0} if name != "fedit" else {}, seed=0)
        uploads = [rule.before_upload(client, received, round=2).adapter for client in clients]
        updates = [Update(number, adapter, weight=1.0) for number, adapter in enumerate(uploads)]
        broadcast, _ = rule.aggregate(updates, received, MethodState(), round=2)
        made = broadcast.sites["layer"]
        found[name] = float((made.b @ made.a - ideal).norm() / ideal.norm())
        print(f"{name:13} distance from the honest clients' mean update: {found[name]:.3f} of its size")

    assert found["trimmed-mean"] < 0.1, "one client in ten was expected to do no harm"
    assert found["fedrot"] > 1, "a plain mean, aligned or not, was expected to be spoiled"
    assert found["fedit"] > 0.5


if __name__ == "__main__":
    main()
