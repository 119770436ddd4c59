"""Flower's loop of a node, made to go on where a run ends in the middle of a message."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


class RunEnded(Exception):
    """The server refused part of a message, since its run has ended or is not known there (any more)."""

    def __init__(self) -> None:
        super().__init__("the run has ended")


class Lasting:
    """What the loop does with a message, fetching it and sending the reply, for runs that may end at any moment.

    The task of a message is there before its objects are. If the server says meanwhile that the run is over, or no
    longer knows it since it was killed and is back, Flower leaves task and message as they are, and whoever took the
    task waits for objects that nobody fetches. After other errors it deletes both, so this one is made one of them.

    If all objects had arrived, a reply to the deleted message may still come, when the loop waits for the reply to the
    next one. Flower sends what it finds and goes on to receive; the reply it should have waited for would stay.
    """

    def __init__(self, fetch_message: Callable[..., int | None], push_messages: Callable[..., None]) -> None:
        self._fetch_message, self._push_messages = fetch_message, push_messages
        self._message = ""

    def fetch(self, **given: Any) -> int | None:
        """In place of `_pull_and_store_message`."""
        receive = given["receive"]

        def received() -> Any:
            found = receive()
            if found is not None:
                self._message = found[0].metadata.message_id
            return found

        given["receive"] = received
        for name in ("pull_object", "confirm_message_received"):
            given[name] = _told_apart(given[name])
        return self._fetch_message(**given)

    def push(self, **given: Any) -> None:
        """In place of `_push_messages`: until the reply to the message that was fetched has been sent."""
        send = given["send"]
        replied: set[str] = set()

        def sent(message: Any, *rest: Any) -> Any:
            replied.add(message.metadata.reply_to_message_id)
            return send(message, *rest)

        given["send"] = sent
        while self._message not in replied:
            self._push_messages(**given)


def last_beyond_runs() -> None:
    """Have the SuperNode that is started in this process outlive runs that end in the middle of a message."""
    from flwr.supernode import start_client_internal

    loop: Any = start_client_internal
    lasting = Lasting(loop._pull_and_store_message, loop._push_messages)
    loop._pull_and_store_message, loop._push_messages = lasting.fetch, lasting.push


def _told_apart(ask: Callable[..., Any]) -> Callable[..., Any]:
    from flwr.supercore.run import RunNotRunningException

    def asked(*given: Any) -> Any:
        try:
            return ask(*given)
        except RunNotRunningException as error:
            raise RunEnded from error

    return asked
