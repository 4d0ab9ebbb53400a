"""``taskcast-trio ping``: is the server there, which is it, and how far away."""

from __future__ import annotations

from time import perf_counter
from typing import Final

import click

from taskcast_trio.cli.connect import authorization, client_options

TIMEOUT_S: Final = 5.0


@click.command()
@client_options
def ping(url: str, token: str | None) -> None:
    """Ask the server for its version, and time the round trip.

    Exit status: 0 when it answers as a Taskcast server does, else 1.
    """
    import httpx

    base = url.rstrip("/")
    try:
        with httpx.Client(timeout=TIMEOUT_S, headers=authorization(token)) as client:
            began = perf_counter()
            answer = client.get(f"{base}/health")
            took_ms = (perf_counter() - began) * 1000
            health = answer.raise_for_status().json()
        name, version = str(health["name"]), str(health["version"])
    except httpx.ConnectError:
        raise click.ClickException(
            f"no server at {base}. Start one with `taskcast-trio`, or say where it is with --url."
        ) from None
    except httpx.TimeoutException:
        raise click.ClickException(f"no answer from {base} in {TIMEOUT_S:g} s") from None
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        raise click.ClickException(f"{base} answered {status} to /health") from None
    except (httpx.UnsupportedProtocol, httpx.InvalidURL):
        raise click.ClickException(f"{base} is no URL; one looks like http://host:3721") from None
    except httpx.HTTPError as error:
        raise click.ClickException(f"{base}: {type(error).__name__}") from None
    except (ValueError, KeyError, TypeError):
        raise click.ClickException(f"{base} answers, but not as a Taskcast server") from None
    click.echo(f"{name} {version} at {base}: {took_ms:.1f} ms")
