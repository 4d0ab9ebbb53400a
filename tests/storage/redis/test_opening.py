"""Opening: what is there is looked at first, and what can't be used is refused in one line."""

from __future__ import annotations

import re
import traceback

import pytest
import trio

from taskcast_trio.storage.redis import StoreRefused, open_redis
from taskcast_trio.storage.redis.keys import BUCKETS, Keys, bucket_of
from taskcast_trio.storage.redis.url import target_of

from ..support import NOW, task
from .server import running

PATIENCE_S = 30.0


async def refused(url: str, **options) -> str:
    with trio.fail_after(PATIENCE_S), pytest.raises(StoreRefused) as caught:
        async with open_redis(url, timeout_s=1, **options):
            pass
    message = str(caught.value)
    assert "\n" not in message
    assert "hush-hush" not in "".join(traceback.format_exception(caught.value)).replace(url, "")
    return message


@pytest.mark.parametrize(
    ("url", "why"),
    [
        ("redis://u:hush-hush@127.0.0.1:1", "Redis at 127.0.0.1:1 can't be reached"),
        ("redis://:hush-hush@nowhere.invalid", "Redis at nowhere.invalid:6379 can't be reached"),
        ("rediss://u:hush-hush@127.0.0.1:1/0", "can't be reached"),
        ("unix:///nowhere/hush.sock", "can't be reached"),
        ("redis+cluster://u:hush-hush@127.0.0.1:1,127.0.0.1:2", "cluster at 127.0.0.1:1,127"),
        ("redis+sentinel://u:hush-hush@127.0.0.1:1/main/0", r"main \(Sentinel at 127.0.0.1:1\)"),
        ("redis+sentinel://u:hush-hush@127.0.0.1:1", "names its service"),
        ("redis+sentinel://u:hush-hush@127.0.0.1:1/main/hush-hush", "is no number"),
        ("redis+cluster://u:hush-hush@127.0.0.1:hush-hush", "has a port that is none"),
        ("redis://u:hush-hush@127.0.0.1:hush-hush", "not valid"),
        ("redis://u:hush-hush@127.0.0.1:1/0?hush-hush=1", "has an option"),
        ("http://u:hush-hush@127.0.0.1:1", "begins with redis://"),
        ("hush-hush", "begins with redis://"),
    ],
)  # fmt: skip
async def test_a_redis_that_cannot_be_reached_is_refused_without_the_password(url, why):
    message = await refused(url)
    assert re.search(why, message), message


async def test_a_password_that_is_wrong_or_missing_is_said_so(prefix):
    with running("--requirepass", "correct") as server:
        wrong = f"redis://:hush-hush@127.0.0.1:{server.port}/0"
        assert await refused(wrong) == (
            f"Redis at 127.0.0.1:{server.port} refuses the user or the password"
        )
        assert await refused(server.url) == f"Redis at 127.0.0.1:{server.port} asks for a password"
        right = f"redis://:correct@127.0.0.1:{server.port}/0"
        async with open_redis(right, prefix=prefix) as backend:
            await backend.store.create(task(), epoch="EPOCH001", now_ms=NOW)
            assert "correct" not in repr(backend.link())


async def test_what_is_no_redis_is_said_so():
    async def answer(stream: trio.SocketStream) -> None:
        await stream.receive_some(100)
        await stream.send_all(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await stream.aclose()

    async def silent(stream: trio.SocketStream) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        for handler, why in ((answer, "is no Redis"), (silent, "gave no answer in 1 s")):
            listeners = await nursery.start(trio.serve_tcp, handler, 0)
            port = listeners[0].socket.getsockname()[1]
            assert why in await refused(f"redis://127.0.0.1:{port}")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("prefix", ["", "a{b", "a}", "a\nb"])
async def test_a_prefix_that_would_break_the_keys_is_refused(url, prefix):
    assert "prefix" in await refused(url, prefix=prefix)


@pytest.mark.parametrize(("option", "durability"), [("yes", "durable"), ("no", "volatile")])
async def test_the_persistence_is_read(option, durability):
    with running("--appendonly", option) as server:
        async with open_redis(server.url) as backend:
            state = backend.link()
            assert (backend.durability, state.kind) == (durability, "server")
            assert state.server_version[0].isdigit()
            assert (state.commands, state.pubsub) == ("up", "up")


async def test_a_server_that_does_not_tell_its_settings_is_used_all_the_same():
    with running("--appendonly", "yes", "--rename-command", "CONFIG", "") as server:
        async with open_redis(server.url) as backend:
            assert backend.durability == "durable"
        with server.client() as client:
            client.execute_command(
                "ACL", "SETUSER", "app", "on", ">pw", "~*", "&*", "+@all", "-info"
            )
        async with open_redis(f"redis://app:pw@127.0.0.1:{server.port}") as backend:
            assert (backend.durability, backend.server_version) == ("unknown", "unknown")
            await backend.store.create(task(), epoch="EPOCH001", now_ms=NOW)


async def test_two_prefixes_do_not_see_each_other(url, prefix):
    async with (
        open_redis(url, prefix=prefix) as one,
        open_redis(url, prefix=f"{prefix}-other") as other,
    ):
        await one.store.create(task(), epoch="EPOCH001", now_ms=NOW)
        assert await other.store.get("t") is None
        assert await other.store.count() == 0


def test_every_key_of_a_task_is_in_its_bucket():
    keys = Keys("p")
    seen = set()
    for number in range(2_000):
        id_ = f"t{{x}}:{number}"
        bucket, names = keys.of_task(id_)
        seen.add(bucket)
        assert bucket == bucket_of(id_)
        assert names.count(b"p:{%02x}:" % bucket) == 13
    assert len(seen) == BUCKETS


def test_keys_of_two_tasks_are_never_the_same():
    """Also where one's id and series look like the other's."""
    keys = Keys("p")
    _, one = keys.of_task("a:b")
    _, two = keys.of_task("a")
    assert not {name + b"c" for name in one.split(b"\r\n") if b"text:" in name} & {
        name + b"b:c" for name in two.split(b"\r\n") if b"text:" in name
    }


@pytest.mark.parametrize(
    ("url", "kind", "hosts", "options"),
    [
        ("redis://h:7/3", "server", (("h", 7),), {"db": 3}),
        ("rediss://u:p%40@h", "server", (("h", 6379),), {"ssl": True, "password": "p@"}),
        ("redis+cluster://h:1,g:2", "cluster", (("h", 1), ("g", 2)), {}),
        ("rediss+cluster://u:p@h", "cluster", (("h", 6379),), {"ssl": True, "username": "u"}),
        ("redis+sentinel://h,[::1]:5/main/2", "sentinel", (("h", 26379), ("::1", 5)), {"db": 2}),
    ],
)
def test_urls_name_servers_sentinels_and_clusters(url, kind, hosts, options):
    target = target_of(url)
    assert (target.kind, target.hosts) == (kind, hosts)
    assert options.items() <= target.options.items()
    assert "p@" not in repr(target)
