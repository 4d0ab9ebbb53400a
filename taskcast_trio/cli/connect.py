"""How client commands reach a server: the options they share, and the errors they explain."""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

import click

from taskcast_trio.cli.ctrl_c import run_on_trio
from taskcast_trio.cli.failures import Failed, failure_of, proxies
from taskcast_trio.cli.nodes import nodes_file, read_nodes
from taskcast_trio.cli.output import Out
from taskcast_trio.cli.server import DEFAULT_URL, Server, find_server

if TYPE_CHECKING:
    import httpx

    from taskcast_trio.client import AsyncTaskcastClient

P = ParamSpec("P")
T = TypeVar("T")
Command = Callable[..., None]

SETTLE_S = 5.0
"""How long what must be told the server at the end may take."""


def output_options(command: Command) -> Command:
    """Add ``--json`` and ``--no-color``; the command gets an :class:`Out` as ``out``."""

    @click.option("--json", "as_json", is_flag=True, help="Print JSON.")
    @click.option("--no-color", is_flag=True, help="No colours; NO_COLOR says so too.")
    @functools.wraps(command)
    def run(*args: Any, as_json: bool, no_color: bool, **kwargs: Any) -> None:
        command(*args, out=Out(as_json, no_color), **kwargs)

    return run


def server_options(command: Command) -> Command:
    """Add what says which server and as whom, too; the command gets a :class:`Server` as
    ``server``.
    """

    @click.option(
        "--node",
        metavar="NODE",
        shell_complete=_complete_node,
        help="Server: a name of `node list`, or a URL.",
    )
    @click.option("--url", metavar="URL", help=f"Server, or TASKCAST_URL.  [{DEFAULT_URL}]")
    @click.option("--token", metavar="TOKEN", help="Token; better TASKCAST_TOKEN, or `node token`.")
    @output_options
    @functools.wraps(command)
    def run(
        *args: Any, node: str | None, url: str | None, token: str | None, **kwargs: Any
    ) -> None:
        command(*args, server=find_server(url=url, node=node, token=token), **kwargs)

    return run


def _complete_node(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    import os

    try:
        names = read_nodes(nodes_file(os.environ)).nodes
    except click.ClickException:
        return []
    return [name for name in names if name.startswith(incomplete)]


def new_http(server: Server, **options: Any) -> httpx.AsyncClient:
    """An httpx client for requests to the server; who takes it closes it.

    Raises:
        Failed: what the environment says of proxies or certificates can't be used.
    """
    import httpx

    # No proxy reaches a server of this machine, whatever it is set for.
    trust_env = not (server.url.startswith("http:") and server.is_local)
    try:
        return httpx.AsyncClient(trust_env=trust_env, **options)
    except ImportError:
        raise Failed(f"{_proxies()}: SOCKS needs more, pip install 'httpx[socks]'") from None
    except ValueError:  # it quotes the URL, and a password may be in that
        raise Failed(f"{_proxies()}: a proxy of the environment is no URL") from None
    except OSError:
        text = "the certificates of SSL_CERT_FILE or SSL_CERT_DIR can't be read"
        raise Failed(text) from None


def _proxies() -> str:
    return ", ".join(proxies())


def talk(server: Server, work: Callable[[AsyncTaskcastClient], Awaitable[T]]) -> T:
    """Run `work` with a client of the server, on Trio; its failures are explained.

    Ctrl-C cancels it, and is raised again.
    """
    from taskcast_trio.client import AsyncTaskcastClient
    from taskcast_trio.client.transport import limits

    async def main() -> T:
        token = None if server.token is None else server.token.reveal()
        async with (
            new_http(server, limits=limits()) as http,
            AsyncTaskcastClient(server.url, token=token, http=http) as client,
        ):
            return await work(client)

    with explained(server):
        return run_on_trio(main)


@contextmanager
def explained(server: Server) -> Iterator[None]:
    """Around requests to the server: what fails is one line for a person."""
    try:
        yield
    except Exception as error:
        cause = _only(error)
        if (failure := failure_of(cause, server)) is not None:
            raise failure from None
        if cause is error:
            raise
        raise cause from None
    except BaseExceptionGroup as group:
        raise _only(group) from None


def _only(error: BaseException) -> Any:
    """The one error in a group of one; of several, an interruption, else the first."""
    while isinstance(error, BaseExceptionGroup):
        inner = error.exceptions
        error = next((one for one in inner if not isinstance(one, Exception)), inner[0])
    return error
