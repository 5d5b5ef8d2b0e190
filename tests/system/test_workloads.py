"""Endpoints to kernel state: routes, neighbours, settings and forgotten connections, whatever the order of events."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from ipaddress import ip_address, ip_network

import pytest

from calico_libnetwork.dataplane import sysctl
from calico_libnetwork.dataplane.conntrack import Conntrack
from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.links import LinkChanges, Links
from calico_libnetwork.dataplane.neighbours import Neighbours
from calico_libnetwork.dataplane.netlink import NETFILTER_PROTOCOL
from calico_libnetwork.dataplane.routes import Routes
from calico_libnetwork.dataplane.rtnetlink import IPAddress
from calico_libnetwork.dataplane.veth import VethPairs, VethSpec
from calico_libnetwork.dataplane.workloads import LocalEndpoint
from calico_libnetwork.dataplane.workloads import Workloads as Desired
from calico_libnetwork.errors import DataplaneError
from tests.system.conftest import Namespace, Workloads
from tests.system.test_routes import Written, add_veth, permanent, routes

MAC = "02:00:00:00:00:01"


class Agent:
    """As much of one as the kernel side needs: what ``Links`` reports is applied."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()
        self.programmed: set[str] = set()

    async def open(self, stack: AsyncExitStack) -> Agent:
        self.kernel = await stack.enter_async_context(Kernel())
        flows = await stack.enter_async_context(Kernel(NETFILTER_PROTOCOL, name="conntrack"))
        self.links = Links(self.kernel, self._on_change, matters=lambda route: self.routes.matters(route))
        self.routes = Routes(self.kernel, self.links)
        self.neighbours = Neighbours(self.kernel, self.links)
        self.workloads = Desired(
            self.kernel,
            links=self.links,
            routes=self.routes,
            neighbours=self.neighbours,
            conntrack=Conntrack(flows),
        )
        await stack.enter_async_context(self.links)
        return self

    def _on_change(self, changes: LinkChanges) -> None:
        self.workloads.links_changed(changes)
        self.changed.set()

    async def apply(self) -> None:
        assert await self.workloads.apply() == []
        self.programmed |= {finished.key for finished in self.workloads.take_finished()}

    async def until(self, key: str) -> None:
        async with asyncio.timeout(5):
            while key not in self.programmed:
                await self.changed.wait()
                self.changed.clear()
                await self.apply()


@pytest.fixture
async def agent(namespace: Namespace) -> AsyncIterator[Agent]:
    async with AsyncExitStack() as stack:
        opened = await Agent().open(stack)
        yield opened
        await opened.workloads.drain()


def endpoint(number: int, *addresses: str, key: str = "", mac: str = MAC) -> LocalEndpoint:
    texts = addresses or (f"10.65.{number >> 8}.{number & 255}", f"fd65::{number:x}")
    return LocalEndpoint(
        key=key or f"wep{number}",
        interface=f"cali{number}",
        addresses=tuple(ip_address(text) for text in texts),
        mac=mac,
    )


def route_lines(namespace: Namespace) -> list[str]:
    return [
        line.split(" dev ")[0] + " " + line.split(" dev ")[1].split()[0] for line in routes(namespace) if "cali" in line
    ]


async def test_endpoint_is_programmed_once_its_interface_is_there(namespace: Namespace, agent: Agent) -> None:
    agent.workloads.update(endpoint(1))
    await agent.apply()
    assert "wep1" not in agent.programmed
    add_veth(namespace, 1)
    await agent.until("wep1")
    assert route_lines(namespace) == ["10.65.0.1 cali1", "fd65::1 cali1"]
    assert permanent(namespace, "cali1") == {"10.65.0.1", "fd65::1"}
    settings = sysctl.workload_settings("cali1", ipv6=True)
    assert settings == {key: sysctl.read(key) for key in settings}


async def test_settings_are_made_right_whenever_the_interface_comes_up(namespace: Namespace, agent: Agent) -> None:
    add_veth(namespace, 1)
    agent.workloads.update(endpoint(1))
    await agent.apply()
    sysctl.write("ipv4/conf/cali1/proxy_arp", "0")
    namespace.run("ip", "link", "set", "cali1", "down")
    namespace.run("ip", "link", "set", "cali1", "up")
    await agent.changed.wait()
    await agent.apply()
    assert sysctl.read("ipv4/conf/cali1/proxy_arp") == "1"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ipv4/conf/cali1/proxy_arp", "0"),
        ("ipv4/conf/cali1/forwarding", "0"),
        ("ipv4/conf/cali1/rp_filter", "2"),
        ("ipv6/conf/cali1/proxy_ndp", "0"),
        ("ipv6/conf/cali1/forwarding", "0"),
    ],
)
async def test_settings_changed_by_hand_are_made_right_at_once_where_the_kernel_tells(
    namespace: Namespace, agent: Agent, key: str, value: str
) -> None:
    add_veth(namespace, 1)
    agent.workloads.update(endpoint(1))
    await agent.apply()
    before = sysctl.read(key)
    await asyncio.sleep(0)  # what was announced of its making is no news afterwards
    agent.changed.clear()
    sysctl.write(key, value)
    await agent.changed.wait()
    await agent.apply()
    assert sysctl.read(key) == before != value


async def test_other_settings_changed_by_hand_are_made_right_at_the_next_resync(
    namespace: Namespace, agent: Agent
) -> None:
    add_veth(namespace, 1)
    agent.workloads.update(endpoint(1))
    await agent.apply()
    sysctl.write("ipv4/neigh/cali1/proxy_delay", "80")
    agent.workloads.distrust()
    await agent.apply()
    assert sysctl.read("ipv4/neigh/cali1/proxy_delay") == "0"


async def test_address_inside_a_local_block_needs_no_advertisement(namespace: Namespace, agent: Agent) -> None:
    add_veth(namespace, 1)
    agent.workloads.update(endpoint(1, "10.65.0.1", "10.99.0.1"))
    agent.workloads.set_blocks([ip_network("10.65.0.0/26"), ip_network("10.98.0.1/32")])
    await agent.apply()
    listed = routes(namespace)
    assert "10.65.0.1 dev cali1 scope link metric 1024 linkdown" in listed
    assert "10.99.0.1 dev cali1 proto 80 scope link metric 1024 linkdown" in listed
    assert "blackhole 10.65.0.0/26 proto 80" in listed
    assert not any("10.98.0.1" in line for line in listed)
    agent.workloads.set_blocks([ip_network("10.99.0.0/26")])
    await agent.apply()
    listed = routes(namespace)
    assert "10.65.0.1 dev cali1 proto 80 scope link metric 1024 linkdown" in listed
    assert "10.99.0.1 dev cali1 scope link metric 1024 linkdown" in listed
    assert "blackhole 10.65.0.0/26 proto 80" not in listed
    assert "blackhole 10.99.0.0/26 proto 80" in listed


async def test_of_two_endpoints_with_one_interface_the_lower_key_has_it(namespace: Namespace, agent: Agent) -> None:
    add_veth(namespace, 1)
    agent.workloads.update(endpoint(1, "10.65.0.2", key="b"))
    agent.workloads.update(endpoint(1, "10.65.0.1", key="a"))
    await agent.apply()
    assert route_lines(namespace) == ["10.65.0.1 cali1"]
    assert agent.programmed == {"a"}
    agent.workloads.remove("a")
    await agent.apply()
    assert route_lines(namespace) == ["10.65.0.2 cali1"]
    assert agent.programmed == {"a", "b"}


async def test_of_two_endpoints_with_one_address_the_lower_key_has_it(namespace: Namespace, agent: Agent) -> None:
    add_veth(namespace, 1)
    add_veth(namespace, 2)
    agent.workloads.update(endpoint(2, "10.65.0.1", key="b"))
    agent.workloads.update(endpoint(1, "10.65.0.1", key="a"))
    await agent.apply()
    assert route_lines(namespace) == ["10.65.0.1 cali1"]
    agent.workloads.remove("a")
    agent.workloads.remove("unknown")
    await agent.apply()
    assert route_lines(namespace) == ["10.65.0.1 cali2"]
    assert permanent(namespace, "cali1") == set()
    assert permanent(namespace, "cali2") == {"10.65.0.1"}


async def test_changed_endpoint_keeps_what_stays(namespace: Namespace, agent: Agent) -> None:
    add_veth(namespace, 1)
    agent.workloads.update(endpoint(1, "10.65.0.1", "10.65.0.2", mac=""))
    await agent.apply()
    assert permanent(namespace, "cali1") == set()
    with Written() as written:
        agent.workloads.update(endpoint(1, "10.65.0.1", "10.65.0.3"))
        await agent.apply()
    assert route_lines(namespace) == ["10.65.0.1 cali1", "10.65.0.3 cali1"]
    assert permanent(namespace, "cali1") == {"10.65.0.1", "10.65.0.3"}
    assert written.count == 4


async def test_restart_with_a_thousand_endpoints_writes_nothing(namespace: Namespace) -> None:
    commands = [f"link add cali{n} up type veth peer name temp{n}\n" for n in range(1, 1001)]
    namespace.run("ip", "-batch", "-", stdin="".join(commands))
    for start in range(2):
        async with AsyncExitStack() as stack:
            agent = await Agent().open(stack)
            agent.workloads.set_blocks([ip_network("10.65.0.0/16")])
            for number in range(1, 1001):
                agent.workloads.update(endpoint(number))
            with Written() as written:
                await agent.apply()
            assert len(agent.programmed) == 1000
            assert written.count == (4002 if start == 0 else 0)  # with the block and the gateway
    namespace.run("sh", "-c", "ip link | sed -n 's/.*\\(cali[0-9]*\\)@.*/link set \\1 group 5/p' | ip -batch -")
    namespace.run("ip", "link", "del", "group", "5")


async def test_moved_address_takes_no_connection_along(
    namespace: Namespace, agent: Agent, workloads: Workloads
) -> None:
    """The flow to the old owner is forgotten before the new owner's route is there, others stay."""
    track = "table inet t {\n chain o {\n type filter hook output priority 0;\n ct state new accept\n }\n}\n"
    namespace.run("nft", "-f", "-", stdin=track)
    namespace.run("ip", "addr", "add", "10.64.0.1/32", "dev", "lo")
    for number in (1, 2, 3):
        add_veth(namespace, number)
        workloads.attach(f"temp{number}", addresses=("10.65.0.1/32" if number < 3 else "10.65.0.3/32",), mac=MAC)
    agent.workloads.update(endpoint(1, "10.65.0.1"))
    agent.workloads.update(endpoint(3, "10.65.0.3"))
    await agent.apply()
    for destination in ("10.65.0.1", "10.65.0.3"):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.sendto(b"x", (destination, 9))
    assert flows_to(namespace, "10.65.0.1", "10.65.0.3") == [True, True]
    agent.workloads.remove("wep1")
    agent.workloads.update(endpoint(2, "10.65.0.1"))
    await agent.apply()
    assert flows_to(namespace, "10.65.0.1", "10.65.0.3") == [False, True]
    assert route_lines(namespace) == ["10.65.0.1 cali2", "10.65.0.3 cali3"]


async def test_connections_are_forgotten_also_when_the_interface_went_first(
    namespace: Namespace, agent: Agent, workloads: Workloads
) -> None:
    track = "table inet t {\n chain o {\n type filter hook output priority 0;\n ct state new accept\n }\n}\n"
    namespace.run("nft", "-f", "-", stdin=track)
    namespace.run("ip", "addr", "add", "10.64.0.1/32", "dev", "lo")
    add_veth(namespace, 1)
    workloads.attach("temp1", addresses=("10.65.0.1/32",), mac=MAC)
    agent.workloads.update(endpoint(1, "10.65.0.1"))
    await agent.apply()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"x", ("10.65.0.1", 9))
    namespace.run("ip", "link", "del", "cali1")
    await agent.apply()
    agent.workloads.remove("wep1")
    await agent.apply()
    await agent.workloads.drain()
    assert flows_to(namespace, "10.65.0.1") == [False]


async def test_connections_that_cannot_be_forgotten_are_reported_and_tried_again(
    namespace: Namespace, agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[set[IPAddress]] = []

    async def forget(_conntrack: Conntrack, addresses: set[IPAddress]) -> None:
        tried.append(set(addresses))
        if len(tried) == 1:
            raise DataplaneError("busy")

    monkeypatch.setattr(Conntrack, "forget", forget)
    add_veth(namespace, 1)
    agent.workloads.update(endpoint(1, "10.65.0.1"))
    await agent.apply()
    agent.workloads.remove("wep1")
    await agent.apply()
    await agent.workloads.drain()
    (failure,) = await agent.workloads.apply()
    assert "busy" in failure.reason
    await agent.workloads.drain()
    assert tried == [{ip_address("10.65.0.1")}] * 2
    await agent.apply()


async def test_first_packets_of_both_families_are_answered(
    namespace: Namespace, agent: Agent, workloads: Workloads
) -> None:
    """No default route on the host, no lost first packet: what a container sees right after its start."""
    sysctl.enable_forwarding(ipv6=True)
    async with VethPairs(agent.kernel) as veths:
        containers = []
        for number in (1, 2):
            mac = f"02:00:00:00:00:0{number}"
            spec = VethSpec(host_name=f"cali{number}", peer_name=f"temp{number}", peer_mac=mac, mtu=1500)
            veth = await veths.create(spec)
            agent.workloads.update(endpoint(number, mac=mac))
            await agent.apply()
            assert f"wep{number}" in agent.programmed
            addresses = (f"10.65.0.{number}/32", f"fd65::{number}/128")
            containers.append(workloads.attach(f"temp{number}", addresses=addresses, gateway_v6=str(veth.gateway_v6)))
        assert containers[0].succeeds("ping", "-c", "1", "-W", "1", "10.65.0.2")
        assert containers[1].succeeds("ping", "-6", "-c", "1", "-W", "1", "fd65::1")


def flows_to(namespace: Namespace, *addresses: str) -> list[bool]:
    listed = namespace.run("conntrack", "-L", "-p", "udp")
    return [f"dst={address} " in listed for address in addresses]
