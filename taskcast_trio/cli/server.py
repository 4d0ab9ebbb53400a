"""Which server a command talks to, and with whose token."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from taskcast_trio.cli.failures import USAGE, Failed, no_url
from taskcast_trio.cli.nodes import nodes_file, read_nodes
from taskcast_trio.config import Secret

DEFAULT_URL: Final = "http://127.0.0.1:3721"
_LOOPBACK: Final = ("127.0.0.1", "::1", "localhost")
_SENDABLE: Final = re.compile(r"[\x21-\x7e]+")
PRECEDENCE: Final = """\
Which server: --url, else --node, else TASKCAST_URL, else TASKCAST_NODE, else the node of `node
use`, else http://127.0.0.1:3721. Whose token: --token, else that of the node named by --node, else
TASKCAST_TOKEN, else that of the node. A node's token goes to that node only.
"""


@dataclass(frozen=True, slots=True)
class Server:
    """Where it is and as whom; ``..._from`` are words for a person."""

    url: str
    token: Secret | None = None
    node: str | None = None
    url_from: str = "default"
    token_from: str | None = None
    arguments: tuple[str, ...] = ()
    """What makes another command mean the same server, when typed in the same shell."""

    @property
    def whence(self) -> str:
        """What has named it."""
        return self.url_from + (f", node {self.node}" if self.node else "")

    @property
    def is_local(self) -> bool:
        """Whether it is on this machine, as far as its URL tells."""
        return urlsplit(self.url).hostname in _LOOPBACK


def find_server(
    *,
    url: str | None = None,
    node: str | None = None,
    token: str | None = None,
    env: Mapping[str, str] = os.environ,
) -> Server:
    """Find the server that the options and the environment mean; see :data:`PRECEDENCE`.

    Raises:
        Failed: both a URL and a node were given, an unknown node was, or what is no URL.
    """
    if url is not None and node is not None:
        raise Failed("--url and --node do not go together", USAGE)
    name, place, place_from, own = None, DEFAULT_URL, "default", None
    arguments: tuple[str, ...] = ()
    if url is not None:
        place, place_from, arguments = url, "--url", ("--url", url)
    elif node is not None and "://" in node:
        place, place_from, arguments = node, "--node", ("--node", node)
    elif node is not None:
        name, place_from, arguments = node, "--node", ("--node", node)
    elif env_url := env.get("TASKCAST_URL"):
        place, place_from = env_url, "TASKCAST_URL"
    elif env_node := env.get("TASKCAST_NODE"):
        name, place_from = env_node, "TASKCAST_NODE"
        if "://" in env_node:
            name, place = None, env_node
    if name is not None or place_from == "default":
        nodes = read_nodes(nodes_file(env))
        if name is None and nodes.current is not None:
            name, place_from = nodes.current, "`node use`"
        if name is not None:
            found = nodes.find(name)
            place, own = found.url, found.token
    sent, sent_from = _token(token, own, name, named=place_from == "--node", env=env)
    return Server(check_url(place), sent, name, place_from, sent_from, arguments)


def _token(
    flag: str | None, own: Secret | None, name: str | None, *, named: bool, env: Mapping[str, str]
) -> tuple[Secret | None, str | None]:
    if flag:
        return check_token(flag), "--token"
    from_node = f"node {name}"
    if named and own is not None:
        return own, from_node
    if from_env := env.get("TASKCAST_TOKEN"):
        return check_token(from_env), "TASKCAST_TOKEN"
    return (None, None) if own is None else (own, from_node)


def check_token(text: str) -> Secret:
    """The token, if a header can carry it; line ends around it are no part of it.

    Raises:
        Failed: it can't.
    """
    token = text.strip()
    if not _SENDABLE.fullmatch(token):
        raise Failed("a token is one word of printable ASCII characters", USAGE)
    return Secret(token)


def check_url(text: str) -> str:
    """The URL as requests begin with it.

    Raises:
        Failed: it is none, or has what does not belong there.
    """
    try:
        parts = urlsplit(text)
        parts.port  # noqa: B018 - its getter is what judges it
    except ValueError:
        raise no_url(text) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or not text.isprintable():
        raise no_url(text)
    if parts.username is not None or parts.password is not None:
        raise Failed("a URL with a password in it is not taken: give a token instead", USAGE)
    if parts.query or parts.fragment:
        raise Failed(f"{parts.scheme}://{parts.netloc}: without ? and #, please", USAGE)
    return text.rstrip("/")
