"""How client commands reach a server: ``--url`` and ``--token``, the same for each of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, TypeVar

import click

DEFAULT_URL: Final = "http://127.0.0.1:3721"

F = TypeVar("F", bound=Callable[..., Any])


def client_options(command: F) -> F:
    """Add ``--url`` (TASKCAST_URL) and ``--token`` (TASKCAST_TOKEN) as ``url`` and ``token``."""
    token = click.option(
        "--token", envvar="TASKCAST_TOKEN", metavar="TOKEN", help="Token, or TASKCAST_TOKEN."
    )
    url = click.option(
        "--url",
        envvar="TASKCAST_URL",
        default=DEFAULT_URL,
        metavar="URL",
        help=f"Server, or TASKCAST_URL.  [{DEFAULT_URL}]",
    )
    return url(token(command))


def authorization(token: str | None) -> dict[str, str]:
    """Return the request headers that carry `token`."""
    return {"Authorization": f"Bearer {token}"} if token else {}
