"""`webhooks` asks the server; what answers may be anything."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from taskcast_trio.cli import main
from taskcast_trio.cli.failures import CONFLICT, NO_SERVER

from .test_cleanup import answering


@pytest.mark.parametrize("arguments", [[], ["--deliveries", "0"]])
@pytest.mark.parametrize(
    "answer",
    ["{}", "[]", "1", '{"webhooks": [1], "deliveries": [1]}', '{"webhooks": [{}]}', "<html>"],
)
def test_what_is_no_answer_of_ours_is_one_line(
    runner: CliRunner, arguments: list[str], answer: str
) -> None:
    with answering(answer) as (url, _):
        result = runner.invoke(main, ["webhooks", "t", "--url", url, *arguments])
    assert result.exit_code == NO_SERVER
    assert result.output.startswith(f"Error: {url} answers, but not as a Taskcast server")
    assert len(result.output.splitlines()) == 1


def test_a_refusal_does_nothing_to_the_terminal(runner: CliRunner) -> None:
    with answering('{"error": "no \\u001b[2J way"}', status=409) as (url, _):
        result = runner.invoke(main, ["webhooks", "t", "--url", url])
    assert (result.exit_code, result.output) == (CONFLICT, "Error: no \\x1b[2J way\n")


@pytest.mark.parametrize("field", ["reason", "host", "url"])
def test_what_the_server_says_of_a_webhook_does_nothing_to_the_terminal(
    runner: CliRunner, field: str
) -> None:
    one = {"number": 0, "status": "disabled", "host": "h", field: "\x1b[2J\u009b2Jbad"}
    with answering(json.dumps({"webhooks": [one]})) as (url, _):
        result = runner.invoke(main, ["webhooks", "t", "--url", url])
    assert result.exit_code == 0
    assert "\\x1b[2J\\x9b2Jbad" in result.output
