"""Routes and neighbours: what is ours is made right, what is not is left alone, and nothing is written twice."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network

import pytest

from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.links import LinkChanges, Links
from calico_libnetwork.dataplane.neighbours import NeighbourKey, Neighbours
from calico_libnetwork.dataplane.netlink import ROUTE_PROTOCOL, Subscription
from calico_libnetwork.dataplane.routes import Route, Routes, block_route, workload_route
from tests.system.conftest import Namespace

MAC = "02:00:00:00:00:01"


@dataclass
class Host:
    """The drivers as the agent wires them up."""

    kernel: Kernel
    links: Links = field(init=False)
    routes: Routes = field(init=False)
    neighbours: Neighbours = field(init=False)
    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.links = Links(self.kernel, self._on_change, matters=lambda route: self.routes.matters(route))
        self.routes = Routes(self.kernel, self.links)
        self.neighbours = Neighbours(self.kernel, self.links)

    def _on_change(self, changes: LinkChanges) -> None:
        self.routes.links_changed(changes)
        self.neighbours.links_changed(changes)
        self.changed.set()

    async def change(self) -> None:
        await asyncio.wait_for(self.changed.wait(), 5)
        self.changed.clear()

    def want(self, number: int) -> None:
        """A workload behind cali<number>, both families."""
        for address in (f"10.65.0.{number}", f"fd65::{number:x}"):
            self.routes.want(workload_route(ip_network(address), f"cali{number}", advertise=False))
            self.neighbours.want(NeighbourKey(f"cali{number}", ip_address(address)), MAC)

    async def apply(self) -> None:
        self.links.poll()
        assert await self.routes.apply() == []
        assert await self.neighbours.apply() == []


@pytest.fixture
async def host(kernel: Kernel) -> AsyncIterator[Host]:
    made = Host(kernel)
    async with made.links:
        yield made


def add_veth(namespace: Namespace, number: int, *, up: bool = True) -> None:
    namespace.run("ip", "link", "add", f"cali{number}", "type", "veth", "peer", "name", f"temp{number}")
    if up:
        namespace.run("ip", "link", "set", f"cali{number}", "up")


def routes(namespace: Namespace, device: str = "") -> list[str]:
    """As ip prints them: "boot" is the protocol it does not mention."""
    selected = ("dev", device) if device else ()
    lines = []
    for family in ("-4", "-6"):
        lines += namespace.run("ip", family, "route", "show", *selected).splitlines()
    return sorted(" ".join(line.split()) for line in lines if not line.startswith("fe80::/64"))


def permanent(namespace: Namespace, device: str) -> set[str]:
    lines = namespace.run("ip", "neigh", "show", "dev", device, "nud", "permanent").splitlines()
    return {line.split()[0] for line in lines}


async def test_workload_routes_and_neighbours_have_calicos_numbers(namespace: Namespace, host: Host) -> None:
    add_veth(namespace, 1)
    host.want(1)
    host.routes.want(workload_route(ip_network("10.99.0.7"), "cali1", advertise=True))
    host.routes.want(block_route(ip_network("10.65.0.0/26")))
    await host.apply()
    assert routes(namespace, "cali1") == [
        "10.65.0.1 scope link metric 1024 linkdown",
        "10.99.0.7 proto 80 scope link metric 1024 linkdown",
        "fd65::1 metric 1024 linkdown pref medium",
    ]
    assert "blackhole 10.65.0.0/26 proto 80" in routes(namespace)
    assert permanent(namespace, "cali1") == {"10.65.0.1", "fd65::1"}


async def test_route_of_a_missing_or_down_interface_waits_for_it(namespace: Namespace, host: Host) -> None:
    host.want(1)
    await host.apply()
    add_veth(namespace, 1, up=False)
    await host.change()
    await host.apply()
    assert routes(namespace, "cali1") == []
    namespace.run("ip", "link", "set", "cali1", "up")
    await host.change()
    await host.apply()
    assert len(routes(namespace, "cali1")) == 2
    assert permanent(namespace, "cali1") == {"10.65.0.1", "fd65::1"}


async def test_flapping_interface_gets_its_routes_and_neighbours_back(namespace: Namespace, host: Host) -> None:
    add_veth(namespace, 1)
    host.want(1)
    await host.apply()
    before = routes(namespace)
    namespace.run("ip", "link", "set", "cali1", "down")
    namespace.run("ip", "link", "set", "cali1", "up")
    assert routes(namespace, "cali1") == []
    await host.change()
    await host.apply()
    assert before == routes(namespace)
    assert permanent(namespace, "cali1") == {"10.65.0.1", "fd65::1"}


async def test_interface_made_anew_under_its_name_gets_its_routes(namespace: Namespace, host: Host) -> None:
    add_veth(namespace, 1)
    host.want(1)
    await host.apply()
    namespace.run("ip", "link", "del", "cali1")
    add_veth(namespace, 1)
    await host.change()
    await host.apply()
    assert len(routes(namespace, "cali1")) == 2


async def test_restart_writes_nothing(namespace: Namespace) -> None:
    for number in range(1, 20):
        add_veth(namespace, number)
    for attempt in range(2):
        async with AsyncExitStack() as stack:
            host = Host(await stack.enter_async_context(Kernel()))
            await stack.enter_async_context(host.links)
            for number in range(1, 20):
                host.want(number)
            host.routes.want(block_route(ip_network("10.65.0.0/26")))
            host.routes.want(block_route(ip_network("fd65::/122")))
            with Written() as written:
                await host.apply()
                await host.apply()
            assert (written.count > 0) == (attempt == 0)


async def test_damage_done_by_hand_is_noticed_and_repaired(namespace: Namespace, host: Host) -> None:
    add_veth(namespace, 1)
    host.want(1)
    host.routes.want(block_route(ip_network("10.65.0.0/26")))
    await host.apply()
    await host.change()
    before = routes(namespace)
    for damage in (
        ("route", "del", "10.65.0.1"),
        ("-6", "route", "del", "fd65::1"),
        ("route", "del", "blackhole", "10.65.0.0/26"),
        ("neigh", "del", "10.65.0.1", "dev", "cali1"),
        ("neigh", "replace", "10.65.0.1", "lladdr", "02:00:00:00:00:99", "dev", "cali1"),
        ("route", "change", "10.65.0.1", "dev", "cali1", "metric", "1024", "proto", "boot", "mtu", "900"),
        ("route", "add", "10.77.0.0/24", "dev", "cali1"),
        ("route", "add", "blackhole", "10.78.0.0/24", "proto", "80"),
    ):
        namespace.run("ip", *damage)
        await host.change()
        await host.apply()
        assert before == routes(namespace)
        assert permanent(namespace, "cali1") == {"10.65.0.1", "fd65::1"}
        assert MAC in namespace.run("ip", "neigh", "show", "10.65.0.1", "dev", "cali1")


async def test_damage_done_while_down_is_repaired_at_start(namespace: Namespace, host: Host) -> None:
    add_veth(namespace, 1)
    namespace.run("ip", "route", "add", "10.65.0.99", "dev", "cali1", "proto", "boot", "metric", "1024")
    namespace.run("ip", "route", "add", "10.65.0.1", "dev", "cali1", "proto", "80", "metric", "1024")
    namespace.run("ip", "neigh", "add", "10.65.0.99", "lladdr", MAC, "dev", "cali1", "nud", "permanent")
    host.want(1)
    await host.apply()
    assert routes(namespace, "cali1") == [
        "10.65.0.1 scope link metric 1024 linkdown",
        "fd65::1 metric 1024 linkdown pref medium",
    ]
    assert permanent(namespace, "cali1") == {"10.65.0.1", "fd65::1"}


async def test_routes_and_neighbours_of_others_stay(namespace: Namespace, host: Host) -> None:
    namespace.run("ip", "link", "add", "eth9", "type", "bridge")
    namespace.run("ip", "addr", "add", "192.0.2.1/24", "dev", "eth9")
    namespace.run("ip", "link", "set", "eth9", "up")
    namespace.run("ip", "route", "add", "10.66.0.0/24", "via", "192.0.2.9")
    namespace.run("ip", "route", "add", "blackhole", "10.67.0.0/24")
    namespace.run("ip", "route", "add", "10.68.0.0/24", "via", "192.0.2.9", "proto", "bird")
    namespace.run("ip", "neigh", "add", "192.0.2.9", "lladdr", MAC, "dev", "eth9", "nud", "permanent")
    before = set(routes(namespace))
    add_veth(namespace, 1)
    host.want(1)
    await host.apply()
    for key in list(host.routes.desired):
        host.routes.unwant(key)
    host.neighbours.unwant(NeighbourKey("cali1", ip_address("10.65.0.1")))
    await host.apply()
    assert before <= set(routes(namespace))
    assert permanent(namespace, "eth9") == {"192.0.2.9"}


async def test_address_moves_between_interfaces_without_a_gap(namespace: Namespace, host: Host) -> None:
    add_veth(namespace, 1)
    add_veth(namespace, 2)
    for address in ("10.65.0.1", "fd65::1"):
        host.routes.want(workload_route(ip_network(address), "cali1", advertise=False))
    await host.apply()
    for key in list(host.routes.desired):
        if key[2] == "cali1":
            host.routes.unwant(key)
            host.routes.want(workload_route(key[0], "cali2", advertise=False))
    await host.apply()
    assert routes(namespace, "cali1") == []
    assert len(routes(namespace, "cali2")) == 2


async def test_routes_lost_with_a_devices_last_address_come_back(namespace: Namespace, host: Host) -> None:
    """The kernel drops the device's IPv4 routes without announcing it."""
    namespace.run("ip", "link", "add", "eth9", "up", "type", "bridge")
    namespace.run("ip", "addr", "add", "192.0.2.1/24", "dev", "eth9")
    host.links.poll()
    via = Route(destination=ip_network("10.66.0.0/26"), interface="eth9", gateway=ip_address("192.0.2.9"))
    host.routes.want(via)
    await host.apply()
    host.changed.clear()
    namespace.run("ip", "addr", "del", "192.0.2.1/24", "dev", "eth9")
    assert "10.66.0.0/26" not in " ".join(routes(namespace))
    await host.change()
    await host.apply()
    assert "10.66.0.0/26 via 192.0.2.9 dev eth9 proto 80 onlink" in " ".join(routes(namespace)).replace("linkdown ", "")


async def test_one_impossible_route_does_not_stop_the_others(namespace: Namespace, host: Host) -> None:
    add_veth(namespace, 1)
    host.want(1)
    host.routes.want(Route(destination=ip_network("fd77::/64"), interface="lo", gateway=ip_address("ff02::1")))
    host.links.poll()
    failures = await host.routes.apply()
    assert [failure.interface for failure in failures] == ["lo"]
    assert "fd77::/64" in failures[0].reason
    assert len(routes(namespace, "cali1")) == 2


async def test_gateway_route_exists_exactly_while_nothing_else_covers_it(namespace: Namespace, host: Host) -> None:
    gateway = "169.254.1.0/24 dev lo proto 80 scope link metric 1073741824"
    await host.apply()
    assert gateway in routes(namespace)
    namespace.run("ip", "link", "add", "eth9", "type", "bridge")
    namespace.run("ip", "addr", "add", "192.0.2.1/24", "dev", "eth9")
    namespace.run("ip", "link", "set", "eth9", "up")
    namespace.run("ip", "route", "add", "default", "via", "192.0.2.9")
    await host.change()
    await host.apply()
    assert gateway not in routes(namespace)
    namespace.run("ip", "route", "del", "default")
    await host.change()
    await host.apply()
    assert gateway in routes(namespace)


class Written:
    """Counts the route and neighbour changes made meanwhile by any program, not by the kernel itself."""

    def __enter__(self) -> Written:
        self._subscription = Subscription(ROUTE_PROTOCOL, (3, 7, 11))
        return self

    def __exit__(self, *_: object) -> None:
        messages, lost = self._subscription.read(100_000)
        assert not lost
        self.count = sum(message.port != 0 for message in messages)
        self._subscription.close()
