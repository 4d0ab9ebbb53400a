"""``taskcast-trio ping``: is the server there, which is it, and how far away."""

from __future__ import annotations

from time import perf_counter
from typing import Final

import click

from taskcast_trio.cli.connect import (
    authorization,
    checked,
    explained,
    server_options,
    shape_expected,
)
from taskcast_trio.cli.failures import printable
from taskcast_trio.cli.output import Out
from taskcast_trio.cli.server import Server

TIMEOUT_S: Final = 5.0


@click.command(short_help="Ask the server for its version.")
@server_options
def ping(server: Server, out: Out) -> None:
    """Ask the server for its version, and time the round trip.

    Exit status: 0 when it answers as a Taskcast server does, else 3.
    """
    import httpx

    with (
        explained(server),
        httpx.Client(timeout=TIMEOUT_S, headers=authorization(server)) as client,
    ):
        began = perf_counter()
        answer = client.get(f"{server.url}/health")
        took_ms = (perf_counter() - began) * 1000
        checked(answer)
        with shape_expected(server):
            health = answer.json()
            name, version = str(health["name"]), str(health["version"])
    if out.as_json:
        told = {"name": name, "version": version, "url": server.url, "ms": round(took_ms, 1)}
        out.json(told)
    else:
        out.say(f"{printable(name)} {printable(version)} at {server.url}: {took_ms:.1f} ms")
