"""The codec against the kernel, with pyroute2 as the oracle of what the kernel then holds."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from dataclasses import replace
from ipaddress import ip_address, ip_network

import pytest
from pyroute2 import IPRoute

from calico_libnetwork.dataplane import rtnetlink
from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.netlink import ROUTE_PROTOCOL, Socket
from calico_libnetwork.dataplane.rtnetlink import NeighbourInfo, RouteInfo, RouteKind
from calico_libnetwork.errors import KernelRefused
from tests.system.conftest import Namespace, Workloads


@pytest.fixture
def kernel(namespace: Namespace) -> Iterator[Socket]:
    opened = Socket(ROUTE_PROTOCOL)
    yield opened
    opened.close()


@pytest.fixture
def oracle(namespace: Namespace) -> Iterator[IPRoute]:
    with IPRoute() as opened:
        yield opened


@pytest.fixture
def bridge(namespace: Namespace, kernel: Socket) -> int:
    """The index of a device that is up."""
    kernel.do(rtnetlink.create_link("bridge", [rtnetlink.link_name("d0")]))
    index = rtnetlink.parse_link(kernel.ask(rtnetlink.get_link("d0"))).index
    kernel.do(rtnetlink.set_link(index, up=True))
    return index


def test_veth_is_created_with_both_names_macs_mtu_and_group(kernel: Socket, oracle: IPRoute) -> None:
    kernel.do(
        rtnetlink.create_veth(
            host=(
                rtnetlink.link_name("cali1"),
                rtnetlink.link_mac("ee:ee:ee:ee:ee:ee"),
                rtnetlink.link_mtu(1400),
                rtnetlink.link_group(7),
            ),
            peer=(
                rtnetlink.link_name("temp1"),
                rtnetlink.link_mac("02:00:00:00:00:01"),
                rtnetlink.link_mtu(1400),
            ),
        )
    )
    seen = {link.get("ifname"): link for link in oracle.get_links()}
    assert seen["cali1"].get("address") == "ee:ee:ee:ee:ee:ee"
    assert seen["temp1"].get("address") == "02:00:00:00:00:01"
    assert (seen["cali1"].get("mtu"), seen["temp1"].get("mtu")) == (1400, 1400)
    assert seen["cali1"].get("group") == 7
    ours = rtnetlink.parse_link(kernel.ask(rtnetlink.get_link("cali1")))
    assert (ours.index, ours.kind, ours.up, ours.group) == (seen["cali1"]["index"], "veth", False, 7)


def test_listed_links_are_those_of_the_oracle(kernel: Socket, oracle: IPRoute, bridge: int) -> None:
    ours = {link.index: (link.name, link.up, link.mtu) for link in _links(kernel)}
    theirs = {
        link["index"]: (link.get("ifname"), bool(link["flags"] & 1), link.get("mtu")) for link in oracle.get_links()
    }
    assert theirs == ours


def test_link_is_renamed_moved_and_deleted(kernel: Socket, workloads: Workloads) -> None:
    other = workloads.namespace()
    kernel.do(rtnetlink.create_veth((rtnetlink.link_name("v0"),), (rtnetlink.link_name("v1"),)))
    index = rtnetlink.parse_link(kernel.ask(rtnetlink.get_link("v1"))).index
    kernel.do(rtnetlink.set_link(index, rtnetlink.link_name("v2")))
    assert {"lo", "v0", "v2"} == {link.name for link in _links(kernel)}
    kernel.do(rtnetlink.set_link(index, rtnetlink.link_namespace(other.descriptor)))
    assert {"lo", "v0"} == {link.name for link in _links(kernel)}
    assert "v2" in other.run("ip", "-br", "link")
    kernel.do(rtnetlink.delete_link(rtnetlink.parse_link(kernel.ask(rtnetlink.get_link("v0"))).index))
    assert "v2" not in other.run("ip", "-br", "link")


def test_deleting_a_group_takes_its_links_alone(kernel: Socket) -> None:
    for number in range(4):
        kernel.do(
            rtnetlink.create_link(
                "bridge", [rtnetlink.link_name(f"d{number}"), rtnetlink.link_group(77 if number < 3 else 78)]
            )
        )
    kernel.do(rtnetlink.delete_links_of_group(77))
    assert {"lo", "d3"} == {link.name for link in _links(kernel)}


def test_address_is_added_twice_read_and_deleted(kernel: Socket, bridge: int) -> None:
    for address, length in ((ip_address("10.9.0.1"), 32), (ip_address("fd00::9"), 128)):
        kernel.do(*[rtnetlink.add_address(bridge, address, length)] * 2)
        assert address in {found.address for found in _addresses(kernel, bridge)}
        kernel.do(rtnetlink.delete_address(bridge, address, length))
        assert address not in {found.address for found in _addresses(kernel, bridge)}


ROUTES = [
    RouteInfo(ip_network("10.9.1.1/32"), protocol=3, metric=1024),
    RouteInfo(ip_network("10.9.2.0/26"), gateway=ip_address("10.8.0.2"), protocol=80, onlink=True, mtu=1410),
    RouteInfo(ip_network("10.9.3.0/26"), kind=RouteKind.BLACKHOLE, protocol=80),
    RouteInfo(ip_network("10.9.4.0/26"), kind=RouteKind.UNREACHABLE, protocol=80, metric=5),
    RouteInfo(ip_network("fd00::1/128"), protocol=3, metric=1024),
    RouteInfo(ip_network("fd00:1::/122"), gateway=ip_address("fe80::2"), protocol=80, metric=1024, onlink=True),
    RouteInfo(ip_network("fd00:2::/122"), kind=RouteKind.BLACKHOLE, protocol=80, metric=1024),
]


@pytest.mark.parametrize("route", ROUTES, ids=lambda route: str(route.destination))
def test_route_reads_back_as_written_and_as_the_oracle_sees_it(
    kernel: Socket, oracle: IPRoute, bridge: int, route: RouteInfo
) -> None:
    written = _through(route, bridge)
    kernel.do(rtnetlink.replace_route(written), rtnetlink.replace_route(written))
    assert [written] == [found for found in _routes(kernel) if found.destination == route.destination]
    (seen,) = [found for found in oracle.get_routes() if found.get("dst") == str(route.destination.network_address)]
    assert (seen["proto"], seen["type"], seen["dst_len"]) == (route.protocol, route.kind, route.destination.prefixlen)
    if route.destination.version == 4:
        assert seen["scope"] == (253 if route.kind == RouteKind.UNICAST and not route.gateway else 0)
    kernel.do(rtnetlink.delete_route(written))
    assert route.destination not in {found.destination for found in _routes(kernel)}


def test_refused_request_names_its_reason_and_does_not_stop_the_batch(kernel: Socket, bridge: int) -> None:
    good = [_through(RouteInfo(ip_network(f"10.7.{n // 250}.{n % 250}/32"), metric=1024), bridge) for n in range(400)]
    bad = RouteInfo(ip_network("10.6.0.0/24"), index=9999)
    answers = kernel.exchange([rtnetlink.replace_route(route) for route in [*good[:200], bad, *good[200:]]])
    refusals = [(position, answer.error) for position, answer in enumerate(answers) if answer.error is not None]
    assert [position for position, _ in refusals] == [200]
    assert refusals[0][1].errno == errno.ENODEV
    assert len(_routes(kernel)) >= 400


def test_extended_reason_of_the_kernel_is_kept(kernel: Socket, bridge: int) -> None:
    unreachable_gateway = RouteInfo(ip_network("10.6.0.0/24"), index=bridge, gateway=ip_address("10.200.0.1"))
    with pytest.raises(KernelRefused, match="Nexthop has invalid gateway") as refused:
        kernel.do(rtnetlink.replace_route(unreachable_gateway))
    assert refused.value.errno == errno.ENETUNREACH


def test_two_thousand_routes_are_listed_completely(kernel: Socket, bridge: int) -> None:
    written = {_through(RouteInfo(ip_network(f"10.{n >> 8}.{n & 255}.1/32"), metric=1024), bridge) for n in range(2000)}
    kernel.do(*[rtnetlink.replace_route(route) for route in written])
    assert written == set(_routes(kernel))


def test_permanent_neighbours_of_both_families(kernel: Socket, oracle: IPRoute, bridge: int) -> None:
    for address in (ip_address("10.9.1.1"), ip_address("fd00::1")):
        entry = NeighbourInfo(bridge, address, "02:00:00:00:00:01")
        kernel.do(rtnetlink.replace_neighbour(entry), rtnetlink.replace_neighbour(entry))
        assert entry in _neighbours(kernel)
        (seen,) = [found for found in oracle.get_neighbours() if found.get("dst") == str(address)]
        assert (seen["state"], seen.get("lladdr")) == (0x80, "02:00:00:00:00:01")
        kernel.do(rtnetlink.delete_neighbour(entry))
        assert entry not in _neighbours(kernel)


def test_fifteen_hundred_permanent_neighbours_fit(kernel: Socket, bridge: int) -> None:
    """The kernel's limit of 1024 entries is for those it may collect."""
    entries = {NeighbourInfo(bridge, ip_address(0x0A090000 + n), "02:00:00:00:00:01") for n in range(1, 1501)}
    kernel.do(*[rtnetlink.replace_neighbour(entry) for entry in entries])
    assert entries <= set(_neighbours(kernel))


async def test_kernel_runs_in_its_own_thread_and_namespace(namespace: Namespace, bridge: int) -> None:
    async with Kernel() as kernel:
        assert {link.name for link in await kernel.run(_links)} == {"lo", "d0"}
        assert kernel.port


def _through(route: RouteInfo, index: int) -> RouteInfo:
    return replace(route, index=index) if route.kind == RouteKind.UNICAST else route


def _links(kernel: Socket) -> list[rtnetlink.LinkInfo]:
    return [rtnetlink.parse_link(message) for message in kernel.dump(*rtnetlink.LIST_LINKS)]


def _addresses(kernel: Socket, index: int) -> list[rtnetlink.AddressInfo]:
    found = [rtnetlink.parse_address(message) for message in kernel.dump(*rtnetlink.list_addresses(index))]
    return [address for address in found if address is not None]


def _routes(kernel: Socket) -> list[RouteInfo]:
    messages = [m for family in (socket.AF_INET, socket.AF_INET6) for m in kernel.dump(*rtnetlink.list_routes(family))]
    found = [route for route in map(rtnetlink.parse_route, messages) if route is not None]
    return [route for route in found if route.protocol != rtnetlink.PROTOCOL_KERNEL]


def _neighbours(kernel: Socket) -> list[NeighbourInfo]:
    found = [rtnetlink.parse_neighbour(message) for message in kernel.dump(*rtnetlink.LIST_NEIGHBOURS)]
    return [entry for entry in found if entry is not None]
