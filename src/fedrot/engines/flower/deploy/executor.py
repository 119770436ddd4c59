"""What a warm node does with a message: check that the run is fedrot's, let the worker answer, hand the answer in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import httpx
from flwr.app import Context, Error, Message
from flwr.common.constant import ErrorCode, SubStatus
from flwr.supercore.constant import TaskType
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.runtime.run_clientapp import pull_task_input, push_message, push_task_output

from fedrot.engines.flower.deploy.bundle import VERSION, bundle
from fedrot.engines.flower.deploy.runtime import Runtime, Task
from fedrot.engines.flower.deploy.warm import GaveUp, WarmWorker, WorkerFailed
from fedrot.engines.flower.packing import pack, packed


class TaskLost(Exception):
    """A message was taken from the SuperNode and no answer could be given: the SuperNode would wait for it forever."""


class _Waiting:
    """A task's client that waits for objects of its message only as long as somebody waits for the answer."""

    def __init__(self, client: RuntimeHttpClient, given_up: Callable[[], bool]) -> None:
        self._client, self._given_up = client, given_up

    def PullObject(self, request: Any) -> Any:
        if self._given_up():
            raise GaveUp
        return self._client.PullObject(request)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._client, name)


class Executor:
    """Answers the messages of one SuperNode with one worker.

    Code that came with a run is never loaded, written to disk or looked into: the bundle is compared with the one that
    this installation of fedrot would submit, and the installed fedrot does the work.
    """

    def __init__(self, runtime: Runtime, worker: WarmWorker, node: str, given_up: Callable[[], bool]) -> None:
        self._runtime, self._worker, self._node, self._given_up = runtime, worker, node, given_up

    def step(self) -> bool:
        """Answer one message if there is one.

        Raises:
            TaskLost: see there; the SuperNode has to be started anew.
            GaveUp: nobody waits any more.
        """
        try:
            task = self._runtime.acquire(TaskType.CLIENT_APP)
        except httpx.HTTPStatusError as error:
            raise TaskLost(f"the SuperNode refused this executor ({error})") from error
        if task is None:
            return False
        try:
            with self._runtime.working(task) as client:
                self._answer(client, task)
        except (httpx.HTTPError, ObjectPushError, RuntimeError, ValueError) as error:
            raise TaskLost(f"run {task.run}: the answer could not be handed in ({error})") from error
        return True

    def _answer(self, client: RuntimeHttpClient, task: Task) -> None:
        message, context, fab = self._take(client, task)
        if fab.content == bundle():
            reply, failed = self._work(message)
        else:
            failed = (
                f"node {self._node!r} runs fedrot {VERSION} alone and refuses this app; submit the run with "
                f"`fedrot deploy run` of the same version"
            )
            reply = Message(Error(ErrorCode.INVALID_FAB, failed), reply_to=message)
        if failed:
            print(f"run {task.run}: {failed}", file=sys.stderr, flush=True)
        push_message(client, reply, context)
        push_task_output(client, context, SubStatus.FAILED if failed else SubStatus.COMPLETED, failed)

    def _take(self, client: RuntimeHttpClient, task: Task) -> tuple[Message, Context, Fab]:
        """The message of a task, with what belongs to it, once the SuperNode has fetched all of it."""
        waiting: Any = _Waiting(client, self._given_up)
        try:
            message, context, _, fab = pull_task_input(waiting)
        except GaveUp:
            raise
        except Exception as error:  # whatever Flower makes of a message that is not whole, or not one
            raise TaskLost(f"run {task.run}: a message did not arrive whole ({error})") from error
        return message, context, fab

    def _work(self, message: Message) -> tuple[Message, str]:
        body = packed(message.content)
        try:
            if body is None:
                raise WorkerFailed("a message that fedrot did not pack")
            answer = self._worker.ask(message.metadata.message_type, body, self._given_up)
        except WorkerFailed as error:
            told = f"node {self._node!r}: {error}"
            return Message(Error(ErrorCode.CLIENT_APP_RAISED_EXCEPTION, told), reply_to=message), told
        return Message(pack(answer), reply_to=message), ""


__all__ = ["Executor", "GaveUp", "TaskLost"]
