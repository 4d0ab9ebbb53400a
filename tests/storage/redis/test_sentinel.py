"""Sentinels say which Redis is the primary: a failover is followed, and what it lost is told."""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import pytest
import trio
import trustme

from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.engine import Delivery, Done, Gap
from taskcast_trio.engine.items import Item
from taskcast_trio.storage.redis import open_redis
from taskcast_trio.storage.redis.url import target_of

from ..support import NOW, task
from .sentinel import Watched, url_of, watched, watching
from .server import LocalServer
from .support import PATIENCE_S, Process, Results, number, process


@pytest.fixture
def watch() -> Iterator[Watched]:
    with watched() as servers:
        yield servers


async def publish(one: Process, count: int) -> None:
    """As a client that tries again under the same key where Redis is away."""
    while True:
        try:
            await one.engine.publish("t", [number(count)], key=f"{count}")
        except StoreUnavailable:
            await trio.sleep(0.05)
        else:
            return


async def test_a_failover_is_followed_and_loses_nothing_that_the_replica_has(watch, prefix):
    results = Results()
    with trio.fail_after(2 * PATIENCE_S):
        async with (
            process(watch.url, prefix) as a,
            process(watch.url, prefix) as b,
            trio.open_nursery() as nursery,
        ):
            assert a.backend.link().kind == "sentinel"
            await a.create()
            for one in (a, b, b):
                await nursery.start(results.follow, one)
            for count in range(20):
                await publish((a, b)[count % 2], count)
            await trio.to_thread.run_sync(watch.wait_until_equal)
            await trio.to_thread.run_sync(watch.primary.stop)
            for count in range(20, 40):
                await publish((a, b)[count % 2], count)
            await results.seen(41)
            await b.complete()
        with watch.replica.client() as client:
            assert client.info("replication")["role"] == "master"
    results.assert_all_saw(42, 3)


async def test_who_has_seen_more_than_the_replica_is_told_so(watch, prefix):
    """What was not copied when the primary died is lost, and its indexes are given anew."""
    items: list[Item] = []

    async def follow(one: Process, *, task_status: trio.TaskStatus[None]) -> None:
        async with one.engine.subscribe("t") as subscription:
            task_status.started()
            while not items or not isinstance(items[-1], Done):
                try:
                    items.extend(await subscription.receive())
                except StoreUnavailable:
                    await trio.sleep(0.05)

    async def until_seen(count: int) -> None:
        while len(items) < count:  # noqa: ASYNC110
            await trio.sleep(0.01)

    with trio.fail_after(2 * PATIENCE_S):
        async with (
            process(watch.url, prefix) as a,
            process(watch.url, prefix) as b,
            trio.open_nursery() as nursery,
        ):
            await a.create()
            await nursery.start(follow, b)
            for count in range(5):
                await publish(a, count)
            await trio.to_thread.run_sync(watch.wait_until_equal)
            await trio.to_thread.run_sync(watch.part)
            for count in range(5, 9):
                await publish(a, count)
            await until_seen(10)
            await trio.to_thread.run_sync(watch.primary.stop)
            await until_seen(17)  # the gap, and what is left
            for count in range(9, 12):
                await publish(a, count)
            await a.complete()
    assert items[10] == Gap("log_replaced", replayed_from=0)
    before, after = ([item.entry for item in part if isinstance(item, Delivery)]
                     for part in (items[:10], items[11:]))  # fmt: skip
    assert [entry.index for entry in before] == list(range(10))
    assert [entry.index for entry in after] == list(range(10))
    assert [entry.id for entry in after[:6]] == [entry.id for entry in before[:6]]
    assert not {entry.id for entry in after} & {entry.id for entry in before[6:]}


async def test_a_sentinel_that_says_nothing_is_passed_over(server, prefix):
    """As that of a machine that died: its address answers nothing, not even with a refusal."""
    with watching(server, 2) as sentinels, sentinels[0].frozen(), trio.fail_after(PATIENCE_S):
        async with open_redis(url_of(sentinels), prefix=prefix) as backend:
            await backend.store.create(task(), epoch="EPOCH001", now_ms=NOW)


# TLS ----------------------------------------------------------------------------------------------


@asynccontextmanager
async def front(
    server: LocalServer, context: ssl.SSLContext | None, *, named: tuple[int, int] = (0, 0)
) -> AsyncIterator[int]:
    """What stands before a server, on a port of its own, with TLS where there is a ``context``; in
    what the server says, the first port that is ``named`` becomes the second.
    """
    old, new = (b"%d" % port for port in named)
    assert len(old) == len(new), "the server says of each text how long it is"

    async def serve(client: trio.abc.Stream) -> None:
        there = await trio.open_tcp_stream("127.0.0.1", server.port)
        async with client, there, trio.open_nursery() as nursery:

            async def carry(source: trio.abc.Stream, target: trio.abc.Stream) -> None:
                try:
                    async for data in source:
                        renamed = data.replace(old, new) if source is there else data
                        await target.send_all(renamed)
                except trio.BrokenResourceError:
                    pass  # as its connections are cut
                nursery.cancel_scope.cancel()

            nursery.start_soon(carry, there, client)
            nursery.start_soon(carry, client, there)

    async with trio.open_nursery() as nursery:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listener.socket.getsockname()[1]
        taken = [listener if context is None else trio.SSLListener(listener, context)]
        await nursery.start(trio.serve_listeners, serve, taken)
        yield port
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("scheme", "options", "redis_has_it", "sentinels_have_it"),
    [
        ("rediss", "", True, True),
        ("rediss", "&sentinel_ssl=false", True, False),
        ("redis", "&sentinel_ssl=true", False, True),
    ],
    ids=["both", "Redis alone", "the Sentinels alone"],
)
async def test_tls_covers_redis_and_the_sentinels_or_one_of_them(
    server, prefix, tmp_path, scheme, options, redis_has_it, sentinels_have_it
):
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    with watching(server) as (sentinel,), trio.fail_after(PATIENCE_S):
        async with (
            front(server, context if redis_has_it else None) as port,
            front(
                sentinel, context if sentinels_have_it else None, named=(server.port, port)
            ) as watching_port,
            process(
                f"{scheme}+sentinel://127.0.0.1:{watching_port}/main/0"
                f"?ssl_ca_certs={tmp_path / 'ca.pem'}{options}",
                prefix,
            ) as one,
        ):
            await one.create()
            assert (await one.engine.get("t")).status == "running"


@pytest.mark.parametrize(
    ("url", "redis_has_it", "sentinels_have_it"),
    [
        ("redis+sentinel://h/main", False, False),
        ("rediss+sentinel://h/main", True, True),
        ("rediss+sentinel://h/main?sentinel_ssl=no", True, False),
        ("redis+sentinel://h/main?sentinel_ssl=True", False, True),
    ],
)
def test_a_url_says_which_side_has_tls(url, redis_has_it, sentinels_have_it):
    glue = "&" if "?" in url else "?"
    target = target_of(f"{url}{glue}ssl_ca_certs=/ca.pem&ssl_check_hostname=false")
    wanted = {"ssl": True, "ssl_ca_certs": "/ca.pem", "ssl_check_hostname": False}
    for options, has_it in (
        (target.options, redis_has_it),
        (target.sentinel_options, sentinels_have_it),
    ):
        found = {name: value for name, value in options.items() if name.startswith("ssl")}
        assert found == (wanted if has_it else {})


@pytest.mark.parametrize("option", ["sentinel_ssl=maybe", "ssl_min_version=old"])
def test_a_value_that_is_none_is_refused(option):
    with pytest.raises(ValueError, match="Redis URL"):
        target_of(f"rediss+sentinel://h/main?{option}")
