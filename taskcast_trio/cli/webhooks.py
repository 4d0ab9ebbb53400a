"""``taskcast-trio webhooks``: how far the webhooks of a task are, and deliver again."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from typing import Any, Final
from urllib.parse import quote

import click

from taskcast_trio.cli.connect import authorization, client_options, printable, reported

TIMEOUT_S: Final = 10.0
_EMPTY: Final = "-"


@click.command()
@click.argument("task")
@click.option("--deliveries", metavar="N", type=int, help="The last tries of webhook N.")
@click.option("--redeliver", metavar="N", type=int, help="Deliver webhook N's dead letters again.")
@click.option("--from-index", metavar="I", type=int, help="With --redeliver: all from index I on.")
@click.option("--json", "as_json", is_flag=True, help="Print what the server answers.")
@client_options
def webhooks(
    task: str,
    deliveries: int | None,
    redeliver: int | None,
    from_index: int | None,
    as_json: bool,
    url: str,
    token: str | None,
) -> None:
    """Show the webhooks of TASK: state, cursor, last error, next try.

    Exit status: 0 when the server does what was asked, else 1.
    """
    if deliveries is not None and redeliver is not None:
        raise click.UsageError("--deliveries and --redeliver do not go together")
    if from_index is not None and redeliver is None:
        raise click.UsageError("--from-index needs --redeliver")
    path = f"/tasks/{quote(task, safe='')}/webhooks"
    base = url.rstrip("/")
    with reported(base, TIMEOUT_S):
        if redeliver is not None:
            body = {} if from_index is None else {"fromIndex": from_index}
            answer = _ask(base, token, "POST", f"{path}/{redeliver}/redeliver", body)
            lines = ["it will be delivered again"]
        elif deliveries is not None:
            answer = _ask(base, token, "GET", f"{path}/{deliveries}/deliveries")
            lines = [*_tries(answer["deliveries"]), *_dead_letters(answer["deadLetters"])]
        else:
            answer = _ask(base, token, "GET", path)
            lines = list(_webhooks(answer["webhooks"]))
    click.echo(json.dumps(answer, indent=2) if as_json else "\n".join(lines))


def _ask(base: str, token: str | None, method: str, path: str, body: Any = None) -> Any:
    """What the server answers; KeyError, TypeError or ValueError where that is none of ours."""
    import httpx

    with httpx.Client(timeout=TIMEOUT_S, headers=authorization(token)) as client:
        answer = client.request(method, f"{base}{path}", json=body)
    found = answer.json()
    if answer.is_success:
        return found
    raise click.ClickException(printable(str(found["error"])))


def _webhooks(found: list[dict[str, Any]]) -> Iterator[str]:
    if not found:
        yield "the task has no webhooks"
        return
    yield from _table(
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
    yield from _table(
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
    yield from _table(
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


def _table(head: tuple[str, ...], rows: Iterable[tuple[object, ...]]) -> Iterator[str]:
    lines = [head, *([_cell(value) for value in row] for row in rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(head))]
    for line in lines:
        yield "  ".join(
            cell.ljust(width) for cell, width in zip(line, widths, strict=True)
        ).rstrip()


def _cell(value: object) -> str:
    """The value as text that does nothing to a terminal: types of events may hold anything."""
    text = _EMPTY if value is None else str(value)
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)
