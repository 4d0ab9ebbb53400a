"""A real primary, its replica and the Sentinels that watch them, each as in :mod:`.server`."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Final

from .server import PATIENCE_S, LocalServer, running

SERVICE: Final = "main"
DOWN_AFTER_MS: Final = 1000
SETTINGS: Final = """\
sentinel monitor {service} 127.0.0.1 {port} {quorum}
sentinel down-after-milliseconds {service} {down_after_ms}
sentinel failover-timeout {service} 3000
"""


class Sentinel(LocalServer):
    """It keeps what it knows in the file with its settings."""

    def __init__(self, primary: LocalServer, *, quorum: int) -> None:
        super().__init__("--sentinel")
        file = self.folder / "sentinel.conf"
        file.write_text(
            SETTINGS.format(
                service=SERVICE, port=primary.port, quorum=quorum, down_after_ms=DOWN_AFTER_MS
            )
        )
        self._file = (str(file),)


class Watched:
    """Servers under watch: the primary as it was at first, its replica, and the Sentinels."""

    def __init__(
        self, primary: LocalServer, replica: LocalServer, sentinels: list[Sentinel]
    ) -> None:
        self.primary = primary
        self.replica = replica
        self.sentinels = sentinels

    @property
    def url(self) -> str:
        return url_of(self.sentinels)

    def wait_until_equal(self) -> None:
        """Return when the replica has all that was written before."""
        with self.primary.client() as client:
            client.set("mark", 1)
            assert client.wait(1, PATIENCE_S * 1000) == 1

    def part(self) -> None:
        """From now on the replica gets nothing more, whatever is written."""
        with self.primary.client() as client, self.replica.client() as copy:
            client.execute_command("ACL", "SETUSER", "default", "-sync", "-psync")
            client.client_kill_filter(_type="replica")
            until(lambda: copy.info("replication")["master_link_status"] == "down")


def url_of(sentinels: list[Sentinel], options: str = "") -> str:
    hosts = ",".join(f"127.0.0.1:{each.port}" for each in sentinels)
    return f"redis+sentinel://{hosts}/{SERVICE}/0{options}"


@contextmanager
def watching(primary: LocalServer, number: int = 1) -> Iterator[list[Sentinel]]:
    """So many Sentinels, which know of each other, and of all replicas that there are."""
    with ExitStack() as stack, primary.client() as client:
        replicas = client.info("replication")["connected_slaves"]
        sentinels: list[Sentinel] = []
        for _ in range(number):
            sentinel = Sentinel(primary, quorum=number // 2 + 1)
            stack.callback(sentinel.close)
            sentinel.start()
            sentinels.append(sentinel)
        until(lambda: all(_knows(each, number - 1, replicas) for each in sentinels))
        yield sentinels


@contextmanager
def watched() -> Iterator[Watched]:
    with (
        running("--repl-diskless-sync-delay", "0") as primary,
        running("--replicaof", "127.0.0.1", f"{primary.port}") as replica,
    ):
        with replica.client() as client:
            until(lambda: client.info("replication")["master_link_status"] == "up")
        with watching(primary, 3) as sentinels:
            yield Watched(primary, replica, sentinels)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline, "it does not come about"
        time.sleep(0.02)


def _knows(sentinel: Sentinel, others: int, replicas: int) -> bool:
    with sentinel.client() as client:
        state = client.sentinel_master(SERVICE)
        copies = client.sentinel_slaves(SERVICE)
    found = sum(each["master-link-status"] == "ok" and each["flags"] == "slave" for each in copies)
    return (state["num-other-sentinels"], found) == (others, replicas)
