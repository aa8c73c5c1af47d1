"""IP addresses: whether one is on the public internet, and under which key a client is counted.

Several kinds of IPv6 address embed an IPv4 address, and a client with one IPv6 address usually has its whole /64 network.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

Address = IPv4Address | IPv6Address

NAT64, LOCAL_NAT64 = IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48")
"""A translator's prefix: everybody's (RFC 6052), and a network's own (RFC 8215), which may reach whatever that network has."""
LOW_32 = (NAT64, IPv6Network("::/96"), IPv6Network("::ffff:0:0/96"), IPv6Network("::ffff:0:0:0/96"))
"""The last 32 bits are an IPv4 address: translated, compatible, mapped, and translated without state (RFC 2765)."""
ISATAP = (0x00005EFE, 0x02005EFE)
"""How an interface id begins that carries an IPv4 address (RFC 5214)."""
UNICAST = IPv6Network("2000::/3")
"""All that is given out of IPv6; what lies beyond is local, reserved or a transition."""
NOT_PUBLIC = tuple(
    ip_network(one)
    for one in (
        "192.0.0.0/24",
        "192.88.99.0/24",  # protocol assignments (the nearest translator answers there), relays of 6to4
        "2001::/23",
        "2002::/16",  # Teredo and other protocol assignments, 6to4
        "2001:db8::/32",
        "3fff::/20",  # documentation, which older libraries take for public
    )
)
"""Networks without public servers; `is_global` takes some of them for public."""


def client_key(host: str) -> str:
    """The key that a client is counted under: its IPv4 address, or the /64 network of an IPv6 address, which has 2^64 of them."""
    try:
        address = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        mapped = address.ipv4_mapped
        return str(mapped) if mapped else str(IPv6Network((int(address) >> 64 << 64, 64)))
    return str(address)


def is_public(ip: Address) -> bool:
    """Whether an address, and every address embedded in it, is on the public internet. One with a zone (`%eth0`) is not."""
    zone = isinstance(ip, IPv6Address) and ip.scope_id is not None
    return not zone and all(_is_global(one) for one in reachable_addresses(ip))


def reachable_addresses(ip: Address) -> set[Address]:
    """The address without its zone, and every IPv4 address that a translator or a tunnel would take it for."""
    if isinstance(ip, IPv4Address):
        return {ip}
    bare = IPv6Address(int(ip))
    return {bare, *_embedded(bare)}


def _embedded(ip: IPv6Address) -> Iterator[IPv4Address]:
    low, high = int(ip) & 0xFFFF_FFFF, int(ip) >> 32 & 0xFFFF_FFFF
    if high in ISATAP or any(ip in network for network in LOW_32):
        yield IPv4Address(low)
    if ip in LOCAL_NAT64:
        yield from _by_prefix_length(int(ip))
    if ip.sixtofour:
        yield ip.sixtofour
    if ip.teredo:
        yield from ip.teredo  # its server and its client


def _by_prefix_length(ip: int) -> Iterator[IPv4Address]:
    """Where an IPv4 address may stand behind a prefix of 48, 56, 64 or 96 bits; bits 64 to 71 are left out (RFC 6052, 2.2)."""
    without_u = (ip >> 64) << 56 | ip & ((1 << 56) - 1)
    for length in (48, 56, 64):
        yield IPv4Address(without_u >> (120 - length - 32) & 0xFFFF_FFFF)
    yield IPv4Address(ip & 0xFFFF_FFFF)


def _is_global(ip: Address) -> bool:
    if any(ip in network for network in NOT_PUBLIC if network.version == ip.version):
        return False
    if isinstance(ip, IPv6Address) and not (ip in UNICAST or ip in NAT64):
        return False
    return ip.is_global and not ip.is_multicast
