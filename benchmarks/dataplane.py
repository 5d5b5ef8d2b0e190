"""The kernel side of an endpoint, beside the least that could do the same, in the same run.

    sudo python -m benchmarks.dataplane [--rounds 30] [--routes 1000] [--endpoints 10000]

Everything happens in a network namespace of its own. "Raw" is one blocking netlink socket and messages encoded
beforehand, no asyncio, no settings; ``ip -batch`` and ``nft -f`` are the usual tools. Ours and the others alternate.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import os
import socket
import statistics
import struct
import subprocess
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from ipaddress import IPv4Address, IPv4Network, ip_address

from rich.console import Console
from rich.table import Table as Printed

from calico_libnetwork.dataplane import rtnetlink, sysctl
from calico_libnetwork.dataplane.conntrack import Conntrack
from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.links import LinkChanges, Links
from calico_libnetwork.dataplane.neighbours import Neighbours
from calico_libnetwork.dataplane.netlink import ACK, NETFILTER_PROTOCOL, REQUEST, Request
from calico_libnetwork.dataplane.nft import Nft
from calico_libnetwork.dataplane.nftables import TableWriter
from calico_libnetwork.dataplane.routes import Routes, workload_route
from calico_libnetwork.dataplane.table import Chain, SetSpec, Table
from calico_libnetwork.dataplane.veth import VethPairs, VethSpec
from calico_libnetwork.dataplane.workloads import LocalEndpoint, Workloads

MAC = "02:00:00:00:00:01"
TOGETHER = 20


class Raw:
    """A netlink socket and nothing around it."""

    def __init__(self) -> None:
        self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0)
        self._socket.bind((0, 0))

    def send_all(self, requests: Iterable[Request]) -> None:
        for request in requests:
            self.send(request)

    def send(self, request: Request) -> None:
        header = struct.pack("=IHHII", 16 + len(request.body), request.kind, request.flags | REQUEST | ACK, 1, 0)
        self._socket.send(header + request.body)
        (code,) = struct.unpack_from("=i", self._socket.recv(65536), 16)
        assert code == 0, os.strerror(-code)


class Bench:
    """Times in seconds, by row and by who did it."""

    def __init__(self) -> None:
        self.times: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
        self.raw = Raw()

    def blocking(self, row: str, who: str, work: Callable[[], object]) -> None:
        started = time.perf_counter()
        work()
        self.times[row][who].append(time.perf_counter() - started)

    async def ours(self, row: str, work: Awaitable[object]) -> None:
        started = time.perf_counter()
        await work
        self.times[row]["ours"].append(time.perf_counter() - started)

    async def open(self, stack: AsyncExitStack) -> None:
        kernel = await stack.enter_async_context(Kernel())
        connections = await stack.enter_async_context(Kernel(NETFILTER_PROTOCOL, name="conntrack"))
        self.links = Links(kernel, self._on_change, matters=lambda route: self.routes.matters(route))
        self.routes = Routes(kernel, self.links)
        self.workloads = Workloads(
            kernel,
            links=self.links,
            routes=self.routes,
            neighbours=Neighbours(kernel, self.links),
            conntrack=Conntrack(connections),
        )
        self.nft = await stack.enter_async_context(Nft())
        self.veths = await stack.enter_async_context(VethPairs(kernel))
        await stack.enter_async_context(self.links)
        stack.push_async_callback(self.workloads.drain)

    def _on_change(self, changes: LinkChanges) -> None:
        self.workloads.links_changed(changes)

    async def life_cycles(self, rounds: int) -> None:
        for number in range(rounds):
            self.raw_veth(number)
            spec = VethSpec(host_name=f"cali{number}", peer_name=f"temp{number}", peer_mac=MAC, mtu=1500)
            await self.ours("veth: create, set up", self.veths.create(spec))
            address = f"10.65.{number >> 8}.{number & 255}"
            addresses = (ip_address(address), ip_address(f"fd65::{number:x}"))
            endpoint = LocalEndpoint(key=f"w{number}", interface=spec.host_name, addresses=addresses, mac=MAC)
            self.workloads.update(endpoint)
            await self.ours("endpoint: two routes, two neighbours, settings checked", self.workloads.apply())
            assert self.workloads.take_finished() == [endpoint]
            await self.ours("veth: delete", self.veths.schedule_delete(spec.host_name))
            self.workloads.remove(endpoint.key)
            await self.ours("endpoint: removed", self.workloads.apply())
            await self.veths.drain()

    def raw_veth(self, number: int) -> None:
        name, peer = rtnetlink.link_name(f"raw{number}"), rtnetlink.link_name(f"peer{number}")
        create = rtnetlink.create_veth((name,), (peer, rtnetlink.link_mac(MAC)))

        def make() -> int:
            self.raw.send(create)
            index = socket.if_nametoindex(f"raw{number}")
            self.raw.send(rtnetlink.set_link(index, up=True))
            return index

        self.blocking("veth: create, set up", "raw netlink", make)
        index = socket.if_nametoindex(f"raw{number}")
        network = IPv4Network(f"10.64.{number >> 8}.{number & 255}/32")
        wire = rtnetlink.RouteInfo(network, index, metric=1024)
        entry = rtnetlink.NeighbourInfo(index, IPv4Address(network.network_address), MAC)
        requests = [rtnetlink.replace_route(wire), rtnetlink.replace_neighbour(entry)] * 2
        row = "endpoint: two routes, two neighbours, settings checked"
        self.blocking(row, "raw netlink", lambda: self.raw.send_all(requests))
        self.blocking("veth: delete", "raw netlink", lambda: self.raw.send(rtnetlink.delete_link(index)))

    async def deletions_together(self) -> None:
        row = f"veth: {TOGETHER} deleted, until gone"
        indices = []
        for number in range(TOGETHER):
            names = rtnetlink.link_name(f"raw{number}"), rtnetlink.link_name(f"peer{number}")
            self.raw.send(rtnetlink.create_veth((names[0],), (names[1],)))
            indices.append(socket.if_nametoindex(f"raw{number}"))
            spec = VethSpec(host_name=f"cali{number}", peer_name=f"temp{number}", peer_mac=MAC, mtu=1500)
            await self.veths.create(spec)
        self.blocking(row, "raw netlink", lambda: self.raw.send_all(map(rtnetlink.delete_link, indices)))

        async def delete() -> None:
            await asyncio.gather(*(self.veths.schedule_delete(f"cali{number}") for number in range(TOGETHER)))
            await self.veths.drain()

        await self.ours(row, delete())

    async def many_routes(self, count: int) -> None:
        spec = VethSpec(host_name="cali-bench", peer_name="bench", peer_mac=MAC, mtu=1500)
        index = (await self.veths.create(spec)).index
        self.links.poll()
        networks = [IPv4Network((0x0A800000 + number, 32)) for number in range(count)]
        encoded = [rtnetlink.RouteInfo(network, index, metric=1024) for network in networks]
        add, delete = f"route: {count} added", f"route: {count} deleted"
        for row, make in ((add, rtnetlink.replace_route), (delete, rtnetlink.delete_route)):
            requests = [make(route) for route in encoded]
            self.blocking(row, "raw netlink", partial(self.raw.send_all, requests))
        for row, verb in ((add, "replace"), (delete, "del")):
            lines = "".join(f"route {verb} {network} dev cali-bench metric 1024\n" for network in networks)
            self.blocking(row, "ip -batch", partial(_tool, "ip", "-batch", "-", stdin=lines))
        routes = [workload_route(network, "cali-bench", advertise=False) for network in networks]
        for route in routes:
            self.routes.want(route)
        await self.ours(add, self.routes.apply())
        await self.ours(f"route: {count} read and found right", self._read_again())
        for route in routes:
            self.routes.unwant(route.key)
        await self.ours(delete, self.routes.apply())
        await self.veths.delete(spec.host_name)

    async def _read_again(self) -> None:
        await self.routes.read()
        assert await self.routes.apply() == []

    async def one_among_many(self, endpoints: int, rounds: int) -> None:
        table = Table("inet", "calico-libnetwork")
        for name in ("from_wl", "to_wl"):
            table.sets.want(name, SetSpec("map", "type ifname : verdict;"))
        table.sets.want("s4", SetSpec("set", "type ipv4_addr;"))
        table.chains.want("sig_a", Chain(("accept",)))
        writer = TableWriter(self.nft, table)
        for number in range(endpoints):
            _want_endpoint(table, number)
        await self.ours(f"nft: {endpoints} endpoints loaded", writer.apply())
        row = f"nft: one endpoint more among {endpoints}"
        for number in range(endpoints, endpoints + rounds):
            _want_endpoint(table, number)
            await self.ours(row, writer.apply())
            name = f"inet calico-libnetwork from_wl {{ other{number} : goto sig_a }}"
            self.blocking(row, "nft -f", partial(_tool, "nft", "-f", "-", stdin=f"add element {name}\n"))


def _want_endpoint(table: Table, number: int) -> None:
    table.elements.want(("from_wl", f"cali{number}"), "goto sig_a")
    table.elements.want(("to_wl", f"cali{number}"), "goto sig_a")
    table.elements.want(("s4", f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}"), "")


def _tool(*command: str, stdin: str) -> None:
    subprocess.run(command, input=stdin, text=True, check=True)


def show(times: dict[str, dict[str, list[float]]]) -> Printed:
    printed = Printed(title="Kernel side: milliseconds, median")
    for heading in ("", "ours", "beside it", "", "ours / other"):
        printed.add_column(heading, justify="left" if not heading else "right")
    for row, by_who in times.items():
        ours = statistics.median(by_who["ours"]) * 1000
        others: Sequence[tuple[str, float]] = [
            (who, statistics.median(values) * 1000) for who, values in by_who.items() if who != "ours"
        ]
        for who, other in others or [("", 0.0)]:
            ratio = f"{ours / other:.2f}" if other else ""
            printed.add_row(row, f"{ours:.2f}", who, f"{other:.2f}" if other else "", ratio)
    return printed


async def run(*, rounds: int, routes: int, endpoints: int) -> None:
    sysctl.enable_forwarding(ipv6=True)
    bench = Bench()
    async with AsyncExitStack() as stack:
        await bench.open(stack)
        await bench.workloads.apply()
        await bench.life_cycles(rounds)
        for _ in range(3):
            await bench.deletions_together()
            await bench.many_routes(routes)
        await bench.one_among_many(endpoints, rounds)
    Console(width=120).print(show(bench.times))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--routes", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=10_000)
    arguments = parser.parse_args()
    if ctypes.CDLL(None).unshare(0x40000000):  # CLONE_NEWNET
        parser.error("a network namespace of its own needs root")
    _tool("ip", "link", "set", "lo", "up", stdin="")
    asyncio.run(run(rounds=arguments.rounds, routes=arguments.routes, endpoints=arguments.endpoints))


if __name__ == "__main__":
    main()
