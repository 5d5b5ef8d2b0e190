"""What real dockerds sent, replayed: every request in its order gets an answer that makes sense.

The ids, pools and addresses that a recorded answer gave out are replaced by the ones that our answers give out, since
the daemon only ever says back what it was told. What the recorder's stub failed on purpose is played on as recorded.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from ipaddress import ip_interface
from itertools import groupby
from pathlib import Path
from random import Random
from typing import Any

import pytest
import structlog

from calico_libnetwork.datastore.protocol import Transaction
from calico_libnetwork.docker import messages
from calico_libnetwork.docker.plugin import Plugin
from calico_libnetwork.model.ipam_keys import Address
from tests.unit.docker_fakes import CountingDatastore, FakeDaemon, FakeVeths, Host, node, pool, running_host
from tests.unit.test_plugin import FixedScope

TRANSCRIPTS = Path(__file__).parent.parent / "data" / "docker-transcripts"
VERSIONS = sorted(path.stem for path in TRANSCRIPTS.glob("*.jsonl"))
OLDEST_AND_NEWEST = (VERSIONS[0], VERSIONS[-1])

POOLS = (
    pool("pool4", "10.65.0.0/16"),
    pool("pool4b", "10.66.0.0/16"),
    pool("pool6", "fd80:24e2:f998:72d6::/64"),
)

Call = dict[str, Any]


def calls_by_part(version: str) -> Iterator[tuple[str, list[Call]]]:
    with (TRANSCRIPTS / f"{version}.jsonl").open() as lines:
        records = [record for record in map(json.loads, lines) if "call" in record]
    for part, calls in groupby(records, key=lambda record: record["part"]):
        yield part, list(calls)


@pytest.fixture(autouse=True)
def _without_fifteen_thousand_log_lines() -> Iterator[None]:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    yield
    structlog.reset_defaults()


@dataclass
class Replay:
    """One daemon talking to one plugin; the maps lead from what was recorded to what we gave out."""

    host: Host
    plugin: Plugin
    pools: dict[str, str] = field(default_factory=dict)
    addresses: dict[str, str] = field(default_factory=dict)
    refused: set[str] = field(default_factory=set)  # addresses that the stub gave out and we did not
    dropped: set[str] = field(default_factory=set)  # what a daemon would not have gone on with after that

    def never_happens(self, call: Call) -> bool:
        """Whether a daemon that had got our answers would not have made this call."""
        request = call["req"] or {}
        given = {
            (request.get("Interface") or {}).get(name, "").partition("/")[0] for name in ("Address", "AddressIPv6")
        }
        if call["call"] == "/NetworkDriver.CreateEndpoint" and given & self.refused:
            self.dropped |= {request["EndpointID"], *(given & self.refused)}
        if call["call"] == "/IpamDriver.ReleaseAddress" and request["Address"] in self.dropped:
            self.dropped.discard(request["Address"])
            return True
        return request.get("EndpointID") in self.dropped

    async def send(self, call: Call) -> tuple[int, Any]:
        body = b"" if call["req"] is None else json.dumps(self.translated(call["req"])).encode()
        answer, status, _ = await self.plugin._perform(call["call"], body, "")
        return status, json.loads(answer)

    async def play(self, call: Call) -> tuple[int, Any]:
        status, answer = await self.send(call)
        await self.learn(call, status, answer)
        return status, answer

    def translated(self, request: Any) -> Any:
        request = json.loads(json.dumps(request))
        if "PoolID" in request:
            request["PoolID"] = self.pools.get(request["PoolID"], request["PoolID"])
        if request.get("Address"):
            request["Address"] = self.addresses.get(request["Address"], request["Address"])
        for name in ("Address", "AddressIPv6"):
            recorded = (request.get("Interface") or {}).get(name)
            if recorded:
                bare, _, length = recorded.partition("/")
                request["Interface"][name] = self.addresses.get(bare, bare) + "/" + length
        return request

    async def learn(self, call: Call, status: int, answer: Any) -> None:
        recorded = call.get("resp") or {}
        if call["call"] == "/IpamDriver.RequestPool" and status == 200 and "PoolID" in recorded:
            self.pools[recorded["PoolID"]] = answer["PoolID"]
        if call["call"] == "/IpamDriver.RequestAddress" and call["req"] is not None:
            (self.refused.discard if status == 200 else self.refused.add)(call["req"]["Address"])
        if call["call"] == "/NetworkDriver.CreateEndpoint" and "is published for" in answer.get("Err", ""):
            self.dropped.add(call["req"]["EndpointID"])
        if call["call"] == "/IpamDriver.RequestAddress" and status == 200:
            if recorded.get("Address"):
                self.addresses[recorded["Address"].partition("/")[0]] = answer["Address"].partition("/")[0]
            elif not _unspecified(answer["Address"]):  # the daemon never learnt of it
                await self.host.ipam.release(ip_interface(answer["Address"]).ip)


def _unspecified(cidr: str) -> bool:
    address: Address = ip_interface(cidr).ip
    return address.is_unspecified


class Nodes:
    """The nodes of a part by name ("" where there is one): one datastore, and each its plugin and its kernel."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._datastore: CountingDatastore | None = None
        self._replays: dict[str, Replay] = {}
        self._stacks: dict[str, AsyncExitStack] = {}

    async def of(self, name: str) -> Replay:
        if name not in self._replays:
            plugin, host = await self._start(name, FakeVeths())
            self._replays[name] = Replay(host, plugin)
        return self._replays[name]

    async def restart(self, name: str) -> None:
        """The plugin's process; kernel, datastore and daemon live on."""
        replay = await self.of(name)
        await self._stacks.pop(name).aclose()
        replay.plugin, replay.host = await self._start(name, replay.host.veths)

    async def hosts(self) -> list[Host]:
        return [replay.host for replay in self._replays.values()]

    async def close(self) -> None:
        for stack in self._stacks.values():
            await stack.aclose()

    async def _start(self, name: str, veths: FakeVeths) -> tuple[Plugin, Host]:
        own_name = f"host-{name.lower() or 1}"
        if self._datastore is None:
            self._datastore = CountingDatastore()
            await self._datastore.commit(Transaction([], POOLS))
        await self._datastore.commit(Transaction([], [node(own_name)]))
        stack = self._stacks[name] = AsyncExitStack()
        host = await stack.enter_async_context(
            running_host(
                self._directory / name, datastore=self._datastore, daemon=FakeDaemon(None), veths=veths, node=own_name
            )
        )
        plugin = Plugin(host.settings, scope=FixedScope())
        plugin.attach(host.drivers)
        return plugin, host


@asynccontextmanager
async def replaying(directory: Path) -> AsyncIterator[Nodes]:
    nodes = Nodes(directory)
    try:
        yield nodes
    finally:
        await nodes.close()


REFUSALS = {
    "/NetworkDriver.CreateNetwork": (
        "Non-Calico IPAM driver is used",
        "Calico driver does not support the flag",
        "a Calico network needs IPv4 or IPv6 addresses",
    ),
    "/IpamDriver.RequestPool": (
        "The requested subnet must match the CIDR of a configured Calico IP Pool.",
        "Calico IPAM does not support sub pool configuration",
        "Arbitrary options are not supported",
    ),
    "/IpamDriver.RequestAddress": ("Calico IPAM does not support specifying a gateway.",),
}
"""What a user asked for in the recordings and no Calico network gives."""


TAKEN = re.compile("is already assigned|is in use by|has just been given|is kept out of use")


class Recorded:
    """Which addresses are in use as the recording goes; its stub gave out any, however often."""

    def __init__(self) -> None:
        self.held: set[str] = set()

    def allows(self, call: Call, sentence: str) -> bool:
        """Whether our refusal is right where the stub gave in."""
        if call["req"] is None:
            return "came without a body" in sentence
        if call["call"] == "/IpamDriver.RequestAddress" and TAKEN.search(sentence):
            return call["req"]["Address"] in self.held
        if call["call"] == "/IpamDriver.RequestAddress" and "is in no enabled IP pool" in sentence:
            return bool(call["req"]["Address"] == "224.0.0.1")
        if call["call"] == "/NetworkDriver.CreateEndpoint" and "is published for" in sentence:
            return all(port["HostPort"] == 8081 for port in call["req"]["Options"]["com.docker.network.portmap"])
        return sentence.startswith(REFUSALS.get(call["call"], ()))

    def follow(self, call: Call) -> None:
        if call["call"] == "/IpamDriver.RequestAddress":
            self.held.add(((call.get("resp") or {}).get("Address") or "").partition("/")[0])
        if call["call"] == "/IpamDriver.ReleaseAddress":
            self.held.discard(call["req"]["Address"])


class Gone:
    """Endpoints and addresses that Docker has taken back."""

    def __init__(self) -> None:
        self.endpoints: set[str] = set()
        self.addresses: set[str] = set()

    def follow(self, call: str, request: Any, answer: Any) -> None:
        match call:
            case "/NetworkDriver.CreateEndpoint":
                self.endpoints.discard(request["EndpointID"])
            case "/NetworkDriver.DeleteEndpoint":
                self.endpoints.add(request["EndpointID"])
            case "/IpamDriver.RequestAddress":
                self.addresses.discard(answer["Address"].partition("/")[0])
            case "/IpamDriver.ReleaseAddress":
                self.addresses.add(request["Address"])

    async def check(self, nodes: Nodes) -> None:
        for host in await nodes.hosts():
            await host.caught_up()
            await host.assembly.parts.removals.drain()
            assert not {each["spec"]["endpoint"] for each in await host.endpoints()} & self.endpoints
            assert not {f"cali{endpoint[:11]}" for endpoint in self.endpoints} & host.veths.present.keys()
            assert not {str(each.address) for each in host.ipam.assignments()} & self.addresses


@pytest.mark.parametrize("every", [0, 11], ids=["at once", "restarted again and again"])
@pytest.mark.parametrize("version", VERSIONS)
async def test_every_recorded_request_is_answered(version: str, every: int, tmp_path: Path) -> None:
    unexpected = []
    for part, calls in calls_by_part(version):
        recorded, gone = Recorded(), Gone()
        async with replaying(tmp_path / part) as nodes:
            for number, call in enumerate(calls, 1):
                name = call.get("node", "")
                replay = await nodes.of(name)
                if replay.never_happens(call):
                    continue
                request = replay.translated(call["req"] or {})
                status, answer = await replay.play(call)
                if status == 200:
                    gone.follow(call["call"], request, answer)
                elif not recorded.allows(call, answer["Err"]):
                    unexpected.append((part, call["t"], call["call"], answer["Err"]))
                recorded.follow(call)
                if every and number % every == 0:
                    await nodes.restart(name)
            await gone.check(nodes)
    assert unexpected == []


@pytest.mark.parametrize("version", OLDEST_AND_NEWEST)
async def test_a_repeated_call_gets_the_same_answer(version: str, tmp_path: Path) -> None:
    """Not of RequestAddress, which gives another address each time, and not of what shows a container's place."""
    for part, calls in calls_by_part(version):
        async with replaying(tmp_path / part) as nodes:
            for call in calls:
                replay = await nodes.of(call.get("node", ""))
                if replay.never_happens(call):
                    continue
                first = await replay.play(call)
                if call["call"] != "/IpamDriver.RequestAddress":
                    assert await replay.send(call) == first, (part, call)


@pytest.mark.parametrize("version", OLDEST_AND_NEWEST)
async def test_any_order_is_survived_and_leaves_nothing(version: str, tmp_path: Path) -> None:
    for part, calls in calls_by_part(version):
        shuffled = Random(part).sample(calls, len(calls))
        async with replaying(tmp_path / part) as nodes:
            for call in shuffled:
                status, answer = await (await nodes.of(call.get("node", ""))).play(call)
                assert status == 200 or "unexpectedly" not in answer["Err"], (call, answer)
            for host in await nodes.hosts():
                await clean_up(host)
                await host.assembly.parts.removals.drain()
                assert host.veths.present == {}
            assert await host.endpoints() == []
            assert await host.keys("/calico/ipam/v2/handle/") == []


async def clean_up(host: Host) -> None:
    """As a daemon would that stops everything it may have."""
    await host.caught_up()
    for endpoint in await host.endpoints():
        if endpoint["spec"]["node"] == host.settings.node:
            ids = {"network_id": "n", "endpoint_id": endpoint["spec"]["endpoint"]}
            await host.drivers.network.leave(messages.EndpointRequest(**ids))
            await host.drivers.network.delete_endpoint(messages.EndpointRequest(**ids))
    for assignment in host.ipam.assignments(host.settings.node):
        release = messages.ReleaseAddress(pool_id="CalicoPoolIPv4", address=str(assignment.address))
        await host.drivers.ipam.release_address(release)
