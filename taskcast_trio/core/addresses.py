"""Which addresses the server may connect to on behalf of a caller (SSRF protection).

Only addresses of the public Internet, unless the configuration says otherwise. To ask
``ipaddress.is_global`` is not enough: it is true of multicast, of tunnels into private networks and
of metadata services, and it differs between versions of Python. So the tables are here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from ipaddress import (
    IPv4Address,
    IPv4Network,
    IPv6Address,
    IPv6Network,
    ip_address,
    ip_network,
)
from typing import Final, Self, TypeAlias

from msgspec import Struct

Address: TypeAlias = IPv4Address | IPv6Address
Network: TypeAlias = IPv4Network | IPv6Network

# IANA IPv4 Special-Purpose Address Registry, as of RFC 6890 and its updates.
_SPECIAL_V4: Final = tuple(
    IPv4Network(text)
    for text in (
        "0.0.0.0/8",
        "10.0.0.0/8",
        "100.64.0.0/10",  # carrier-grade NAT; 100.100.100.200 is Alibaba's metadata
        "127.0.0.0/8",
        "168.63.129.16/32",  # Azure's metadata, in the middle of public space
        "169.254.0.0/16",
        "172.16.0.0/12",
        "192.0.0.0/24",  # 192.0.0.192 is Oracle's metadata
        "192.0.2.0/24",
        "192.88.99.0/24",
        "192.168.0.0/16",
        "198.18.0.0/15",
        "198.51.100.0/24",
        "203.0.113.0/24",
        "224.0.0.0/4",
        "240.0.0.0/4",
    )
)
# All else outside of it is loopback, mapped, local, multicast, a translation, or not assigned.
_GLOBAL_UNICAST_V6: Final = IPv6Network("2000::/3")
_SPECIAL_V6: Final = tuple(
    IPv6Network(text)
    for text in (
        "2001::/23",  # Teredo, benchmarking, ORCHID
        "2001:db8::/32",
        "2002::/16",  # 6to4
        "3fff::/20",
    )
)
# Never a receiver, whatever is allowed.
_MULTICAST: Final = (IPv4Network("224.0.0.0/4"), IPv6Network("ff00::/8"))

_MAPPED: Final = IPv6Network("::ffff:0:0/96")
# In these the last 32 bits are an IPv4 address: compatible, translated (RFC 2765), NAT64 (RFC 6052,
# RFC 8215).
_SUFFIXED: Final = tuple(
    IPv6Network(text) for text in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48")
)
_ISATAP: Final = (0x0000_5EFE, 0x0200_5EFE)

# No last label is a number: a network with a slip of the pen must not pass for a name.
_HOST_PATTERN: Final = re.compile(r"(?:\*\.)?(?:[a-z0-9_-]+\.)*[a-z0-9_-]*[a-z_-][a-z0-9_-]*")


class AddressPolicy(Struct, frozen=True, kw_only=True):
    """Where connections may go.

    Denied wins over allowed. ``allow_private`` opens everything but multicast; what is in
    ``allowed_networks``, or was looked up for one of ``allowed_hosts``, is open as well. A host is
    an exact name or ``*.suffix``.
    """

    allow_private: bool = False
    allowed_networks: tuple[Network, ...] = ()
    denied_networks: tuple[Network, ...] = ()
    allowed_hosts: tuple[str, ...] = ()
    denied_hosts: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, *, allow_private: bool = False, allow: Iterable[str] = (), deny: Iterable[str] = ()
    ) -> Self:
        """Build one from texts: ``10.0.0.0/8``, ``::1``, ``hooks.internal``, ``*.internal``.

        Raises ValueError for a text that is neither a network nor a host.
        """
        allowed_networks, allowed_hosts = _sort(allow)
        denied_networks, denied_hosts = _sort(deny)
        return cls(
            allow_private=allow_private,
            allowed_networks=allowed_networks,
            denied_networks=denied_networks,
            allowed_hosts=allowed_hosts,
            denied_hosts=denied_hosts,
        )

    def refuses_host(self, host: str) -> bool:
        """Tell whether a name is refused before it is looked up."""
        return _names(self.denied_hosts, host)

    def permits(self, address: Address, host: str = "") -> bool:
        """Tell whether ``address``, found for ``host``, may be connected to.

        An IPv6 address that carries an IPv4 address must be permitted for both.
        """
        trusted = self.allow_private or _names(self.allowed_hosts, host)
        return all(self._permits(layer, trusted) for layer in layers(address))

    def _permits(self, address: Address, trusted: bool) -> bool:
        if _within(address, _MULTICAST) or _within(address, self.denied_networks):
            return False
        return trusted or _within(address, self.allowed_networks) or is_public(address)


def is_public(address: Address) -> bool:
    """Tell whether an address is one of the public Internet; the addresses that it may carry are
    not looked at.
    """
    if isinstance(address, IPv4Address):
        return not _within(address, _SPECIAL_V4)
    return address in _GLOBAL_UNICAST_V6 and not _within(address, _SPECIAL_V6)


def layers(address: Address) -> Iterator[Address]:
    """Yield the address and each IPv4 address inside it; a mapped one is its IPv4 address alone."""
    if isinstance(address, IPv4Address):
        yield address
        return
    if address in _MAPPED:
        yield _low(address)
        return
    yield address
    number = int(address)
    if _within(address, _SUFFIXED) and number > 1:  # :: and ::1 are themselves
        yield _low(address)
    if number >> 112 == 0x2002:
        yield IPv4Address(number >> 80 & 0xFFFF_FFFF)
    if number >> 96 == 0x2001_0000:  # Teredo: its server, and its client in ones' complement
        yield IPv4Address(number >> 64 & 0xFFFF_FFFF)
        yield IPv4Address(~number & 0xFFFF_FFFF)
    if number >> 32 & 0xFFFF_FFFF in _ISATAP:
        yield _low(address)


def parse_address(text: str) -> Address:
    """An address as resolvers write it; raises ValueError for anything else."""
    return ip_address(text)


def _low(address: IPv6Address) -> IPv4Address:
    return IPv4Address(int(address) & 0xFFFF_FFFF)


def _within(address: Address, networks: Iterable[Network]) -> bool:
    return any(address in network for network in networks)


def _names(patterns: Iterable[str], host: str) -> bool:
    host = host.lower().rstrip(".")
    return any(
        host.endswith(pattern[1:]) if pattern.startswith("*.") else host == pattern
        for pattern in patterns
    )


def _sort(texts: Iterable[str]) -> tuple[tuple[Network, ...], tuple[str, ...]]:
    networks: list[Network] = []
    hosts: list[str] = []
    for text in texts:
        try:
            networks.append(ip_network(text))
        except ValueError:
            host = text.lower().rstrip(".")
            if not _HOST_PATTERN.fullmatch(host):
                raise ValueError(f"neither a network nor a host: {text}") from None
            hosts.append(host)
    return tuple(networks), tuple(hosts)
