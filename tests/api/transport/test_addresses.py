"""Addresses: public is what leads to nothing else; private networks are not reached by any detour through IPv6."""

from __future__ import annotations

import ipaddress
import socket
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from api.jobs.webhook_delivery import check_address
from api.transport.addresses import is_public, reachable_addresses
from photoflux.errors import InputError

INNER = [
    ipaddress.ip_address(one)
    for one in (
        "127.0.0.1",
        "127.255.255.254",
        "10.0.0.1",
        "10.255.255.255",
        "172.16.0.1",
        "172.31.255.255",
        "192.168.0.1",
        "169.254.169.254",
        "169.254.0.1",
        "100.64.0.1",
        "100.127.255.255",
        "0.0.0.0",
        "0.1.2.3",
        "192.0.0.9",
        "192.0.0.170",
        "192.0.2.1",
        "198.18.0.1",
        "198.51.100.1",
        "203.0.113.1",
        "192.88.99.1",
        "224.0.0.1",
        "239.255.255.250",
        "240.0.0.1",
        "255.255.255.255",
    )
]
OUTER = [
    ipaddress.ip_address(one)
    for one in ("8.8.8.8", "1.1.1.1", "93.184.216.34", "171.64.0.1", "100.128.0.1", "192.167.255.255")
]
CARRIES_INWARD = {
    "mapped": "::ffff:{v4}", "compatible": "::{v4}", "translated": "::ffff:0:{v4}", "nat64": "64:ff9b::{v4}",
    "local nat64": "64:ff9b:1::{v4}", "6to4": "2002:{high:x}:{low:x}::1", "teredo server": "2001:0:{high:x}:{low:x}::",
    "teredo client": "2001:0:808:808::{unhigh:x}:{unlow:x}", "isatap": "2a00:1450::5efe:{v4}", "isatap, global": "2a00:1450::200:5efe:{v4}",
    "isatap, link-local": "fe80::5efe:{v4}",
}  # fmt: skip
"""How an IPv6 address leads to an IPv4 address."""
REFUSED_WHOLE = [
    "2002:808:808::1", "2001:0:808:808::1", "64:ff9b:1::808:808", "192.88.99.1", "fec0::1", "fc00::1", "fe80::1", "ff02::1", "::", "::1",
    "2001:db8::1", "3fff::1", "5f00::1", "100::1", "2001:1::1", "2001:20::1", "4000::1", "::ffff:8.8.8.8", "::8.8.8.8",
    "fe80::1%eth0", "2606:4700::1111%eth0", "fd00:ec2::254",
]  # fmt: skip


def carried(form: str, v4: Any) -> Any:
    """An IPv6 address that leads to an IPv4 address."""
    high, low = divmod(int(v4), 1 << 16)
    return ipaddress.ip_address(form.format(v4=v4, high=high, low=low, unhigh=high ^ 0xFFFF, unlow=low ^ 0xFFFF))


def literal(ip: Any) -> str:
    return f"https://[{ip}]/" if ip.version == 6 else f"https://{ip}/"


def is_refused(ip: Any) -> bool:
    try:
        check_address(literal(ip), private=False)
    except InputError as error:
        return "public internet" in str(error)
    return False


@pytest.mark.parametrize("form", CARRIES_INWARD.values(), ids=CARRIES_INWARD)
@pytest.mark.parametrize("v4", INNER, ids=str)
def test_no_address_leads_inward_by_a_detour(form: str, v4: Any):
    assert is_refused(v4)
    assert v4 in reachable_addresses(carried(form, v4))
    assert is_refused(carried(form, v4))


@given(
    st.sampled_from(list(CARRIES_INWARD.values())),
    st.sampled_from(
        [
            "10.0.0.0/8",
            "127.0.0.0/8",
            "169.254.0.0/16",
            "172.16.0.0/12",
            "192.168.0.0/16",
            "100.64.0.0/10",
            "0.0.0.0/8",
            "224.0.0.0/4",
            "240.0.0.0/4",
        ]
    ).flatmap(lambda network: st.ip_addresses(network=network)),
)
def test_no_inner_address_is_reached_by_any_embedding(form: str, v4: Any):
    assert is_refused(v4)
    assert is_refused(carried(form, v4))


@pytest.mark.parametrize("address", REFUSED_WHOLE)
def test_ranges_where_nothing_public_lives_are_refused(address: str):
    assert not is_public(ipaddress.ip_address(address))


@pytest.mark.parametrize("v4", OUTER, ids=str)
def test_public_addresses_are_taken(v4: Any):
    assert is_public(v4)
    for form in ("nat64", "isatap", "isatap, global"):
        assert is_public(carried(CARRIES_INWARD[form], v4)), "a network without IPv4 of its own reaches the others so"


@given(
    st.sampled_from(
        ["2a00::/16", "2606:4700::/32", "2400::/16", "2620:0::/23", "8.0.0.0/8", "93.184.0.0/16", "171.64.0.0/14"]
    ).flatmap(lambda network: st.ip_addresses(network=network))
)
def test_ordinary_public_addresses_are_taken(ip: Any):
    assume(len(reachable_addresses(ip)) == 1)
    assert is_public(ip)
    assert check_address(literal(ip), private=False)[1] == str(ip)


@given(st.ip_addresses())
def test_an_address_is_public_only_if_the_standard_says_so(ip: Any):
    if is_public(ip):
        assert all(
            one.is_global and not one.is_multicast and not one.is_reserved for one in reachable_addresses(ip) - {ip}
        )
        assert ip.is_global
        assert not ip.is_multicast


def test_one_inner_address_of_several_is_enough(monkeypatch: pytest.MonkeyPatch):
    answers = [("2606:4700::1111", 443, 0, 0), ("64:ff9b::a9fe:a9fe", 443, 0, 0)]
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET6, socket.SOCK_STREAM, 6, "", one) for one in answers]
    )
    with pytest.raises(InputError, match="public internet"):
        check_address("https://example.org/", private=False)


def test_a_zone_is_no_part_of_a_public_address():
    with pytest.raises(InputError):
        check_address("https://[2606:4700::1111%25eth0]/", private=False)
    assert reachable_addresses(ipaddress.ip_address("fe80::1%eth0")) == {ipaddress.ip_address("fe80::1")}
