"""The worker: handlers, and a life from its registration to its drain."""

from __future__ import annotations

import inspect
import logging
import signal
import ssl
import threading
from collections.abc import Callable, Iterable
from typing import Any, Final, Literal, TypeVar

import httpx
import msgspec
import trio
from msgspec import UNSET, Raw

from taskcast_trio.client import AsyncTaskcastClient
from taskcast_trio.client.async_port import AsyncToken
from taskcast_trio.client.transport import limits
from taskcast_trio.core.errors import NotFound, TaskcastError
from taskcast_trio.core.filter import matches_type
from taskcast_trio.core.matching import MatchRule, TagRule

from .api import Api
from .errors import WorkerReplaced
from .hold import Hold
from .link import Link
from .options import checked_times, checked_url
from .pull import PullLink
from .roster import MAX_TOLD, Roster
from .tokens import checked_source
from .websocket import SocketLink
from .wire import Registration
from .work import Handler, Work

LEAVE_S: Final = 5.0
"""How long it may take, after the grace of the handlers, to say the last of their tasks."""
CLOSE_S: Final = 2.0

H = TypeVar("H", bound=Handler)

log = logging.getLogger(__name__)


class Worker:
    """Takes tasks from a server, and runs handlers for them; on Trio.

    ::

        worker = Worker("http://localhost:3721", capacity=5)

        @worker.task("llm.*")
        async def answer(run):
            async for piece in model(run.params["prompt"]):
                await run.emit("llm.delta", {"delta": piece}, series="answer", mode="accumulate")
            return {"tokens": 12}

        trio.run(worker.run)

    What a handler returns, an object or None, completes the task; what it raises fails it, with the
    exception's text and type, and the server decides about another attempt. See :class:`Run` for
    what it is given and when it is cancelled.

    Args:
        url: where the server is, with the prefix it is mounted under, if any.
        capacity: slots, 1 to 1000; a task takes as many as its ``cost``.
        token: sent as ``Authorization: Bearer``; or a function, asynchronous or not, that gets one:
            it is called at first and again when the server takes the one that it gave no more,
            while handlers go on. What it raises at first ends `run`; later it is asked again. A
            token needs the scopes ``worker:connect``, ``task:manage`` and ``event:publish``, and
            ``event:subscribe`` for ``run.block``.
        mode: ``websocket`` for tasks with the ``assignMode`` ``ws-offer`` and ``ws-race``,
            ``pull`` for those with ``pull``, over HTTP alone.
        tags: which tags the tasks have; their types are those of the handlers.
        weight: workers with more are asked first.
        worker_id: by which the server knows it; without, it gives one. Two at a time can't have it.
        metadata: an object that the server shows.
        lease_s: how long handlers go on after the last sign of the server, before they are
            cancelled. Not more than the server's ``disconnectGraceMs``.
        grace_s: how long a cancelled handler may clean up, see :meth:`Run.cleanup`.
        drain_s: how long handlers may go on when the worker is stopped.
        heartbeat_s: in mode ``pull``, how often to tell the server of the tasks, and to hear what
            is to be stopped: otherwise as often as the server wants and the lease needs.
        handle_signals: whether SIGTERM and SIGINT drain the worker; a second one ends the process.
            For one worker in the main thread.
        tls: for ``https``, where the system's certificates are not enough.
    """

    def __init__(
        self,
        url: str,
        *,
        capacity: int = 10,
        token: AsyncToken = None,
        mode: Literal["websocket", "pull"] = "websocket",
        tags: TagRule | None = None,
        weight: float = 50,
        worker_id: str | None = None,
        metadata: Any = None,
        lease_s: float = 30.0,
        grace_s: float = 10.0,
        drain_s: float = 30.0,
        heartbeat_s: float | None = None,
        handle_signals: bool = True,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        if not 1 <= capacity <= MAX_TOLD:
            raise ValueError(f"capacity is from 1 to {MAX_TOLD}")
        checked_times(lease_s=lease_s, grace_s=grace_s, drain_s=drain_s, heartbeat_s=heartbeat_s)
        if mode not in ("websocket", "pull"):
            raise ValueError("mode is websocket or pull")
        self._url = checked_url(url)
        self._token = checked_source(token)
        self._mode = mode
        self._tags = tags
        self._weight = weight
        self._metadata = UNSET if metadata is None else Raw(msgspec.json.encode(metadata))
        self._grace_s = grace_s
        self._drain_s = drain_s
        self._heartbeat_s = heartbeat_s
        self._handle_signals = handle_signals
        self._tls = tls
        self._handlers: dict[str | None, Handler] = {}
        self._roster = Roster(capacity, lease_s)
        self._roster.worker_id = worker_id
        self._stopping = trio.Event()
        self._work: Work | None = None
        self._shelter: trio.Nursery | None = None
        self._sheltered = trio.CancelScope(shield=True)
        self._over = trio.Event()

    @property
    def id(self) -> str | None:
        """By which the server knows the worker; None before it does."""
        return self._roster.worker_id

    def task(self, *types: str) -> Callable[[H], H]:
        """Make a function the handler of tasks with these types: exact ones, ``prefix.*``, or ``*``
        for every type. Without any, of all tasks that have no other handler, those without a type
        included. The longest pattern that fits decides.

        Raises:
            ValueError: one of the types has a handler already.
            TypeError: it is no ``async def`` function.
        """
        if not all(isinstance(each, str) for each in types):
            raise TypeError("Types are texts; for a handler of all tasks write @worker.task()")
        patterns = types or (None,)

        def register(handler: H) -> H:
            is_plain = inspect.isfunction(handler) and not inspect.iscoroutinefunction(
                inspect.unwrap(handler)
            )
            if is_plain:
                raise TypeError(f"A handler is an async def function without yield: {handler!r}")
            for pattern in patterns:
                if pattern in self._handlers:
                    raise ValueError(f"There is a handler for {pattern or 'all tasks'} already")
            self._handlers.update(dict.fromkeys(patterns, handler))
            return handler

        return register

    def stop(self) -> None:
        """Take no more tasks, and let `run` return when the handlers are done, or stopped after
        ``drain_s``. Handlers that are stopped give their tasks back.
        """
        self._stopping.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until stopped; may be called once. Started when the server knows the worker,
        or it was stopped before that.

        While the server is away it is waited for, also at the start. Cancelling this stops the
        handlers at once; their tasks are given back, for which it takes up to ``grace_s`` and a few
        seconds. A handler that does not end when it is cancelled is waited for.

        Raises:
            Unauthorized, Forbidden, NotFound and their like: the server does not take this worker.
            ServerUnavailable: the function for tokens failed when it was asked first.
            WorkerRefused: it says so over the WebSocket.
            WorkerReplaced: another worker came with the same id, or this one was deleted.
        """
        if not self._handlers:
            raise ValueError("The worker has no handler: see Worker.task")
        if self._work is not None:
            raise RuntimeError("The worker has run already")
        tls = self._tls or _trust_of(self._url)
        # A blocked handler keeps a connection, so a limit would be one on handlers.
        http = httpx.AsyncClient(limits=limits(), verify=tls)
        client = AsyncTaskcastClient(self._url, token=self._token, http=http)
        api = Api(client)
        link = self._link(api, client, tls)
        self._work = Work(api, client, self._roster, grace_s=self._grace_s, ask=link.ask)
        refused: TaskcastError | None = None
        try:
            async with trio.open_nursery() as nursery:
                self._shelter = await nursery.start(self._give_shelter)
                nursery.start_soon(self._roster.watch_leases)
                nursery.start_soon(self._drain, link)
                if self._handle_signals and _is_main_thread():
                    nursery.start_soon(self._heed_signals)
                nursery.start_soon(self._tell_when_known, task_status)
                try:
                    await link.run()
                    if not self._roster.known.is_set():
                        task_status.started()  # stopped before: who starts it is not to wait
                except TaskcastError as error:
                    refused = error
                finally:
                    self._end(refused)
                nursery.cancel_scope.cancel()
        finally:
            with trio.move_on_after(CLOSE_S, shield=True):
                await link.bye()
            with trio.move_on_after(CLOSE_S, shield=True):
                await http.aclose()
        if isinstance(refused, NotFound):
            refused.add_note(f"{self._url} is no server with --workers-api, or has another prefix")
        if refused is not None:
            raise refused

    async def _tell_when_known(self, task_status: trio.TaskStatus[None]) -> None:
        await self._roster.known.wait()
        task_status.started()

    def _link(self, api: Api, client: AsyncTaskcastClient, tls: ssl.SSLContext) -> Link:
        if self._mode == "pull":
            return PullLink(
                api, self._roster, self._describe, self._take, heartbeat_s=self._heartbeat_s
            )
        return SocketLink(
            self._url,
            client.port.credentials,
            self._roster,
            self._describe,
            self._take,
            tls=tls,
        )

    def _describe(self) -> Registration:
        """What the worker says of itself whenever it comes, with the tasks that it has still."""
        types = tuple(pattern for pattern in self._handlers if pattern is not None)
        every = None in self._handlers
        worker_id = self._roster.worker_id
        return Registration(
            type="register",
            worker_id=UNSET if worker_id is None else worker_id,
            capacity=self._roster.capacity,
            weight=self._weight,
            match_rule=MatchRule(
                task_types=UNSET if every else types,
                tags=UNSET if self._tags is None else self._tags,
            ),
            metadata=self._metadata,
            tasks=self._roster.held(),
        )

    # Tasks ---------------------------------------------------------------------------------------

    def _take(self, task_id: str, fence: int, cost: int, type_: str | None) -> None:
        hold = Hold(task_id, fence, cost, type_)
        fits = cost <= self._roster.free and not self._stopping.is_set()
        if not self._roster.add(hold):
            return
        if not fits:
            hold.stop()
        assert self._shelter is not None
        assert self._work is not None
        self._shelter.start_soon(
            self._work.do, hold, self._handler_of(type_), name=f"task {task_id}"
        )

    def _handler_of(self, type_: str | None) -> Handler | None:
        patterns: Iterable[str] = (pattern for pattern in self._handlers if pattern is not None)
        fitting = [p for p in patterns if type_ is not None and matches_type((p,), type_)]
        if fitting:
            return self._handlers[max(fitting, key=lambda p: (p == type_, len(p)))]
        return self._handlers.get(None)

    async def _give_shelter(self, *, task_status: trio.TaskStatus[trio.Nursery]) -> None:
        """Where handlers live: whatever happens around them, they are stopped in order, and end
        within the grace and the time that it takes to say so.
        """
        with self._sheltered:
            async with trio.open_nursery() as nursery:
                task_status.started(nursery)
                await self._over.wait()

    def _end(self, refused: TaskcastError | None) -> None:
        if isinstance(refused, WorkerReplaced) and refused.reason == "replaced":
            # To give back is to take from the other one.
            self._roster.lose_all("replaced")
        self._stopping.set()
        self._roster.stop()
        self._sheltered.deadline = trio.current_time() + self._grace_s + LEAVE_S
        self._over.set()

    # The end -------------------------------------------------------------------------------------

    async def _heed_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for number in signals:
                log.info("Worker %s stops: %s", self.id, signal.Signals(number).name)
                self.stop()
                return

    async def _drain(self, link: Link) -> None:
        await self._stopping.wait()
        link.drain()
        for wait_s in (self._drain_s, self._grace_s + LEAVE_S):
            with trio.move_on_after(wait_s) as waiting:
                await self._roster.empty()
            if not waiting.cancelled_caught:
                break
            self._roster.stop()
        link.leave()


def _trust_of(url: str) -> ssl.SSLContext:
    """The system's certificates; none where none is asked for, as reading them takes its time."""
    if url.startswith("https:"):
        return ssl.create_default_context()
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)


def _is_main_thread() -> bool:
    return threading.current_thread() is threading.main_thread()
