"""``taskcast-trio webhooks``: how far the webhooks of a task are, and deliver again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import click
from msgspec import UNSET

from taskcast_trio.cli.connect import server_options, talk
from taskcast_trio.cli.failures import printable
from taskcast_trio.cli.output import Out, aligned, cell, moment
from taskcast_trio.cli.server import Server

if TYPE_CHECKING:
    from taskcast_trio.client import AsyncTaskcastClient
    from taskcast_trio.core.views import DeadLetter, WebhookTry, WebhookView


@click.command(short_help="Show how far the webhooks of a task are.")
@click.argument("task")
@click.option("--deliveries", metavar="N", type=int, help="The last tries of webhook N.")
@click.option("--redeliver", metavar="N", type=int, help="Deliver webhook N's dead letters again.")
@click.option("--from-index", metavar="I", type=int, help="With --redeliver: all from index I on.")
@server_options
def webhooks(
    task: str,
    deliveries: int | None,
    redeliver: int | None,
    from_index: int | None,
    server: Server,
    out: Out,
) -> None:
    """Show the webhooks of TASK: state, cursor, last error, next try.

    \b
      taskcast-trio webhooks TASK --deliveries 0
      taskcast-trio webhooks TASK --redeliver 0
    """
    if deliveries is not None and redeliver is not None:
        raise click.UsageError("--deliveries and --redeliver do not go together")
    if from_index is not None and redeliver is None:
        raise click.UsageError("--from-index needs --redeliver")

    async def work(client: AsyncTaskcastClient) -> tuple[object, list[str]]:
        if redeliver is not None:
            await client.redeliver(task, redeliver, from_index=from_index)
            return {"ok": True}, ["it will be delivered again"]
        if deliveries is not None:
            found = await client.deliveries(task, deliveries)
            return found, [*_tries(found.deliveries), *_dead_letters(found.dead_letters)]
        webhooks = await client.webhooks(task)
        return {"webhooks": webhooks}, list(_webhooks(webhooks))

    answer, lines = talk(server, work)
    out.json(answer) if out.as_json else out.say("\n".join(lines))


def _webhooks(found: list[WebhookView]) -> Iterator[str]:
    if not found:
        yield "the task has no webhooks"
        return
    yield from _lines(
        ("webhook", "status", "to", "cursor", "pending", "delivered", "dead", "last", "next try"),
        (
            (
                each.number,
                each.status,
                each.url or each.host,
                each.cursor,
                each.pending,
                each.delivered,
                each.dead_letters,
                _outcome(each.last_try) if each.last_try else None,
                moment(each.next_try_at),
            )
            for each in found
        ),
    )
    for each in found:
        if each.reason:
            yield f"webhook {each.number}: {printable(each.reason)}"
        if each.dropped_dead_letters:
            dropped = each.dropped_dead_letters
            yield f"webhook {each.number}: {dropped} older dead letters were dropped"


def _tries(found: list[WebhookTry]) -> Iterator[str]:
    if not found:
        yield "nothing was tried yet"
        return
    yield from _lines(
        ("at", "index", "type", "try", "outcome", "ms", "event"),
        (
            (
                moment(each.at),
                each.index,
                each.type,
                each.attempt,
                _outcome(each),
                each.duration_ms,
                each.event_id,
            )
            for each in found
        ),
    )


def _dead_letters(found: list[DeadLetter]) -> Iterator[str]:
    if not found:
        return
    yield ""
    yield f"dead letters: {len(found)}"
    yield from _lines(
        ("at", "index", "type", "tries", "last", "event"),
        (
            (moment(each.at), each.index, each.type, each.attempts, _outcome(each), each.event_id)
            for each in found
        ),
    )


def _outcome(one: WebhookTry | DeadLetter) -> str | None:
    """A status, a word for what went wrong, or both."""
    word = one.error if one.error != "status" else UNSET
    return " ".join(str(each) for each in (one.status, word) if each is not UNSET) or None


def _lines(columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    yield from aligned(columns, [[cell(value) for value in row] for row in rows])
