"""The agent over a real kernel: closed before anything, programmed when it says so, the same after a restart."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from calico_libnetwork.agent.dataplane import Dataplane
from calico_libnetwork.agent.last_readable import LastReadable
from calico_libnetwork.agent.loop import Agent
from calico_libnetwork.agent.metrics import AgentMetrics
from calico_libnetwork.agent.programmed import ProgrammedEndpoints
from calico_libnetwork.dataplane.felix import FelixEndpoints, status_file
from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.dataplane.veth import VethPairs, VethSpec
from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Delete, Put, Transaction
from calico_libnetwork.health import Report
from calico_libnetwork.model import documents
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.routing.bird import Bird
from calico_libnetwork.routing.mode import Setting
from calico_libnetwork.routing.router import Router
from tests.system.conftest import Namespace, Workloads, eventually

NODE = "n1"
PROFILE = ResourceKey("Profile", "net1")
INGRESS_FROM_ALL = {"ingress": [{"action": "Allow", "source": {}}], "egress": [{"action": "Allow"}]}


def put(key: ResourceKey, spec: dict[str, Any]) -> Put:
    document = documents.new_document(
        key.kind, key.name, spec, uid="u", created="2026-11-24T00:00:00Z", namespace=key.namespace
    )
    return Put(key.path, documents.encode(document))


def endpoint(number: int) -> tuple[ResourceKey, Put]:
    """Of the veth ``cali<number>``, with the address 10.65.0.<number>."""
    endpoint_id = f"{number:064x}"
    key = ResourceKey("WorkloadEndpoint", f"{NODE}-libnetwork-libnetwork-{endpoint_id}", "libnetwork")
    spec = {
        "orchestrator": "libnetwork",
        "workload": "libnetwork",
        "node": NODE,
        "endpoint": endpoint_id,
        "ipNetworks": [f"10.65.0.{number}/32"],
        "profiles": ["net1"],
        "interfaceName": f"cali{number}",
        "mac": f"02:00:00:00:00:{number:02x}",
    }
    return key, put(key, spec)


async def veth(kernel: Kernel, number: int) -> None:
    async with VethPairs(kernel) as pairs:
        mac = f"02:00:00:00:00:{number:02x}"
        await pairs.create(
            VethSpec(host_name=f"cali{number}", peer_name=f"temp{number}", peer_mac=mac, mtu=1500, ipv6=False)
        )


@dataclass
class Running:
    agent: Agent
    programmed: ProgrammedEndpoints
    dataplane: Dataplane
    report: Report


@asynccontextmanager
async def running(
    store: MemoryDatastore,
    kernel: Kernel,
    directory: Path,
    *,
    synced: bool = True,
    routes: Setting = "none",
    **felix: Any,
) -> AsyncIterator[Running]:
    """The agent as the process runs it; ``synced``: the datastore can be reached."""
    cache = Cache(store, ["/calico/"])
    programmed = ProgrammedEndpoints()
    report = Report("agent")
    async with Bird(directory / "bird", kernel) as bird:
        agent = Agent(
            cache,
            kernel,
            node=NODE,
            router=Router(node=NODE, setting=routes),
            bird=bird,
            on_routing=lambda _routing: None,
            on_addresses=lambda: None,
            programmed=programmed,
            report=report,
            metrics=AgentMetrics(CollectorRegistry()),
            last_readable=LastReadable(directory / "last-readable.json"),
        )
        dataplane = Dataplane(
            agent, bird, setting="auto", programmed=programmed, report=report, **{"find": lambda: None, **felix}
        )
        async with agent.host:
            await dataplane.close()
            tasks = [asyncio.create_task(dataplane.run())]
            if synced:
                tasks.append(asyncio.create_task(cache.run()))
            try:
                yield Running(agent, programmed, dataplane, report)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)


@pytest.fixture
async def store() -> MemoryDatastore:
    made = MemoryDatastore()
    await made.commit(Transaction([], [put(PROFILE, INGRESS_FROM_ALL)]))
    return made


def table(namespace: Namespace) -> str:
    return namespace.run("nft", "list", "table", "inet", "calico-libnetwork")


async def test_unknown_workloads_are_closed_before_the_datastore_answers(
    namespace: Namespace, kernel: Kernel, store: MemoryDatastore, tmp_path: Path
) -> None:
    async with running(store, kernel, tmp_path, synced=False) as now:
        assert 'iifname "cali*" drop' in table(namespace)
        assert namespace.run("sysctl", "-n", "net.ipv4.ip_forward").strip() == "1"
        assert not now.report.ready


async def test_a_programmed_endpoint_has_route_neighbour_and_rules(
    namespace: Namespace, kernel: Kernel, workloads: Workloads, store: MemoryDatastore, tmp_path: Path
) -> None:
    async with running(store, kernel, tmp_path) as now:
        await veth(kernel, 1)
        key, operation = endpoint(1)
        await store.commit(Transaction([], [operation]))
        assert await now.dataplane.wait(key, 5)
        assert "10.65.0.1 dev cali1" in namespace.run("ip", "route")
        assert "02:00:00:00:00:01 PERMANENT" in namespace.run("ip", "neighbour", "show", "dev", "cali1")
        assert '"cali1" : goto' in table(namespace)
        namespace.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
        workloads.attach("temp1", mac="02:00:00:00:00:01", addresses=("10.65.0.1/32",))
        assert namespace.succeeds("ping", "-c1", "-W1", "10.65.0.1")
        await store.commit(Transaction([], [Delete(key.path)]))
        await eventually(lambda: "cali1" not in table(namespace))
        assert "10.65.0.1" not in namespace.run("ip", "route")
        assert key not in now.programmed


async def test_an_endpoint_is_not_programmed_before_its_interface_is_there(
    kernel: Kernel, store: MemoryDatastore, tmp_path: Path
) -> None:
    key, operation = endpoint(1)
    await store.commit(Transaction([], [operation]))
    async with running(store, kernel, tmp_path) as now:
        assert not await now.dataplane.wait(key, 0.3)
        assert now.report.detail.startswith("0 endpoints in force, 1 not: ")
        await veth(kernel, 1)
        assert await now.dataplane.wait(key, 5)
        await eventually(lambda: now.report.detail == "1 endpoints in force")


async def test_a_restart_changes_nothing_that_is_right_and_removes_what_is_gone(
    namespace: Namespace, kernel: Kernel, store: MemoryDatastore, tmp_path: Path
) -> None:
    (first, one), (second, two) = endpoint(1), endpoint(2)
    async with running(store, kernel, tmp_path) as now:
        await veth(kernel, 1)
        await veth(kernel, 2)
        await store.commit(Transaction([], [one, two]))
        assert await now.dataplane.wait(first, 5)
        assert await now.dataplane.wait(second, 5)
    before = _generation(namespace)
    async with running(store, kernel, tmp_path) as now:
        assert await now.dataplane.wait(first, 5)
        assert _generation(namespace) == before
    await store.commit(Transaction([], [Delete(second.path)]))
    async with running(store, kernel, tmp_path) as now:
        assert await now.dataplane.wait(first, 5)
        assert "cali2" not in table(namespace)
        routes = namespace.run("ip", "route")
        assert "10.65.0.1 " in routes
        assert "10.65.0.2 " not in routes


async def test_damage_by_hand_is_repaired(
    namespace: Namespace, kernel: Kernel, store: MemoryDatastore, tmp_path: Path
) -> None:
    async with running(store, kernel, tmp_path) as now:
        await veth(kernel, 1)
        key, operation = endpoint(1)
        await store.commit(Transaction([], [operation]))
        assert await now.dataplane.wait(key, 5)
        namespace.run("ip", "route", "del", "10.65.0.1")
        await eventually(lambda: "10.65.0.1 dev cali1" in namespace.run("ip", "route"))
        namespace.run("nft", "delete", "element", "inet", "calico-libnetwork", "to_wl", "{", '"cali1"', "}")
        await eventually(lambda: table(namespace).count('"cali1" : goto') == 2)
        namespace.run("nft", "flush", "chain", "inet", "calico-libnetwork", "forward_ingress")
        await eventually(lambda: 'oifname "cali*" drop' in table(namespace))
        namespace.run("nft", "delete", "table", "inet", "calico-libnetwork")
        await eventually(lambda: namespace.succeeds("nft", "list", "table", "inet", "calico-libnetwork"))
        await eventually(lambda: table(namespace).count('"cali1" : goto') == 2)


async def test_a_running_felix_is_left_alone(
    namespace: Namespace, kernel: Kernel, store: MemoryDatastore, tmp_path: Path
) -> None:
    key, operation = endpoint(1)
    await store.commit(Transaction([], [operation]))
    felix: dict[str, Any] = {"find": lambda: 42, "felix": FelixEndpoints(tmp_path)}
    async with running(store, kernel, tmp_path, **felix) as now:
        await veth(kernel, 1)
        assert not await now.dataplane.wait(key, 0.2)
        status_file(key, tmp_path).touch()
        assert await now.dataplane.wait(key, 5)
        assert not namespace.succeeds("nft", "list", "table", "inet", "calico-libnetwork")
        assert "10.65.0.1" not in namespace.run("ip", "route")


async def test_a_felix_that_ends_is_said_to_have_ended_until_it_is_back(
    namespace: Namespace, kernel: Kernel, store: MemoryDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calico_libnetwork.agent.dataplane.CHECK_SECONDS", 0.05)
    found = [os.getpid()]
    felix: dict[str, Any] = {"find": lambda: found[0] if found else None, "felix": FelixEndpoints(tmp_path)}
    async with running(store, kernel, tmp_path, **felix) as now:
        await eventually(lambda: now.report.ready)
        found.clear()
        await eventually(lambda: not now.report.ready)
        assert "Felix does not run" in now.report.detail
        assert not namespace.succeeds("nft", "list", "table", "inet", "calico-libnetwork")
        found.append(os.getpid())
        await eventually(lambda: now.report.ready)


async def test_a_felix_that_appears_takes_over_once_it_has_the_endpoints(
    namespace: Namespace, kernel: Kernel, store: MemoryDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("calico_libnetwork.agent.dataplane.CHECK_SECONDS", 0.05)
    found: list[int] = []
    felix: dict[str, Any] = {"find": lambda: found[0] if found else None, "felix": FelixEndpoints(tmp_path)}
    async with running(store, kernel, tmp_path, **felix) as now:
        await veth(kernel, 1)
        key, operation = endpoint(1)
        await store.commit(Transaction([], [operation]))
        assert await now.dataplane.wait(key, 5)
        found.append(os.getpid())
        await asyncio.sleep(0.3)
        assert '"cali1" : goto' in table(namespace)
        status_file(key, tmp_path).touch()
        await eventually(lambda: now.dataplane.passive)
        await eventually(lambda: not namespace.succeeds("nft", "list", "table", "inet", "calico-libnetwork"))
        assert "10.65.0.1 dev cali1" in namespace.run("ip", "route")


async def test_bgps_port_is_free_as_soon_as_felix_is_there(
    namespace: Namespace, kernel: Kernel, store: MemoryDatastore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The BIRD of calico/node starts together with Felix, long before Felix has the endpoints in force."""
    monkeypatch.setattr("calico_libnetwork.agent.dataplane.CHECK_SECONDS", 0.05)
    for words in ("add up0 type bridge", "set up0 up"):
        namespace.run("ip", "link", *words.split())
    namespace.run("ip", "address", "add", "192.0.2.1/24", "dev", "up0")
    addresses = {NODE: "192.0.2.1/24", "n2": "192.0.2.2/24"}
    nodes = [put(ResourceKey("Node", name), {"bgp": {"ipv4Address": each}}) for name, each in addresses.items()]
    await store.commit(Transaction([], nodes))
    found: list[int] = []
    felix: dict[str, Any] = {"find": lambda: found[0] if found else None, "felix": FelixEndpoints(tmp_path / "absent")}
    async with running(store, kernel, tmp_path, routes="bird", **felix) as now:
        await veth(kernel, 1)
        key, operation = endpoint(1)
        await store.commit(Transaction([], [operation]))
        assert await now.dataplane.wait(key, 5)
        await eventually(lambda: ":179 " in namespace.run("ss", "-ltn"))
        found.append(os.getpid())
        await eventually(lambda: ":179 " not in namespace.run("ss", "-ltn"))
        assert not now.dataplane.passive
        assert '"cali1" : goto' in table(namespace)


def _generation(namespace: Namespace) -> int:
    """Counts the ruleset's commits; a listing shows every object's handle, which a rewrite would change."""
    listed = json.loads(namespace.run("nft", "-j", "-a", "list", "table", "inet", "calico-libnetwork"))["nftables"]
    return hash(tuple(sorted(json.dumps(entry, sort_keys=True) for entry in listed)))
