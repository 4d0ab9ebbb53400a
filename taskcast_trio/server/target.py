"""The request target, checked once, before any framework looks at it.

Frameworks parse targets late and trustingly: an empty path, a bracket without its partner or a host
label that is too long becomes a 500 raised outside every error handler. `TargetGuard` answers such
requests with a 400 that says what is wrong, and hands on a path in which an encoded slash of an id
is still one segment.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, MutableMapping
from functools import lru_cache
from typing import Any, Final
from urllib.parse import unquote, unquote_to_bytes

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]
ASGIApp = Callable[[Any, Receive, Send], Awaitable[None]]

MAX_TARGET_BYTES: Final = 16 * 1024
"""Longest accepted target. The longest legal id, 1,024 characters of four UTF-8 bytes each, takes
12 KiB percent-encoded; RFC 9110 4.1 asks for 8,000 bytes at least."""

MAX_REMEMBERED: Final = 256
"""Longer targets are checked anew each time: remembering them would be the caller's to fill."""

_ABSOLUTE: Final = re.compile(rb"(?i:https?|wss?)://([^/?#]*)(.*)", re.DOTALL)
_PLAIN_PATH: Final = re.compile(rb"(?:/[A-Za-z0-9._~-]+)+|/")
_BAD_ESCAPE: Final = re.compile(rb"%(?![0-9A-Fa-f]{2})")
_NOT_VISIBLE_ASCII: Final = re.compile(rb"[^\x21-\x7e]")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f]")
_IP_LITERAL: Final = re.compile(r"\[[0-9A-Fa-f:.]{2,45}\]")
_REG_NAME: Final = re.compile(r"(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*")


class BadTarget(Exception):
    """A request that is refused before routing. `status` is the HTTP status of the answer."""

    def __init__(self, reason: str, status: int = 400) -> None:
        super().__init__(reason)
        self.status = status


def escape_segment(segment: str) -> str:
    """Make `segment` safe inside a decoded path: only `%` and `/` are escaped."""
    return segment.replace("%", "%25").replace("/", "%2F")


def path_id(segment: str) -> str:
    """Return the id that a route handler's path segment stands for.

    Undoes the escape that `TargetGuard` leaves in `scope["path"]`: `a%2Fb` gives `a/b`, and `%25`
    gives `%`. Segments come from `TargetGuard`, where every `%` starts one of these two escapes.
    """
    return segment.replace("%2F", "/").replace("%25", "%")


def local_path(scope: Scope) -> str:
    """The path below the prefix that the app is mounted at."""
    path: str = scope["path"]
    return path.removeprefix(scope.get("root_path", ""))


def origin_form(raw_path: bytes) -> tuple[bytes, bytes | None]:
    """Split an absolute-form target (RFC 9112 3.2.2) into its path and its authority.

    Targets in any other form come back unchanged, with None for the authority. The query is not
    part of `raw_path`, as in the ASGI scope.
    """
    match = _ABSOLUTE.fullmatch(raw_path)
    if match is None:
        return raw_path, None
    authority, path = match.groups()
    return path or b"/", authority


def decode_path(raw_path: bytes) -> str:
    """Decode a percent-encoded path segment by segment, keeping `%2F` inside its segment.

    Dot segments are left alone: `..` and `..%2F` are ids like any other.

    Raises:
        BadTarget: for a broken escape, bytes that are not UTF-8, or a control character.
    """
    if _BAD_ESCAPE.search(raw_path):
        raise BadTarget("bad request target: invalid percent escape in the path")
    try:
        segments = [unquote_to_bytes(part).decode("utf-8") for part in raw_path.split(b"/")]
    except UnicodeDecodeError:
        raise BadTarget("bad request target: the path is not UTF-8") from None
    if any(_CONTROL.search(segment) for segment in segments):
        raise BadTarget("bad request target: control character in the path")
    return "/".join(map(escape_segment, segments))


def check_host(value: bytes) -> None:
    """Check a Host header value: `uri-host [":" port]` of RFC 9110 7.2, DNS limits of RFC 1035.

    Raises:
        BadTarget: naming the part that is wrong.
    """
    if not value:  # legal where the target has no authority (RFC 9112 3.2)
        return
    if _NOT_VISIBLE_ASCII.search(value):
        raise BadTarget("bad Host header: not visible ASCII")
    text = value.decode("ascii")
    if text.startswith("["):
        host, bracket, rest = text.partition("]")
        host, port = host + bracket, rest.removeprefix(":")
        well_formed = _IP_LITERAL.fullmatch(host) is not None and rest[:1] in ("", ":")
    else:
        host, _, port = text.partition(":")
        labels = host.removesuffix(".").split(".")
        well_formed = (
            _REG_NAME.fullmatch(host) is not None
            and len(host) <= 255
            and all(1 <= len(label) <= 63 for label in labels)
        )
    if not well_formed:
        raise BadTarget("bad Host header: not a host name or address")
    if port and not (port.isdigit() and len(port) <= 5 and int(port) <= 65535):
        raise BadTarget("bad Host header: not a port")


@lru_cache(maxsize=1024)
def _plain_path(raw_path: bytes) -> str | None:
    return raw_path.decode() if _PLAIN_PATH.fullmatch(raw_path) else None


@lru_cache(maxsize=256)
def _is_host(host: bytes) -> bool:
    try:
        check_host(host)
    except BadTarget:
        return False
    return True


class TargetGuard:
    """ASGI middleware that refuses malformed targets, hosts and framing, and normalises the path.

    Refused with `{"error": ...}`: a path that is empty, relative or starts with `//`, broken
    escapes, a path that is not UTF-8 or holds control characters (400), a target over
    `max_target_bytes` (414), more than one or a malformed Host (400), and Content-Length beside
    Transfer-Encoding (400 and the connection closes: RFC 9112 6.3 calls it a smuggling attempt).
    WebSocket handshakes get the same answers.

    What passes has `scope["path"]` rebuilt from `raw_path`, in which only `%` and `/` inside a
    segment are escaped (see `path_id`); an absolute-form target is reduced to its path and its
    authority replaces the Host header. A prefix that an outer router has cut off the path stays
    off, and `root_path` keeps matching.
    """

    def __init__(self, app: ASGIApp, *, max_target_bytes: int = MAX_TARGET_BYTES) -> None:
        self._app = app
        self._max_target_bytes = max_target_bytes

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        # What it awaits is handed on, not awaited here: a stream would keep one frame more.
        if scope["type"] not in ("http", "websocket"):
            return self._app(scope, receive, send)
        try:
            checked = self._check(scope)
        except BadTarget as refusal:
            return _refuse(scope, send, refusal)
        return self._app(checked, receive, send)

    def _is_plain(self, scope: Scope, raw_path: bytes | None) -> bool:
        """Whether nothing needs to be checked or changed, as for most requests."""
        if raw_path is None or "root_path" not in scope or "%" in scope["root_path"]:
            return False
        if len(raw_path) + 1 + len(scope["query_string"]) > self._max_target_bytes:
            return False
        if len(raw_path) > MAX_REMEMBERED or scope["path"] != _plain_path(raw_path):
            return False
        if _NOT_VISIBLE_ASCII.search(scope["query_string"]):
            return False
        hosts = 0
        for name, value in scope["headers"]:
            if name == b"host":
                hosts += 1
                if len(value) > MAX_REMEMBERED or not _is_host(value):
                    return False
            elif name == b"transfer-encoding" or name != name.lower():
                return False
        return hosts <= 1

    def _check(self, scope: Scope) -> Scope:
        raw_path: bytes | None = scope.get("raw_path")
        if self._is_plain(scope, raw_path):
            return scope
        query: bytes = scope.get("query_string", b"")
        headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        _check_framing(headers, scope.get("http_version", "1.1"))
        hosts = [value for name, value in headers if name.lower() == b"host"]
        if len(hosts) > 1:
            raise BadTarget("bad Host header: given more than once")
        if _NOT_VISIBLE_ASCII.search(query):
            raise BadTarget("bad request target: the query is not visible ASCII")

        checked = dict(scope)
        if raw_path is None:  # optional in ASGI; without it an encoded slash is already lost
            if not scope["path"].startswith("/"):
                raise BadTarget("bad request target: the path does not start with /")
            checked["path"] = scope["path"].replace("%", "%25")
        else:
            if len(raw_path) + 1 + len(query) > self._max_target_bytes:
                raise BadTarget(
                    f"request target too long: over {self._max_target_bytes} bytes", status=414
                )
            path, authority = origin_form(raw_path)
            if authority is not None:
                if not authority:
                    raise BadTarget("bad request target: no host in the absolute URI")
                hosts = [authority]
                headers = [item for item in headers if item[0].lower() != b"host"]
                checked["headers"] = [(b"host", authority), *headers]
                checked["raw_path"] = path
            if path == b"*" and scope.get("method") == "OPTIONS":
                checked["path"] = "*"
            elif not path.startswith(b"/"):
                raise BadTarget("bad request target: the path does not start with /")
            else:
                whole = decode_path(path)
                lossy = scope["path"] if authority is None else None
                checked["path"] = _without_mount(whole, lossy)
        for host in hosts:
            check_host(host)
        root_path = checked["root_path"] = scope.get("root_path", "").replace("%", "%25")
        if checked["path"].removeprefix(root_path).startswith("//"):
            # Werkzeug would drop the empty segment, and with it any check of the path before it.
            raise BadTarget("bad request target: the path starts with //")
        return checked


def _without_mount(whole: str, lossy: str | None) -> str:
    """Cut from `whole` the leading segments that an outer router has cut from `lossy`.

    `lossy` is the fully decoded path the server or router put into the scope. Some routers shorten
    it and leave `raw_path` whole.
    """
    if lossy is None or unquote(whole) == lossy:
        return whole
    start = whole.find("/", 1)
    while start != -1:
        if unquote(whole[start:]) == lossy:
            return whole[start:]
        start = whole.find("/", start + 1)
    # A mount point asked for by its bare name leaves "/", which no suffix of the whole path is.
    return "/" if lossy in ("", "/") else whole


def _check_framing(headers: list[tuple[bytes, bytes]], http_version: str) -> None:
    names = {name.lower() for name, _ in headers}
    if http_version.startswith("1") and names >= {b"content-length", b"transfer-encoding"}:
        raise BadTarget("bad framing: both Content-Length and Transfer-Encoding")


async def _refuse(scope: Scope, send: Send, refusal: BadTarget) -> None:
    body = json.dumps({"error": str(refusal), "code": "bad_request"}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
    ]
    if scope.get("http_version", "1.1").startswith("1"):
        headers.append((b"connection", b"close"))
    kind = "http"
    if scope["type"] == "websocket":
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": 1008, "reason": str(refusal)})
            return
        kind = "websocket.http"
    await send({"type": f"{kind}.response.start", "status": refusal.status, "headers": headers})
    await send({"type": f"{kind}.response.body", "body": body, "more_body": False})
