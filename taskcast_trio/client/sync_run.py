"""Publishing in order, and running a task, without an event loop.

One thread sends, for as long as the publisher is entered: without it, the last piece of a burst
would have to wait for the next call to go out, however late that comes. It is the only one of the
synchronous client; it starts with the first event, and leaving joins it.
"""

from __future__ import annotations

import threading
import time
from contextlib import suppress
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

from msgspec import UNSET

from taskcast_trio.core.errors import InvalidTransition, TaskcastError
from taskcast_trio.core.model import Level, SeriesMode, Task

from .composing import draft
from .ending import END_S, LEFT, Plan, completed, ended, note_lost, running, untold
from .errors import ServerUnavailable
from .outbox import Outbox, delivered
from .retries import answered

if TYPE_CHECKING:
    from .sync_client import TaskcastClient


class SyncPublisher:
    """As `Publisher`, without ``async``; made by ``TaskcastClient.publisher``.

    Any thread may emit.
    """

    def __init__(self, client: TaskcastClient, plan: Plan) -> None:
        self._client = client
        self._plan = plan
        self._task_id = plan.task_id or ""
        self._outbox = Outbox(plan.client_id or uuid4().hex)
        self._over = True
        self._closed = False
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None

    @property
    def id(self) -> str:
        """The id of the task."""
        return self._task_id

    @property
    def client_id(self) -> str:
        """The id under which this publishes."""
        return self._outbox.client_id

    def __enter__(self) -> Self:
        """Begin. Raises: as `Publisher`."""
        self._begin()
        self._over = False
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._over = True
        failure = exc
        try:
            if exc is None:
                self._finish()
        except BaseException as error:
            failure = error
            raise
        finally:
            if failure is not None:
                self._abandon(failure)
                note_lost(failure, self._task_id, self._outbox)
            self._stop()

    def emit(
        self,
        type: str,
        data: Any = UNSET,
        *,
        level: Level = "info",
        series: str | None = None,
        mode: SeriesMode | None = None,
        acc_field: str | None = None,
    ) -> None:
        """Publish an event, described as for :func:`draft`. Waits and raises as `Publisher`'s."""
        event = draft(type, data, level=level, series=series, mode=mode, acc_field=acc_field)
        with self._changed:
            self._check()
            while self._outbox.full:
                self._changed.wait()
                self._check()
            self._outbox.put(event)
            if self._thread is None:
                name = f"publish to {self._task_id}"
                self._thread = threading.Thread(target=self._send_all, name=name, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def flush(self, timeout_s: float | None = None) -> None:
        """Wait until everything emitted so far is stored. Raises: as :meth:`emit`.

        Raises:
            ServerUnavailable: it is not, after ``timeout_s``.
        """
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        with self._changed:
            target = self._outbox.next_seq
            while self._outbox.stored < target and self._outbox.failure is None:
                left_s = None if deadline is None else deadline - time.monotonic()
                if left_s is not None and left_s <= 0:
                    raise ServerUnavailable(f"No answer from {self._client.base_url} in time")
                self._changed.wait(left_s)
            self._outbox.check()

    def _check(self) -> None:
        if self._over:
            raise RuntimeError(LEFT)
        self._outbox.check()

    def _send_all(self) -> None:
        """Send batch by batch. What ends this is raised by the next call of the publisher."""
        plan, port = self._plan, self._client.port.another(sleep=self._pause)
        try:
            while batch := self._next_batch():
                flow = delivered(self._task_id, batch, plan.retries, plan.fence)
                last_index = port.run(flow)
                with self._changed:
                    self._outbox.sent(batch, last_index)
                    self._changed.notify_all()
        except Exception as failure:
            with self._changed:
                self._outbox.broke(failure)
                self._changed.notify_all()

    def _pause(self, seconds: float) -> None:
        """Wait before another try, of which there is none after the end."""
        with self._changed:
            if self._changed.wait_for(lambda: self._closed, seconds):
                raise ServerUnavailable

    def _next_batch(self) -> list[Any]:
        """Wait for events; none when it is over."""
        with self._changed:
            while not (batch := self._outbox.take()) and not self._closed:
                self._changed.wait()
            return [] if self._closed else batch

    def _stop(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        if self._thread is not None:
            # A request on its way can't be taken back; the thread ends with it.
            self._thread.join(END_S)

    def _begin(self) -> None:
        if self._plan.client_id is not None:
            state = self._client.expected_seq(self._task_id, self._plan.client_id)
            self._outbox = Outbox(self._plan.client_id, state.expected_seq)

    def _finish(self) -> None:
        self.flush()

    def _abandon(self, failure: BaseException) -> None:
        with suppress(Exception):  # it is the failure, or beside it
            self.flush(END_S)


class SyncRun(SyncPublisher):
    """As `Run`, without ``async``; made by ``TaskcastClient.run``.

    ::

        with client.run(type="llm.chat") as run:
            for piece in model(prompt):
                run.emit("llm.delta", {"delta": piece}, series="answer", mode="accumulate")
            run.result = {"tokens": 17}
    """

    task: Task

    def __init__(self, client: TaskcastClient, plan: Plan) -> None:
        super().__init__(client, plan)
        self.result: Any = None

    def _begin(self) -> None:
        if self._plan.create is not None:
            self._task_id = self._client.ask(self._plan.create).id
        try:
            self.task = self._client.ask(running(self._task_id, self._plan.fence))
        except BaseException as failure:
            if not isinstance(failure, Exception):
                self._tell_end(failure)
            raise

    def _finish(self) -> None:
        self.flush()
        call = completed(self._task_id, self.result, self._plan.fence)
        self.task = self._client.ask(call)

    def _abandon(self, failure: BaseException) -> None:
        super()._abandon(failure)
        self._tell_end(failure)

    def _tell_end(self, failure: BaseException) -> None:
        deadline = time.monotonic() + END_S

        def pause(seconds: float) -> None:
            if time.monotonic() + seconds > deadline:
                raise ServerUnavailable
            time.sleep(seconds)

        told = ended(self._task_id, failure, self._plan.fence)
        try:
            self._client.port.another(sleep=pause).run(answered(told, self._client.retries))
        except InvalidTransition:
            pass  # somebody else has ended it
        except TaskcastError as error:
            failure.add_note(untold(self._task_id, error))
