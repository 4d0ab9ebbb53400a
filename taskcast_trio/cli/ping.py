"""``taskcast-trio ping``: is the server there, which is it, and how far away."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING

import click

from taskcast_trio.cli.connect import server_options, talk
from taskcast_trio.cli.failures import printable
from taskcast_trio.cli.output import Out
from taskcast_trio.cli.server import Server

if TYPE_CHECKING:
    from taskcast_trio.client import AsyncTaskcastClient
    from taskcast_trio.core.views import Health


@click.command(short_help="Ask the server for its version.")
@server_options
def ping(server: Server, out: Out) -> None:
    """Ask the server for its version, and time the round trip.

    Exit status: 0 when it answers as a Taskcast server does, else 3.
    """
    from taskcast_trio.client.retries import NO_RETRIES
    from taskcast_trio.client.service_calls import ping as asking

    async def ask(client: AsyncTaskcastClient) -> tuple[Health, float]:
        began = perf_counter()
        health = await client.ask(asking(), retries=NO_RETRIES)
        return health, (perf_counter() - began) * 1000

    health, took_ms = talk(server, ask)
    name, version = health.name, health.version
    if out.as_json:
        told = {"name": name, "version": version, "url": server.url, "ms": round(took_ms, 1)}
        out.json(told)
    else:
        out.say(f"{printable(name)} {printable(version)} at {server.url}: {took_ms:.1f} ms")
