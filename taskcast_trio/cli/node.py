"""``taskcast-trio node``: servers by name, and their tokens."""

from __future__ import annotations

import os
import sys

import click
import msgspec

from taskcast_trio.cli.connect import output_options
from taskcast_trio.cli.failures import FAILED, USAGE, Failed
from taskcast_trio.cli.nodes import (
    Node,
    check_name,
    edited,
    nodes_file,
    open_to_others,
    read_nodes,
)
from taskcast_trio.cli.output import Out, is_terminal
from taskcast_trio.cli.server import check_token, check_url

MAX_TOKEN_BYTES = 1 << 20


@click.group()
def node() -> None:
    """Name servers, and keep their tokens.

    They are in nodes.json in $XDG_CONFIG_HOME/taskcast (~/.config/taskcast), or the file that
    TASKCAST_NODES names; only its owner can read it.

    \b
      taskcast-trio node add prod https://tasks.example.com
      pass show taskcast | taskcast-trio node token prod
      taskcast-trio node use prod
    """


@node.command("add")
@click.argument("name")
@click.argument("url")
@click.option("--use", is_flag=True, help="Make it the one meant without a name, too.")
@output_options
def add(name: str, url: str, use: bool, out: Out) -> None:
    """Keep URL under NAME. Of a known name the URL is changed, and its token forgotten.

    The first node is used at once.
    """
    path = nodes_file(os.environ)
    name, url = check_name(name), check_url(url)
    with edited(path) as nodes:
        known = nodes.nodes.get(name)
        if known is None or known.url != url:
            nodes.nodes[name] = Node(url=url)
        if use or len(nodes.nodes) == 1:
            nodes.current = name
        used = nodes.current == name
    _done(out, name, f"{name} is {url}" + (", and used without a name" if used else ""))


@node.command("remove")
@click.argument("name")
@output_options
def remove(name: str, out: Out) -> None:
    """Forget NAME and its token."""
    with edited(nodes_file(os.environ)) as nodes:
        nodes.find(name)
        del nodes.nodes[name]
        if nodes.current == name:
            nodes.current = None
    _done(out, name, f"{name} is forgotten")


@node.command("use")
@click.argument("name", required=False)
@click.option("--none", is_flag=True, help="None is, from now on.")
@output_options
def use(name: str | None, none: bool, out: Out) -> None:
    """Make NAME the node that is meant where none is named."""
    if (name is None) != none:
        raise click.UsageError("either a NAME or --none")
    with edited(nodes_file(os.environ)) as nodes:
        url = None if name is None else nodes.find(name).url
        nodes.current = name
    _done(out, name, "none is used" if name is None else f"{name} is used: {url}")


@node.command("list", short_help="Show the nodes.")
@output_options
def list_(out: Out) -> None:
    """Show the nodes; tokens are not shown, only which nodes have one."""
    path = nodes_file(os.environ)
    nodes = read_nodes(path)
    if open_to_others(path):
        out.note(f"warning: others can read {path}: chmod 600 it")
    if out.as_json:
        out.json(
            [
                {
                    "name": name,
                    "url": each.url,
                    "token": each.token is not None,
                    "current": name == nodes.current,
                }
                for name, each in nodes.nodes.items()
            ]
        )
    elif not nodes.nodes:
        out.note("no nodes yet: taskcast-trio node add NAME URL")
    else:
        out.table(
            ("", "name", "url", "token"),
            (
                (
                    "*" if name == nodes.current else "",
                    name,
                    each.url,
                    "yes" if each.token else "no",
                )
                for name, each in nodes.nodes.items()
            ),
        )


@node.command("token", short_help="Keep a token for NAME, from stdin or a prompt.")
@click.argument("name")
@click.option("--show", is_flag=True, help="Print the token that is kept.")
@click.option("--forget", is_flag=True, help="Keep none any more.")
@output_options
def token(name: str, show: bool, forget: bool, out: Out) -> None:
    """Keep a token for NAME: from stdin, or typed at a prompt that does not show it.

    On a command line it would be seen by others, in the list of processes.
    """
    if show and forget:
        raise click.UsageError("--show and --forget do not go together")
    path = nodes_file(os.environ)
    if show:
        kept = read_nodes(path).find(name).token
        if kept is None:
            raise Failed(f"no token is kept for {name}", FAILED)
        out.json({"name": name, "token": kept.reveal()}) if out.as_json else out.say(kept.reveal())
        return
    read_nodes(path).find(name)
    given = None if forget else check_token(_read_token(name))
    with edited(path) as nodes:
        nodes.nodes[name] = msgspec.structs.replace(nodes.find(name), token=given)
    _done(out, name, f"the token of {name} is {'forgotten' if forget else 'kept'}")


def _read_token(name: str) -> str:
    if is_terminal(sys.stdin):
        return str(click.prompt(f"Token for {name}", hide_input=True, err=True))
    data = sys.stdin.buffer.read(MAX_TOKEN_BYTES) if sys.stdin else b""
    text = data.decode(errors="replace")
    if not text.strip():
        raise Failed("no token came on stdin", USAGE)
    return text


def _done(out: Out, name: str | None, text: str) -> None:
    out.json({"name": name}) if out.as_json else out.say(text)
