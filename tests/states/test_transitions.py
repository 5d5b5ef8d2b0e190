"""From any named state to any other: same end whatever the path, and no packet in between that both forbid.

The product's own writer puts the tables into a real kernel while probes run.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from random import Random
from typing import Any

import msgspec
import pytest

from calico_libnetwork.dataplane.nft import Nft
from calico_libnetwork.dataplane.nftables import TableWriter
from calico_libnetwork.errors import Unreadable
from calico_libnetwork.model.kinds import decode
from tests.policy_oracle import Flow, Oracle
from tests.policy_worlds import HOST, NODE, OUTSIDE, WORKLOADS, addresses
from tests.states.states import STATES, State
from tests.system.conftest import Namespace, Workloads
from tests.system.packets import TCP, UDP, Packet
from tests.system.policy_lab import Lab, Rules, lab

Kernel = dict[str, Any]


class Agent:
    """What a process of ours holds: a ruleset, its tables and their writers. A new one knows nothing."""

    def __init__(self, nft: Nft) -> None:
        self.rules = Rules()
        self._writers = [TableWriter(nft, self.rules.table), TableWriter(nft, self.rules.arp)]
        self._state: State = {}

    async def start(self) -> None:
        self.rules.ruleset.render(self.rules.table, self.rules.arp)
        for writer in self._writers:
            await writer.ensure_closed()

    async def reach(self, state: State) -> None:
        keys = [key for key in {**self._state, **state} if self._state.get(key) is not state.get(key)]
        Random(len(keys)).shuffle(keys)
        for key in keys:
            value = state.get(key)
            if value is not None and not isinstance(value, Unreadable):
                self.rules.ruleset.update(key, decode(key, msgspec.json.encode(value)))
            else:
                self.rules.ruleset.update(key, value)
        self.rules.ruleset.render(self.rules.table, self.rules.arp)
        for writer in self._writers:
            await writer.apply()
        self._state = dict(state)


@asynccontextmanager
async def _nft() -> AsyncIterator[Nft]:
    """nft's thread starts before the lab binds this one to a single processor, so that both run at once."""
    async with Nft() as nft:
        await nft.generation()
        yield nft


async def _kernel(nft: Nft) -> Kernel:
    """What is in our tables, whatever the order it came in."""
    content: Kernel = {}
    for family in ("inet", "arp"):
        for item in await nft.list("table", family, "calico-libnetwork") or []:
            ((kind, body),) = item.items()
            if kind == "rule":
                content.setdefault(f"{family} rules of {body['chain']}", []).append(body["expr"])
            elif kind in ("set", "map"):
                elements = sorted(map(str, body.pop("elem", [])))
                body.pop("handle")
                content[f"{family} {kind} {body['name']}"] = (body, elements)
            else:
                body.pop("handle", None)
                content[f"{family} {kind} {body.get('name')}"] = body
    return content


def _flows() -> list[Flow]:
    flows = []
    ends: dict[int, list[Any]] = {4: [], 6: []}
    for number in range(1, WORKLOADS + 1):
        for address in addresses(number):
            ends[address.version].append(address)
    port = 20000
    for version, workloads in ends.items():
        outside = [address for address in OUTSIDE if address.version == version]
        host = [address for address in HOST if address.version == version]
        for source in (*workloads, *outside):
            for destination in (*workloads, *(outside + host if source in workloads else ())):
                if source != destination:
                    port += 2
                    flows += [Flow(source, destination, protocol, port, 80) for protocol in (TCP, UDP)]
    return flows


FLOWS = _flows()
PACKETS = {flow: Packet(flow.source, flow.destination, flow.protocol, flow.first, flow.second) for flow in FLOWS}


@cache
def _allowed(name: str) -> frozenset[Flow]:
    """A broken policy closes its tier for everybody, and here it is the only tier."""
    state = STATES[name]
    ours = {address for number in range(1, WORKLOADS + 1) for address in addresses(number)}
    if any(isinstance(value, Unreadable) for value in state.values()):
        return frozenset(flow for flow in FLOWS if not ours & {flow.source, flow.destination})
    documents = {key: value for key, value in state.items() if not isinstance(value, Unreadable)}
    oracle = Oracle(documents, node=NODE, host=HOST)
    closed = {address for address in ours if oracle.local(address) is None}
    return frozenset(flow for flow in FLOWS if not {flow.source, flow.destination} & closed and oracle.allows(flow))


class Probes:
    """Sends every flow's packet round and round; workloads never answer, so each is the first of its flow."""

    def __init__(self, host: Lab) -> None:
        self._host = host
        host.forget_arrivals()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.sent: dict[Flow, list[int]] = defaultdict(list)

    def _run(self) -> None:
        while not self._stop.is_set():
            for flow in FLOWS:
                self.sent[flow].append(self._host.send(PACKETS[flow]))
            self._host.arrived()

    @contextmanager
    def running(self) -> Iterator[None]:
        self._thread.start()
        try:
            yield
        finally:
            self._stop.set()
            self._thread.join()

    def verdicts(self) -> Mapping[Flow, tuple[int, int]]:
        """How many of each flow's packets were sent and arrived."""
        arrived = set().union(*self._host.arrived().values())
        return {flow: (len(numbers), len(arrived.intersection(numbers))) for flow, numbers in self.sent.items()}


def _judge(probes: Probes, before: str, after: str) -> None:
    """Nothing leaks. Nothing is lost either, but for the one packet being judged at the instant of the change.

    The kernel reads the rules once per packet and the sets when it comes to them.
    """
    for flow, (sent, arrived) in probes.verdicts().items():
        allowed = (flow in _allowed(before), flow in _allowed(after))
        if allowed == (False, False):
            assert arrived == 0, f"{before} -> {after}: {arrived} of {sent} got through and both forbid it: {flow}"
        if allowed == (True, True):
            assert arrived >= sent - 1, f"{before} -> {after}: only {arrived} of {sent}, and both allow it: {flow}"


def _walk() -> Iterator[str]:
    """Begins with the first state and takes every step from one state to another once."""
    names = list(STATES)
    ahead = {name: [other for other in names if other != name] for name in names}
    trail, walk = [names[0]], []
    while trail:
        if ahead[trail[-1]]:
            trail.append(ahead[trail[-1]].pop())
        else:
            walk.append(trail.pop())
    return reversed(walk)


@contextmanager
def _probing(host: Lab, before: str, after: str) -> Iterator[None]:
    probes = Probes(host)
    with probes.running():
        yield
    _judge(probes, before, after)


async def _check(nft: Nft, host: Lab, fresh: Kernel, name: str, step: str) -> None:
    assert await _kernel(nft) == fresh, step
    found = {flow for flow, arrived in zip(FLOWS, host.deliver(PACKETS.values()), strict=True) if arrived}
    assert found == _allowed(name), step


async def _write_each_alone(nft: Nft) -> dict[str, Kernel]:
    """What every state leaves in a kernel that held nothing of ours."""
    fresh = {}
    for name, state in STATES.items():
        await Agent(nft).reach(state)
        fresh[name] = await _kernel(nft)
        await nft.run("delete table inet calico-libnetwork\ndelete table arp calico-libnetwork\n")
    return fresh


@pytest.mark.timeout(900)
async def test_every_step_between_states_ends_as_if_begun_afresh(namespace: Namespace, workloads: Workloads) -> None:
    async with _nft() as nft:
        fresh = await _write_each_alone(nft)
        with lab(namespace, workloads, WORKLOADS) as host:
            agent = Agent(nft)
            await agent.start()
            walk = _walk()
            before = next(walk)
            for name in walk:
                with _probing(host, before, name):
                    await agent.reach(STATES[name])
                await _check(nft, host, fresh[name], name, f"{before} -> {name}")
                before = name


@pytest.mark.timeout(900)
async def test_a_process_that_starts_on_the_remains_of_another_ends_the_same(
    namespace: Namespace, workloads: Workloads
) -> None:
    """The other one ended in one state, the datastore is in another by now."""
    async with _nft() as nft:
        fresh = await _write_each_alone(nft)
        with lab(namespace, workloads, WORKLOADS) as host:
            walk = _walk()
            before = next(walk)
            first = Agent(nft)
            await first.start()
            await first.reach(STATES[before])
            for name in walk:
                with _probing(host, before, name):
                    agent = Agent(nft)
                    await agent.start()
                    await agent.reach(STATES[name])
                await _check(nft, host, fresh[name], name, f"restart, {before} -> {name}")
                before = name


async def test_a_process_that_starts_where_nothing_changed_writes_nothing(
    namespace: Namespace, workloads: Workloads
) -> None:
    async with _nft() as nft:
        for state in STATES.values():
            await Agent(nft).reach(state)
            generation = await nft.generation()
            agent = Agent(nft)
            await agent.start()
            await agent.reach(state)
            assert await nft.generation() == generation
