"""The interface monitor: complete from the start, told of every change, and not fooled when notifications are lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from ipaddress import IPv4Network, ip_address

import pytest

from calico_libnetwork.dataplane import links as links_module
from calico_libnetwork.dataplane import rtnetlink
from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.links import LinkChanges, Links
from calico_libnetwork.dataplane.netlink import Socket
from tests.system.conftest import Namespace, eventually


class Seen:
    """Everything reported so far, as one."""

    def __init__(self) -> None:
        self.all = LinkChanges()
        self.reports = 0

    def __call__(self, changes: LinkChanges) -> None:
        self.reports += 1
        self.all.interfaces |= changes.interfaces
        self.all.lost_routes |= changes.lost_routes
        self.all.addresses |= changes.addresses
        self.all.routes |= changes.routes
        self.all.neighbours |= changes.neighbours


@pytest.fixture
def seen() -> Seen:
    return Seen()


@pytest.fixture
async def links(kernel: Kernel, seen: Seen) -> AsyncIterator[Links]:
    async with Links(kernel, seen) as opened:
        yield opened


async def test_interfaces_of_before_are_known_at_once(namespace: Namespace, kernel: Kernel, seen: Seen) -> None:
    namespace.run("ip", "link", "add", "cali1", "mtu", "1400", "type", "veth", "peer", "name", "temp1")
    async with Links(kernel, seen) as links:
        assert links.by_name.keys() == {"lo", "cali1", "temp1"}
        link = links.by_name["cali1"]
        assert (link.kind, link.mtu, link.up, link.peer) == ("veth", 1400, False, links.by_name["temp1"].index)
        assert links.names[link.index] == "cali1"
        assert ip_address("127.0.0.1") in {info.address for info in links.addresses}
    assert seen.reports == 0


async def test_coming_renaming_and_going_are_reported(namespace: Namespace, links: Links, seen: Seen) -> None:
    namespace.run("ip", "link", "add", "cali1", "type", "veth", "peer", "name", "temp1")
    await eventually(lambda: "cali1" in links.by_name)
    namespace.run("ip", "link", "set", "cali1", "up")
    await eventually(lambda: links.is_up("cali1"))
    namespace.run("ip", "link", "set", "temp1", "name", "temp2")
    await eventually(lambda: "temp2" in links.by_name and "temp1" not in links.by_name)
    namespace.run("ip", "link", "del", "cali1")
    await eventually(lambda: links.by_name.keys() == {"lo"})
    assert seen.all.interfaces == {"cali1", "temp1", "temp2"}
    assert "cali1" in seen.all.lost_routes


async def test_going_down_and_up_between_two_looks_still_loses_the_routes(
    namespace: Namespace, links: Links, seen: Seen
) -> None:
    namespace.run("ip", "link", "add", "cali1", "up", "type", "veth", "peer", "name", "temp1")
    await eventually(lambda: links.is_up("cali1"))
    assert not seen.all.lost_routes
    namespace.run("ip", "-batch", "-", stdin="link set cali1 down\nlink set cali1 up\n")
    await eventually(lambda: seen.all.lost_routes == {"cali1"})
    assert links.is_up("cali1")


async def test_carrier_loss_loses_no_routes(namespace: Namespace, links: Links, seen: Seen) -> None:
    namespace.run("ip", "link", "add", "cali1", "up", "type", "veth", "peer", "name", "temp1")
    namespace.run("ip", "link", "set", "temp1", "up")
    await eventually(lambda: "cali1" in links.by_name and links.by_name["cali1"].running)
    namespace.run("ip", "link", "set", "temp1", "down")
    await eventually(lambda: not links.by_name["cali1"].running)
    assert "cali1" not in seen.all.lost_routes


async def test_own_routes_are_no_news_and_other_peoples_are(
    namespace: Namespace, kernel: Kernel, links: Links, seen: Seen
) -> None:
    namespace.run("ip", "link", "add", "cali1", "up", "type", "veth", "peer", "name", "temp1")
    await eventually(lambda: links.is_up("cali1"))
    seen.all = LinkChanges()
    index = links.by_name["cali1"].index
    route = rtnetlink.RouteInfo(IPv4Network("10.65.0.1/32"), index, metric=1024)
    await kernel.run(Socket.do, rtnetlink.replace_route(route))
    links.poll()
    assert not seen.all.routes
    namespace.run("ip", "route", "del", "10.65.0.1")
    await eventually(lambda: seen.all.routes)
    assert not seen.all.neighbours
    namespace.run("ip", "neigh", "add", "10.65.0.9", "lladdr", "02:00:00:00:00:01", "dev", "cali1")
    await eventually(lambda: seen.all.neighbours)


async def test_addresses_are_followed(namespace: Namespace, links: Links, seen: Seen) -> None:
    namespace.run("ip", "addr", "add", "192.0.2.7/24", "dev", "lo")
    await eventually(lambda: ip_address("192.0.2.7") in {info.address for info in links.addresses})
    namespace.run("ip", "addr", "del", "192.0.2.7/24", "dev", "lo")
    await eventually(lambda: ip_address("192.0.2.7") not in {info.address for info in links.addresses})
    assert seen.all.addresses


async def test_addresses_of_workloads_coming_all_the_time_delay_no_listing(
    namespace: Namespace, kernel: Kernel, seen: Seen
) -> None:
    """The kernel makes each workload's IPv6 address when it comes to it, and calls a listing broken by that."""
    namespace.run("ip", "link", "add", "cali1", "type", "veth", "peer", "name", "temp1")
    addresses = [f"fd00::{number:x}/128 dev cali1\n" for number in range(1, 2000)]
    namespace.run("ip", "-batch", "-", stdin="".join(f"addr add {address}" for address in addresses))
    churn = "".join(f"addr {verb} {addresses[0]}" for _ in range(20_000) for verb in ("del", "add"))
    busy = asyncio.create_task(asyncio.to_thread(namespace.run, "ip", "-batch", "-", stdin=churn))
    namespace.run("ip", "addr", "add", "192.0.2.7/24", "dev", "lo")
    for _ in range(20):
        async with Links(kernel, seen) as links:
            assert {str(info.address) for info in links.addresses} == {"127.0.0.1", "::1", "192.0.2.7"}
        assert not busy.done()
    await busy


async def test_interfaces_that_stay_are_listed_while_others_come(
    namespace: Namespace, kernel: Kernel, seen: Seen
) -> None:
    pairs = [f"link add cali{number} type veth peer name temp{number}\n" for number in range(200)]
    namespace.run("ip", "-batch", "-", stdin="".join(pairs))
    stay = {"lo", *(f"{prefix}{number}" for prefix in ("cali", "temp") for number in range(200))}
    churn = "".join(f"link add other{number} type vxlan id {number} dstport 4789\n" for number in range(500))
    busy = asyncio.create_task(asyncio.to_thread(namespace.run, "ip", "-batch", "-", stdin=churn))
    while not busy.done():
        async with Links(kernel, seen) as links:
            assert stay <= links.by_name.keys()
    await busy


async def test_lost_notifications_cost_one_new_listing(namespace: Namespace, kernel: Kernel, seen: Seen) -> None:
    """A buffer this small overflows after a few messages."""
    async with Links(kernel, seen, receive_bytes=2048) as links:
        commands = [f"link add cali{n} up type veth peer name temp{n}\n" for n in range(40)]
        namespace.run("ip", "-batch", "-", stdin="".join([*commands, "link del cali7\n"]))
        await eventually(lambda: len(links.by_name) == 79)
        assert "cali7" not in links.by_name
        assert links.is_up("cali39")
        await eventually(lambda: seen.all.routes and seen.all.neighbours)


async def test_listing_does_not_undo_what_was_announced_meanwhile(
    namespace: Namespace, kernel: Kernel, links: Links, seen: Seen, monkeypatch: pytest.MonkeyPatch
) -> None:
    namespace.run("ip", "link", "add", "cali1", "type", "veth", "peer", "name", "temp1")
    await eventually(lambda: "cali1" in links.by_name)
    list_links = links_module._list_links

    def slow_listing(socket: Socket) -> object:
        listed = list_links(socket)
        namespace.run("ip", "link", "set", "cali1", "up")
        loop.call_soon_threadsafe(links.poll)
        return listed

    loop = asyncio.get_running_loop()
    monkeypatch.setattr(links_module, "_list_links", slow_listing)
    await links.relist()
    assert links.is_up("cali1")
