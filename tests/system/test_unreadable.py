"""Values nobody can read, with the agent as it runs and real packets: what was enforced stays, the rest goes on."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import structlog

from calico_libnetwork.dataplane.kernel import Kernel
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Delete, Put, Transaction
from calico_libnetwork.model import documents
from calico_libnetwork.model.kinds import ResourceKey
from tests.system.conftest import Namespace, Workloads, eventually
from tests.system.test_agent import INGRESS_FROM_ALL, PROFILE, Running, endpoint, put, running, veth

WEB, DB, OTHER = 1, 2, 3
ROLES = {WEB: "web", DB: "db", OTHER: "other"}
POLICY = ResourceKey("GlobalNetworkPolicy", "db")
DB_FROM_WEB = {
    "selector": "role == 'db'",
    "types": ["Ingress"],
    "ingress": [{"action": "Allow", "source": {"selector": "role == 'web'"}}],
}
GARBAGE = Put(POLICY.path, b"{")
RULES_NOBODY_KNOWS = put(POLICY, DB_FROM_WEB | {"ingress": [{"action": "Allow", "unheard": "of"}]})
NO_SELECTOR = put(POLICY, DB_FROM_WEB | {"selector": "role ="})
EVERYTHING = {(WEB, DB), (WEB, OTHER), (DB, OTHER), (OTHER, DB)}
AS_WRITTEN = EVERYTHING - {(OTHER, DB)}
DB_CLOSED = EVERYTHING - {(WEB, DB), (OTHER, DB)}


def labelled(number: int) -> tuple[ResourceKey, Put]:
    key, operation = endpoint(number)
    document = documents.decode(operation.value)
    document["metadata"]["labels"] = {"role": ROLES[number]}
    return key, Put(key.path, documents.encode(document))


class Hosts:
    """The workloads of one host, through every life of its agent."""

    def __init__(self, store: MemoryDatastore, kernel: Kernel, workloads: Workloads, directory: Path) -> None:
        self.store = store
        self._kernel = kernel
        self._workloads = workloads
        self.directory = directory
        self._namespaces: dict[int, Namespace] = {}

    def agent(self) -> Any:
        return running(self.store, self._kernel, self.directory)

    async def write(self, *operations: Put | Delete) -> None:
        await self.store.commit(Transaction([], operations))

    async def start_workloads(self, now: Running) -> None:
        for number in ROLES:
            await veth(self._kernel, number)
            key, operation = labelled(number)
            await self.write(operation)
            assert await now.dataplane.wait(key, 5)
            self._namespaces[number] = self._workloads.attach(
                f"temp{number}", mac=f"02:00:00:00:00:{number:02x}", addresses=(f"10.65.0.{number}/32",)
            )

    def reached(self) -> set[tuple[int, int]]:
        def reaches(source: int, target: int) -> bool:
            address = str(ip_address("10.65.0.0") + target)
            return self._namespaces[source].succeeds("ping", "-c1", "-W0.3", address)

        return {pair for pair in EVERYTHING if reaches(*pair)}


def findings(now: Running) -> list[str]:
    told: list[str] = now.agent.status()["findings"]
    return [text.removeprefix(f"{POLICY}: it cannot be read; ") for text in told]


async def told(now: Running, *wanted: str) -> None:
    await eventually(lambda: findings(now) == [*wanted])


@pytest.fixture
async def host(namespace: Namespace, kernel: Kernel, workloads: Workloads, tmp_path: Path) -> Hosts:
    store = MemoryDatastore()
    await store.commit(Transaction([], [put(PROFILE, INGRESS_FROM_ALL)]))
    namespace.run("ip", "address", "add", "192.0.2.1/32", "dev", "lo")
    return Hosts(store, kernel, workloads, tmp_path)


STAYS = "its last readable version stays in force"
THERE = "it denies, where its selector says, what the rest of its tier does not allow"
EVERYWHERE = "it denies, on every endpoint, what the rest of its tier does not allow"
NEVER = "it has never been a policy and is left out"


@pytest.mark.parametrize("broken", [GARBAGE, RULES_NOBODY_KNOWS, NO_SELECTOR], ids=["garbage", "rules", "selector"])
async def test_a_good_policy_stays_in_force_when_its_value_becomes_unreadable_and_after_a_restart(
    host: Hosts, broken: Put
) -> None:
    with structlog.testing.capture_logs() as logs:
        async with host.agent() as now:
            await host.start_workloads(now)
            assert host.reached() == EVERYTHING
            await host.write(put(POLICY, DB_FROM_WEB))
            await eventually(lambda: host.reached() == AS_WRITTEN)
            await host.write(broken)
            await told(now, STAYS)
            assert host.reached() == AS_WRITTEN
    assert [line["key"] for line in logs if line["log_level"] == "error"] == [POLICY.path]

    async with host.agent() as now:
        await told(now, STAYS)
        assert host.reached() == AS_WRITTEN
        other = put(ResourceKey("GlobalNetworkPolicy", "other"), {"selector": "role == 'other'", "types": ["Ingress"]})
        await host.write(other)
        await eventually(lambda: host.reached() == AS_WRITTEN - {(WEB, OTHER), (DB, OTHER)})
        await host.write(put(POLICY, DB_FROM_WEB | {"ingress": [{"action": "Allow"}]}))
        await told(now)
        await eventually(lambda: host.reached() == EVERYTHING - {(WEB, OTHER), (DB, OTHER)})


@pytest.mark.parametrize(
    ("before", "broken", "said", "reached"),
    [
        (put(POLICY, DB_FROM_WEB), RULES_NOBODY_KNOWS, THERE, DB_CLOSED),
        (None, RULES_NOBODY_KNOWS, THERE, DB_CLOSED),
        (put(POLICY, DB_FROM_WEB), NO_SELECTOR, EVERYWHERE, set()),
        (None, NO_SELECTOR, EVERYWHERE, set()),
        (put(POLICY, DB_FROM_WEB), GARBAGE, EVERYWHERE, set()),
        (None, GARBAGE, NEVER, EVERYTHING),
    ],
    ids=["rules", "rules, new", "selector", "selector, new", "garbage", "garbage, new"],
)
async def test_a_start_that_meets_an_unreadable_policy(
    host: Hosts, before: Put | None, broken: Put, said: str, reached: set[tuple[int, int]]
) -> None:
    if before is not None:
        await host.write(before)
    await host.write(broken)
    async with host.agent() as now:
        await host.start_workloads(now)
        await told(now, said)
        assert host.reached() == reached
        await host.write(Delete(POLICY.path))
        await told(now)
        await eventually(lambda: host.reached() == EVERYTHING)


async def test_a_new_key_that_is_no_policy_stops_nothing_of_a_running_host(host: Hosts) -> None:
    async with host.agent() as now:
        await host.start_workloads(now)
        await host.write(GARBAGE)
        await told(now, NEVER)
        assert host.reached() == EVERYTHING


async def test_unreadable_pools_nodes_profiles_and_endpoints_leave_running_workloads_alone(host: Hosts) -> None:
    pool = ResourceKey("IPPool", "pool")
    node = ResourceKey("Node", "n1")
    async with host.agent() as now:
        await host.start_workloads(now)
        await host.write(put(pool, {"cidr": "10.65.0.0/24"}), put(node, {"bgp": {"ipv4Address": "192.0.2.1/24"}}))
        keys = [pool, node, PROFILE, labelled(DB)[0]]
        await host.write(*(Put(key.path, b'{"spec": []}') for key in keys))
        await eventually(lambda: len(now.agent.status()["findings"]) == len(keys))
        assert all(text.endswith(STAYS) for text in now.agent.status()["findings"])
        assert host.reached() == EVERYTHING
    async with host.agent() as now:
        await eventually(lambda: len(now.agent.status()["findings"]) == len(keys))
        assert host.reached() == EVERYTHING
