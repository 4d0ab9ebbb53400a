"""The policy of addresses: what a caller can make the server connect to, and what never."""

from __future__ import annotations

import pytest

from taskcast_trio.core.addresses import AddressPolicy, is_public, layers, parse_address

PUBLIC = [
    "1.1.1.1",
    "93.184.216.34",
    "100.63.255.255",
    "100.128.0.0",
    "168.63.129.17",
    "172.32.0.1",
    "192.0.1.1",
    "223.255.255.255",
    "2606:4700:4700::1111",
    "2001:4860:4860::8888",
    "2a00::1",
    "::ffff:1.1.1.1",
    "2606:4700::5efe:101:101",
]
PRIVATE = [
    "0.0.0.0",
    "0.1.2.3",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.100.100.200",
    "127.0.0.1",
    "127.255.255.254",
    "168.63.129.16",
    "169.254.0.1",
    "169.254.169.254",
    "169.254.170.2",
    "172.16.0.1",
    "172.31.255.255",
    "192.0.0.1",
    "192.0.0.192",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.19.255.255",
    "198.51.100.1",
    "203.0.113.1",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::7f00:1",
    "::a9fe:a9fe",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:10.0.0.1",
    "::ffff:0:127.0.0.1",
    "64:ff9b::7f00:1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b::101:101",
    "64:ff9b:1::a9fe:a9fe",
    "100::1",
    "2001::1",
    "2001:0:a9fe:a9fe::1",
    "2001:0:101:101:0:0:5601:5601",
    "2001:2::1",
    "2001:10::1",
    "2001:20::1",
    "2001:db8::1",
    "2002:7f00:1::1",
    "2002:a9fe:a9fe::",
    "2002:101:101::1",
    "3fff::1",
    "4000::1",
    "5f00::1",
    "2606:4700::5efe:7f00:1",
    "2606:4700::200:5efe:a9fe:a9fe",
    "fc00::1",
    "fd00:ec2::254",
    "fd20:ce::254",
    "fe80::1",
    "fe80::1%eth0",
    "fe80::a9fe:a9fe",
    "fec0::1",
]
MULTICAST = ["224.0.0.1", "239.255.255.255", "ff02::1", "ff0e::1", "::ffff:224.0.0.1"]


@pytest.mark.parametrize("text", PUBLIC)
def test_an_address_of_the_public_internet_is_permitted(text: str) -> None:
    assert AddressPolicy().permits(parse_address(text))


@pytest.mark.parametrize("text", PRIVATE + MULTICAST)
def test_no_other_address_is_permitted_unless_the_configuration_says_so(text: str) -> None:
    assert not AddressPolicy().permits(parse_address(text))


@pytest.mark.parametrize("text", PRIVATE)
def test_private_addresses_can_be_allowed_as_a_whole(text: str) -> None:
    assert AddressPolicy(allow_private=True).permits(parse_address(text))


@pytest.mark.parametrize("text", MULTICAST)
def test_multicast_is_never_permitted(text: str) -> None:
    everything = AddressPolicy.of(allow_private=True, allow=["0.0.0.0/0", "::/0"])
    assert not everything.permits(parse_address(text))


@pytest.mark.parametrize(
    ("text", "carried"),
    [
        ("10.0.0.1", ["10.0.0.1"]),
        ("2606::1", ["2606::1"]),
        ("::1", ["::1"]),
        ("::", ["::"]),
        ("::ffff:10.0.0.1", ["10.0.0.1"]),
        ("::10.0.0.1", ["::a00:1", "10.0.0.1"]),
        ("::ffff:0:10.0.0.1", ["::ffff:0:a00:1", "10.0.0.1"]),
        ("64:ff9b::10.0.0.1", ["64:ff9b::a00:1", "10.0.0.1"]),
        ("64:ff9b:1:2:3:4:10.0.0.1", ["64:ff9b:1:2:3:4:a00:1", "10.0.0.1"]),
        ("2002:a00:1::5", ["2002:a00:1::5", "10.0.0.1"]),
        (
            "2001:0:4136:e378:8000:63bf:3fff:fdd2",
            ["2001:0:4136:e378:8000:63bf:3fff:fdd2", "65.54.227.120", "192.0.2.45"],
        ),
        ("2a00::5efe:a00:1", ["2a00::5efe:a00:1", "10.0.0.1"]),
    ],
)
def test_what_an_address_carries_is_seen(text: str, carried: list[str]) -> None:
    assert [str(layer) for layer in layers(parse_address(text))] == carried


def test_a_network_of_ones_own_can_be_allowed_and_opens_nothing_else() -> None:
    policy = AddressPolicy.of(allow=["10.1.0.0/16", "fd12::/16", "127.0.0.1"])
    for text in ("10.1.2.3", "::ffff:10.1.2.3", "fd12::1", "127.0.0.1", "1.1.1.1"):
        assert policy.permits(parse_address(text))
    for text in ("10.2.0.1", "fd13::1", "127.0.0.2", "::1", "64:ff9b::a01:203"):
        assert not policy.permits(parse_address(text))


def test_an_allowed_translation_still_leads_to_public_addresses_only() -> None:
    policy = AddressPolicy.of(allow=["64:ff9b::/96"])
    assert policy.permits(parse_address("64:ff9b::101:101"))
    assert not policy.permits(parse_address("64:ff9b::a9fe:a9fe"))
    assert not policy.permits(parse_address("64:ff9b::7f00:1"))


def test_denied_wins_over_whatever_is_allowed() -> None:
    policy = AddressPolicy.of(
        allow_private=True,
        allow=["169.254.0.0/16", "metadata"],
        deny=["169.254.169.254", "1.1.0.0/16"],
    )
    for text in ("169.254.169.254", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "1.1.1.1"):
        assert not policy.permits(parse_address(text), "metadata")
    assert policy.permits(parse_address("169.254.1.1"))


def test_a_host_can_be_allowed_to_have_private_addresses() -> None:
    policy = AddressPolicy.of(allow=["hooks.internal", "*.svc.local"], deny=["10.9.0.0/16"])
    private = parse_address("10.0.0.1")
    for host in ("hooks.internal", "HOOKS.internal.", "a.svc.local", "a.b.svc.local"):
        assert policy.permits(private, host)
        assert not policy.permits(parse_address("10.9.0.1"), host)
    for host in ("x.hooks.internal", "svc.local", "asvc.local", "hooks.internal.evil.example", ""):
        assert not policy.permits(private, host)


def test_a_denied_host_is_refused_in_any_spelling() -> None:
    policy = AddressPolicy.of(allow_private=True, deny=["Metadata.Example.", "*.internal"])
    for host in ("metadata.example", "METADATA.example.", "a.internal", "a.internal."):
        assert policy.refuses_host(host)
    for host in ("x.metadata.example", "internal", "example"):
        assert not policy.refuses_host(host)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "*",
        "*.",
        "10.0.0.0/33",
        "10.0.0.1/8",
        "10.0.0",
        "1.2.3.256",
        "a b",
        "a..b",
        "ü.x",
        "*.*.x",
        "http://a",
    ],
)
def test_what_is_neither_a_network_nor_a_host_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="neither a network nor a host"):
        AddressPolicy.of(deny=[text])


def test_public_is_said_of_the_address_itself() -> None:
    assert is_public(parse_address("2606:4700::5efe:7f00:1"))
