"""``taskcast-trio ping``: is the server there, which is it, and how far away."""

from __future__ import annotations

from time import perf_counter
from typing import Final

import click

from taskcast_trio.cli.connect import authorization, client_options, reported

TIMEOUT_S: Final = 5.0


@click.command()
@client_options
def ping(url: str, token: str | None) -> None:
    """Ask the server for its version, and time the round trip.

    Exit status: 0 when it answers as a Taskcast server does, else 1.
    """
    import httpx

    base = url.rstrip("/")
    with (
        reported(base, TIMEOUT_S),
        httpx.Client(timeout=TIMEOUT_S, headers=authorization(token)) as client,
    ):
        began = perf_counter()
        answer = client.get(f"{base}/health")
        took_ms = (perf_counter() - began) * 1000
        health = answer.raise_for_status().json()
        name, version = str(health["name"]), str(health["version"])
    click.echo(f"{name} {version} at {base}: {took_ms:.1f} ms")
