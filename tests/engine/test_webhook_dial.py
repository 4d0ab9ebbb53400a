"""Connections to receivers: nothing that a URL or the DNS can say leads to a forbidden address."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import httpcore
import pytest
import trio
from msgspec import Raw

from taskcast_trio.core.addresses import AddressPolicy
from taskcast_trio.core.backoff import Backoff
from taskcast_trio.core.webhook import Unusable, read
from taskcast_trio.engine.webhooks import Attempt, Dialer, Sender, open_sender
from taskcast_trio.engine.webhooks.dial import HostNotFound, Lookups
from tests.receiver import Receiver, answering, receiving

PUBLIC = "93.184.216.34"
PUBLIC_V6 = "2606:4700::1111"


class Spy(httpcore.AsyncNetworkBackend):
    """The real network, for loopback only; notes every address that is dialled."""

    def __init__(self) -> None:
        self.dialled: list[str] = []
        self._network = httpcore.TrioBackend()

    async def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> Any:
        self.dialled.append(host)
        if host in (PUBLIC, PUBLIC_V6):
            raise httpcore.ConnectError
        return await self._network.connect_tcp(host, port, *args, **options)


def resolver(**answers: list[str]) -> Callable[[str, int], Any]:
    """Gives each host its addresses; of hosts called ``turns`` one address after the other."""

    async def resolve(host: str, port: int) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        found = answers.get(host.partition(".")[0])
        if found is None:
            raise socket.gaierror(socket.EAI_NONAME, "unknown")
        return [found.pop(0)] if host.startswith("turns") else found

    return resolve


@pytest.fixture
async def canary() -> AsyncIterator[Receiver]:
    """What no attempt may reach: it listens on all addresses of this machine."""
    async with receiving(answering(204), host="0.0.0.0") as receiver:
        yield receiver


async def attempt(sender: Sender, url: str, timeout_ms: int = 5000) -> Attempt | Unusable:
    definition = json.dumps({"url": url, "retry": {"timeoutMs": timeout_ms}}).encode()
    webhook = read(Raw(definition), Backoff())
    if isinstance(webhook, Unusable):
        return webhook
    return await sender.attempt(webhook, event_type="a", delivery="0f", body=b"{}")


LITERALS = [
    "127.0.0.1",
    "127.1",
    "127.0.1",
    "127.255.255.254",
    "2130706433",
    "0x7f000001",
    "0x7f.1",
    "0x7F.0x0.0x0.0x1",
    "0177.1",
    "0177.0.1",
    "017700000001",
    "127。0。0。1",
    "0.0.0.0",
    "0",
    "00",
    "0x0",
    "10.0.0.1",
    "10.1",
    "0xa.1",
    "167772161",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "192.168.257",
    "100.64.0.1",
    "100.100.100.200",
    "169.254.169.254",
    "169.254.43518",
    "0xa9fea9fe",
    "2852039166",
    "0251.0376.43518",
    "168.63.129.16",
    "192.0.0.192",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "192.88.99.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "[::]",
    "[::1]",
    "[0:0:0:0:0:0:0:1]",
    "[::7f00:1]",
    "[::127.0.0.1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:7f00:1]",
    "[::ffff:a9fe:a9fe]",
    "[::ffff:0:127.0.0.1]",
    "[64:ff9b::127.0.0.1]",
    "[64:ff9b::a9fe:a9fe]",
    "[64:ff9b:1::10.0.0.1]",
    "[2002:7f00:1::1]",
    "[2002:a9fe:a9fe::]",
    "[2001:0:a9fe:a9fe::1]",
    "[2606:4700::5efe:127.0.0.1]",
    "[fc00::1]",
    "[fd00:ec2::254]",
    "[fe80::1]",
    "[fec0::1]",
    "[ff02::1]",
    "[2001:db8::1]",
]
LOOPBACK_LITERALS = [
    "127.0.0.1", "127.1", "2130706433", "0x7f.1", "0177.1", "127。0。0。1", "0.0.0.0", "0",
    "[::ffff:127.0.0.1]",
]  # fmt: skip


@pytest.mark.parametrize("host", LITERALS)
async def test_no_spelling_of_a_forbidden_address_is_dialled(host: str, canary: Receiver) -> None:
    spy = Spy()
    async with open_sender(Dialer(AddressPolicy(), network=spy)) as sender:
        ended = await attempt(sender, canary.url(host=host))
    assert isinstance(ended, Attempt)
    assert (ended.outcome, ended.status, ended.error) == ("failed", None, "address_refused")
    assert spy.dialled == []
    assert canary.connections == 0


@pytest.mark.parametrize("host", LOOPBACK_LITERALS)
async def test_those_spellings_do_reach_this_machine_where_that_is_allowed(
    host: str, canary: Receiver
) -> None:
    async with open_sender(Dialer(AddressPolicy(allow_private=True))) as sender:
        ended = await attempt(sender, canary.url(host=host))
    assert isinstance(ended, Attempt)
    assert (ended.outcome, canary.connections) == ("delivered", 1)


@pytest.mark.parametrize(
    "url",
    [
        "http://hooks.example@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}@hooks.example/",
        "http://u:p@127.0.0.1:{port}/",
        "http://hooks.example\\@127.0.0.1:{port}/",
        "http://127.0.0.1:{port}\\@hooks.example/",
        "http://127.0.0.1:{port}\r\n/",
        "http://127.0.0.1\t:{port}/",
        " http://127.0.0.1:{port}/",
        "http://127.0.0.1:0/",
        "http://%31%32%37.0.0.1:{port}/",
        "http://[::1%25lo]:{port}/",
        "//127.0.0.1:{port}/",
        "127.0.0.1:{port}",
        "http:127.0.0.1:{port}",
        "ftp://127.0.0.1:{port}/",
        "gopher://127.0.0.1:{port}/_x",
        "ws://127.0.0.1:{port}/",
        "file://127.0.0.1:{port}/",
        "unix://127.0.0.1:{port}/",
        "http+unix://127.0.0.1:{port}/",
        "dict://127.0.0.1:{port}/",
    ],
)
async def test_a_url_that_readers_could_take_differently_is_no_definition(
    url: str, canary: Receiver
) -> None:
    async with open_sender(Dialer(AddressPolicy(allow_private=True))) as sender:
        assert isinstance(await attempt(sender, url.format(port=canary.port)), Unusable)
    assert canary.connections == 0


@pytest.mark.parametrize(
    ("host", "error"),
    [
        ("0177.0.0.1", "invalid_url"),
        ("127.0.0.256", "invalid_url"),
        ("①②⑦.⓪.⓪.①", "invalid_url"),
        ("\uff11\uff12\uff17.0.0.1", "invalid_url"),
        ("loc\u00adalhost", "invalid_url"),
        ("ⓛocalhost", "invalid_url"),
        ("localhost", "address_refused"),
        ("LOCALHOST", "address_refused"),
        ("localhost.", "address_refused"),
        ("127.0.0.1.", "address_refused"),
        ("private.example", "address_refused"),
        ("metadata.google.internal", "address_refused"),
        ("mixed.example", "address_refused"),
        ("mixed6.example", "address_refused"),
        ("scoped.example", "address_refused"),
        ("odd.example", "dns"),
        ("empty.example", "dns"),
        ("nobody.example", "dns"),
        ("a..b", "dns"),
        ("x" * 300, "dns"),
        ("bücher.example", "dns"),
    ],
)
async def test_no_name_leads_to_a_forbidden_address(
    host: str, error: str, canary: Receiver
) -> None:
    spy = Spy()
    resolve = resolver(
        localhost=["127.0.0.1", "::1"],
        private=["10.0.0.1"],
        metadata=["169.254.169.254"],
        mixed=[PUBLIC, "127.0.0.1"],
        mixed6=[PUBLIC, PUBLIC_V6, "::ffff:127.0.0.1"],
        scoped=["fe80::1%lo"],
        odd=["not an address"],
        empty=[],
        **{"127": ["127.0.0.1"]},  # with a dot at its end it is a name, to be looked up
    )
    async with open_sender(Dialer(AddressPolicy(), resolve=resolve, network=spy)) as sender:
        ended = await attempt(sender, canary.url(host=host))
    assert isinstance(ended, Attempt)
    assert (ended.outcome, ended.error, spy.dialled) == ("failed", error, [])
    assert canary.connections == 0


async def test_what_was_checked_is_dialled_and_a_changed_answer_is_checked_anew(
    canary: Receiver,
) -> None:
    spy = Spy()
    answers = [PUBLIC, "127.0.0.1", PUBLIC_V6]
    resolve = resolver(turns=answers)
    async with open_sender(Dialer(AddressPolicy(), resolve=resolve, network=spy)) as sender:
        ended = [await attempt(sender, canary.url(host="turns.example")) for _ in range(3)]
    assert [one.error for one in ended if isinstance(one, Attempt)] == [
        "connect",
        "address_refused",
        "connect",
    ]
    assert spy.dialled == [PUBLIC, PUBLIC_V6]
    assert answers == []  # one look-up for each attempt, none between check and use
    assert canary.connections == 0


async def test_a_connection_is_used_again_without_asking_who_else_has_the_name(
    canary: Receiver,
) -> None:
    resolve = resolver(turns=["127.0.0.1"])
    policy = AddressPolicy.of(allow=["turns.example"])
    async with open_sender(Dialer(policy, resolve=resolve)) as sender:
        for _ in range(3):
            ended = await attempt(sender, canary.url(host="turns.example"))
            assert isinstance(ended, Attempt)
            assert ended.outcome == "delivered"
    assert [request.connection for request in canary.requests] == [1, 1, 1]


async def test_a_denied_host_is_not_even_looked_up(canary: Receiver) -> None:
    answers = ["127.0.0.1"]
    policy = AddressPolicy.of(allow_private=True, deny=["turns.example"])
    async with open_sender(Dialer(policy, resolve=resolver(turns=answers))) as sender:
        ended = await attempt(sender, canary.url(host="turns.example"))
    assert isinstance(ended, Attempt)
    assert (ended.error, answers, canary.connections) == ("address_refused", ["127.0.0.1"], 0)


async def test_the_next_address_is_dialled_where_one_can_not_be_reached(
    canary: Receiver,
) -> None:
    spy = Spy()
    resolve = resolver(many=[PUBLIC_V6, PUBLIC, "127.0.0.1"])
    policy = AddressPolicy(allow_private=True)
    async with open_sender(Dialer(policy, resolve=resolve, network=spy)) as sender:
        ended = await attempt(sender, canary.url(host="many.example"))
    assert isinstance(ended, Attempt)
    assert ended.outcome == "delivered"
    assert spy.dialled == [PUBLIC_V6, PUBLIC, "127.0.0.1"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_a_redirect_is_a_failure_and_goes_nowhere(status: int, canary: Receiver) -> None:
    for location in (canary.url(), "http://169.254.169.254/", "http://[", "//", "\xff"):
        async with (
            receiving(answering(status, Location=location)) as receiver,
            open_sender(Dialer(AddressPolicy(allow_private=True))) as sender,
        ):
            ended = await attempt(sender, receiver.url())
            assert isinstance(ended, Attempt)
            assert (ended.outcome, ended.status, ended.error) == ("failed", status, "redirect")
            assert len(receiver.requests) == 1
    assert canary.connections == 0


async def test_proxies_and_passwords_of_the_environment_are_not_used(
    canary: Receiver, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, canary.url("/"))
        monkeypatch.setenv(name.upper(), canary.url("/"))
    netrc = tmp_path / ".netrc"
    netrc.write_text("machine 127.0.0.1 login someone password planted\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HOME", str(tmp_path))
    async with (
        receiving() as receiver,
        open_sender(Dialer(AddressPolicy(allow_private=True))) as sender,
    ):
        ended = await attempt(sender, receiver.url())
        assert isinstance(ended, Attempt)
        assert ended.outcome == "delivered"
        (request,) = receiver.requests
    assert "authorization" not in request.headers
    assert "proxy-authorization" not in request.headers
    assert canary.connections == 0


# The system's resolver


async def test_the_system_s_resolver_gives_each_address_once() -> None:
    assert await Lookups()("127.0.0.1", 80) == ["127.0.0.1"]


@pytest.mark.parametrize("host", ["", "a..b", "x" * 64, "x" * 300, "ü"])
async def test_a_name_that_is_none_is_not_found(host: str) -> None:
    with pytest.raises(HostNotFound):
        await Dialer(AddressPolicy()).connect_tcp(host, 80)


async def test_a_dead_name_server_holds_one_thread_and_no_other_host(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A look-up that was given up goes on in its thread: tries must not pile them up."""
    release = threading.Event()
    asked: list[bytes] = []

    def getaddrinfo(host: bytes, *_: Any, **__: Any) -> list[Any]:
        asked.append(host)
        if host == b"dead.example":
            assert release.wait(10)
        return [(2, 1, 6, "", (PUBLIC, 80))]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    lookups = Lookups(total=2)
    try:
        for _ in range(3):
            with trio.move_on_after(0.05) as scope:
                await lookups("dead.example", 80)
            assert scope.cancelled_caught
        with trio.fail_after(5):
            assert await lookups("live.example", 80) == [PUBLIC]
        assert asked == [b"dead.example", b"live.example"]
    finally:
        release.set()
    with trio.fail_after(5):
        assert await lookups("dead.example", 80) == [PUBLIC]  # its turn is free again
