"""``taskcast-trio webhooks``: how far the webhooks of a task are, and deliver again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import click

from taskcast_trio.cli.connect import (
    authorization,
    checked,
    explained,
    server_options,
    shape_expected,
)
from taskcast_trio.cli.output import Out, aligned, cell
from taskcast_trio.cli.server import Server

TIMEOUT_S: Final = 10.0


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
    path = f"/tasks/{quote(task, safe='')}/webhooks"
    if redeliver is not None:
        body = {} if from_index is None else {"fromIndex": from_index}
        answer = _ask(server, task, "POST", f"{path}/{redeliver}/redeliver", body)
        lines = ["it will be delivered again"]
    elif deliveries is not None:
        answer = _ask(server, task, "GET", f"{path}/{deliveries}/deliveries")
        with shape_expected(server):
            lines = [*_tries(answer["deliveries"]), *_dead_letters(answer["deadLetters"])]
    else:
        answer = _ask(server, task, "GET", path)
        with shape_expected(server):
            lines = list(_webhooks(answer["webhooks"]))
    out.json(answer) if out.as_json else out.say("\n".join(lines))


def _ask(server: Server, task: str, method: str, path: str, body: Any = None) -> Any:
    import httpx

    with (
        explained(server),
        httpx.Client(timeout=TIMEOUT_S, headers=authorization(server)) as client,
    ):
        answer = client.request(method, f"{server.url}{path}", json=body)
        checked(answer, task)
        with shape_expected(server):
            return answer.json()


def _webhooks(found: list[dict[str, Any]]) -> Iterator[str]:
    if not found:
        yield "the task has no webhooks"
        return
    yield from _lines(
        ("webhook", "status", "to", "cursor", "pending", "delivered", "dead", "last", "next try"),
        (
            (
                each["number"],
                each["status"],
                each.get("url") or each.get("host"),
                each.get("cursor"),
                each.get("pending"),
                each.get("delivered"),
                each.get("deadLetters"),
                _outcome(each.get("lastTry", {})),
                _time(each.get("nextTryAt")),
            )
            for each in found
        ),
    )
    for each in found:
        if "reason" in each:
            yield f"webhook {each['number']}: {each['reason']}"
        if each.get("droppedDeadLetters"):
            dropped = each["droppedDeadLetters"]
            yield f"webhook {each['number']}: {dropped} older dead letters were dropped"


def _tries(found: list[dict[str, Any]]) -> Iterator[str]:
    if not found:
        yield "nothing was tried yet"
        return
    yield from _lines(
        ("at", "index", "type", "try", "outcome", "ms", "event"),
        (
            (
                _time(each["at"]),
                each["index"],
                each["type"],
                each["attempt"],
                _outcome(each),
                each["durationMs"],
                each["eventId"],
            )
            for each in found
        ),
    )


def _dead_letters(found: list[dict[str, Any]]) -> Iterator[str]:
    if not found:
        return
    yield ""
    yield f"dead letters: {len(found)}"
    yield from _lines(
        ("at", "index", "type", "tries", "last", "event"),
        (
            (
                _time(each["at"]),
                each["index"],
                each["type"],
                each["attempts"],
                _outcome(each),
                each["eventId"],
            )
            for each in found
        ),
    )


def _outcome(one: dict[str, Any]) -> str | None:
    """A status, a word for what went wrong, or both."""
    words = [str(one[key]) for key in ("status", "error") if key in one and one[key] != "status"]
    return " ".join(words) or None


def _time(at_ms: int | None) -> str | None:
    if at_ms is None:
        return None
    return datetime.fromtimestamp(at_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%SZ")


def _lines(columns: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    yield from aligned(columns, [[cell(value) for value in row] for row in rows])
