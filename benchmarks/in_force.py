"""From the datastore's write to rules, route and neighbour in force, through the agent as the process runs it.

    sudo .venv/bin/python -m benchmarks.in_force [--endpoints 10000] [--policies 1000] [--interfaces 0] [--rounds 50]

The cluster of ``benchmarks.policy`` in an embedded datastore on the disk, in a network namespace of its own, where the
first so many endpoints have an interface and the others are in the datastore alone. The agent starts, then one
endpoint more is written at a time, its interface being there already, made by what the plugin's CreateEndpoint makes
it with; the clock stops at the word that the plugin's Join waits for.
"""

from __future__ import annotations

import argparse
import asyncio
import ctypes
import json
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.policy import Item, cluster, endpoint, resident_megabytes
from prometheus_client import CollectorRegistry

from calico_libnetwork.agent.last_readable import LastReadable
from calico_libnetwork.agent.loop import Agent
from calico_libnetwork.agent.metrics import AgentMetrics
from calico_libnetwork.agent.programmed import ProgrammedEndpoints
from calico_libnetwork.dataplane import rtnetlink
from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.netlink import ROUTE_PROTOCOL, Socket
from calico_libnetwork.dataplane.veth import VethPairs, VethSpec
from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.protocol import TRANSACTION_LIMIT, Put, Transaction
from calico_libnetwork.datastore.sqlite import SqliteDatastore
from calico_libnetwork.health import Report
from calico_libnetwork.routing.bird import Bird
from calico_libnetwork.routing.router import Router

_CLONE_NEWNET = 0x40000000
_LONGEST = 300.0
_MTU = 1500


@dataclass
class Running:
    kernel: Kernel
    store: SqliteDatastore
    programmed: ProgrammedEndpoints
    load_seconds: float


def ip(*lines: str) -> None:
    subprocess.run(["ip", "-batch", "-"], input="\n".join(lines), text=True, check=True)


def make_interfaces(count: int) -> None:
    """Of the endpoints that are there from the start: two to a pair, since thousands take their time."""
    pairs = [(f"cali{number:08x}", f"cali{number + 1:08x}") for number in range(0, count, 2)]
    ip("link set lo up", *(f"link add {first} up type veth peer name {second}" for first, second in pairs))
    ip(*(f"link set {second} up" for _, second in pairs))


def empty_namespace() -> None:
    """The kernel looks through all of these for every interface that goes with a namespace."""
    subprocess.run(["nft", "flush", "ruleset"], check=True)
    kernel = Socket(ROUTE_PROTOCOL)
    for family in (socket.AF_INET, socket.AF_INET6):
        routes = map(rtnetlink.parse_route, kernel.dump(*rtnetlink.list_routes(family)))
        made = [route for route in routes if route is not None and route.protocol != rtnetlink.PROTOCOL_KERNEL]
        kernel.exchange([rtnetlink.delete_route(route) for route in made])
    neighbours = map(rtnetlink.parse_neighbour, kernel.dump(*rtnetlink.LIST_NEIGHBOURS))
    kernel.exchange([rtnetlink.delete_neighbour(neighbour) for neighbour in neighbours if neighbour is not None])
    kernel.close()


async def write(store: SqliteDatastore, items: Iterable[Item]) -> None:
    operations = [Put(key.path, value) for key, value in items]
    for start in range(0, len(operations), TRANSACTION_LIMIT):
        await store.commit(Transaction([], operations[start : start + TRANSACTION_LIMIT]))


@asynccontextmanager
async def agent(directory: Path, *, endpoints: int, policies: int, interfaces: int) -> AsyncIterator[Running]:
    store = await SqliteDatastore.open(directory / "calico.db")
    await write(store, cluster(endpoints, policies))
    cache = Cache(store, ["/calico/"])
    programmed, report = ProgrammedEndpoints(), Report("agent")
    async with Kernel() as kernel, Bird(directory, kernel) as bird:
        made = Agent(
            cache,
            kernel,
            node="n1",
            router=Router(node="n1", setting="none"),
            bird=bird,
            on_routing=lambda _routing: None,
            on_addresses=lambda: None,
            programmed=programmed,
            report=report,
            metrics=AgentMetrics(CollectorRegistry()),
            last_readable=LastReadable(directory / "last-readable.json"),
        )
        async with made.host:
            await made.close()
            started = time.perf_counter()
            tasks = [asyncio.create_task(made.run()), asyncio.create_task(cache.run())]
            async with asyncio.timeout(_LONGEST):
                while not report.ready or len(programmed) < interfaces:  # noqa: ASYNC110 - one at a time is announced, and this is for all
                    await asyncio.sleep(0.01)
            yield Running(kernel, store, programmed, time.perf_counter() - started)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    await store.close()


async def measure(*, endpoints: int, policies: int, interfaces: int, rounds: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as directory:
        there = {"endpoints": endpoints, "policies": policies, "interfaces": interfaces}
        async with agent(Path(directory), **there) as running, VethPairs(running.kernel) as pairs:
            numbers = range(endpoints, endpoints + rounds)
            for number in numbers:
                await pairs.create(interface(number))
            await asyncio.sleep(1)
            times = [await one_more(running, number) for number in numbers]
            return {
                "agent: first load, all in force, s": running.load_seconds,
                "agent: one endpoint more in force, p50": statistics.median(times),
                "agent: one endpoint more in force, p99": statistics.quantiles(times, n=100)[98],
                "agent: memory": resident_megabytes(),
            }


def interface(number: int) -> VethSpec:
    peer_mac = "02:42:0a:41:4d:41"  # of `endpoint`
    return VethSpec(host_name=f"cali{number:08x}", peer_name=f"peer{number:08x}", peer_mac=peer_mac, mtu=_MTU)


async def one_more(running: Running, number: int) -> float:
    """Milliseconds."""
    item = endpoint(number)
    started = time.perf_counter()
    await write(running.store, [item])
    if not await running.programmed.wait(item[0], _LONGEST):
        raise RuntimeError(f"{item[0]} never came into force")
    spent = (time.perf_counter() - started) * 1000
    await asyncio.sleep(0.02)
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--endpoints", type=int, default=10_000)
    parser.add_argument("--policies", type=int, default=1000)
    parser.add_argument("--interfaces", type=int, default=0)
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if ctypes.CDLL(None).unshare(_CLONE_NEWNET) != 0:
        parser.error("a network namespace of its own needs root")
    make_interfaces(arguments.interfaces)
    counts = {name: getattr(arguments, name) for name in ("endpoints", "policies", "interfaces", "rounds")}
    result = asyncio.run(measure(**counts))
    empty_namespace()
    print(
        json.dumps(result)
        if arguments.json
        else "\n".join(f"{name:<48}{value:>16.2f}" for name, value in result.items())
    )


if __name__ == "__main__":
    main()
