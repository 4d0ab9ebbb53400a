"""How client commands reach a server: ``--url`` and ``--token``, the same for each of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

import click

if TYPE_CHECKING:
    import httpx

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


@contextmanager
def reported(base: str, timeout_s: float) -> Iterator[None]:
    """Around requests to the server at `base`: what fails is one line for a person."""
    import httpx

    try:
        yield
    except httpx.ConnectError:
        raise click.ClickException(
            f"no server at {base}. Start one with `taskcast-trio`, or say where it is with --url."
        ) from None
    except httpx.TimeoutException:
        raise click.ClickException(f"no answer from {base} in {timeout_s:g} s") from None
    except httpx.HTTPStatusError as error:
        raise click.ClickException(f"{base} answered {_refusal(error)}") from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL):
        raise click.ClickException(f"{base} is no URL; one looks like http://host:3721") from None
    except httpx.HTTPError as error:
        raise click.ClickException(f"{base}: {type(error).__name__}") from None
    except (ValueError, LookupError, TypeError, AttributeError):
        raise click.ClickException(f"{base} answers, but not as a Taskcast server") from None


def _refusal(error: httpx.HTTPStatusError) -> str:
    """The status of which path, and what the server says of it."""
    status = f"{error.response.status_code} to {error.request.url.path}"
    try:
        said = str(error.response.json()["error"])
    except (ValueError, KeyError, TypeError):
        return status
    return f"{status}: {printable(said[:500])}"


def printable(text: str) -> str:
    """What may go to a terminal: names, ids and errors are from elsewhere."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)
