"""Bytes of a round's messages, as they are serialised."""

from __future__ import annotations

from dataclasses import replace

from fedrot.engines.round import Round
from fedrot.methods import Method
from fedrot.server import ServerState, bare, truncated
from fedrot.wire import encode


def traffic(round: Round, before: ServerState, *, full: bool) -> dict[str, int]:
    """`bytes_up` and `bytes_down` of all clients together.

    Clients of one rank send messages of one form, so one of each is serialised. A rejected client has sent its update
    as well; one that drops out has received its broadcast, and sent nothing.

    Args:
        round: who took part.
        before: the state whose adapter they received.
        full: every client took part in every round.
    """
    method, part, ranks = round.method, round.participation, round.ranks
    sent = method.uploads(round.number)
    up = {
        rank: len(encode(message, a=sent.a, b=sent.b, head=method.shares_head))
        for rank, message in round.messages.items()
    }
    kinds = {client: (ranks[client], client in before.personal) for client in part.chosen}
    down = {kind: _download(method, round.number, before, *kind, full=full) for kind in set(kinds.values())}
    return {
        "bytes_up": sum(up[ranks[client]] for client in part.reporting),
        "bytes_down": sum(down[kind] for kind in kinds.values()),
    }


def _download(
    method: Method, number: int, before: ServerState, rank: int | None, known: bool, *, full: bool
) -> int:
    """Bytes of what one client of that rank receives at the start of round `number`.

    With full participation clients still hold what did not change, any earlier reference, and the residual so far, of
    which the change is enough unless the whole is smaller. Else they are sent everything, but for the parts that a
    client which took part before (`known`) keeps for itself.
    """
    adapter = truncated(before.adapter, rank)
    if number > 1 and full:
        sent = method.changes(number - 1)
        parts = {"a": sent.a, "b": sent.b, "head": method.shares_head}
        options = (replace(adapter, residual=before.change), adapter)
        return min(len(encode(message, **parts)) for message in options)
    if known:
        sent = method.uploads(number)
        size = len(encode(adapter, a=sent.a, b=sent.b, head=method.shares_head))
    else:
        size = len(encode(adapter))
    references = before.history[-method.reference_lag :] if method.reference_lag else ()
    return size + sum(len(encode(truncated(bare(earlier), rank))) for earlier in references)
