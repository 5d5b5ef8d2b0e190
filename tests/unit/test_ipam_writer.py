"""Many requests and hosts at once, vanished callers, a failing datastore: no address twice, none lost."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Batch, Delete, Listing, Outcome, Put, Transaction
from calico_libnetwork.errors import Conflict, DatastoreUnavailable, IpamError
from calico_libnetwork.ipam import PREFIXES, Ipam
from calico_libnetwork.ipam.draft import Draft
from calico_libnetwork.model.ipam_check import check
from calico_libnetwork.model.ipam_keys import Address
from tests.unit.ipam_cluster import Clock, Cluster, Host, a_cluster


class Watched(MemoryDatastore):
    """Counts what is asked of it, and does something before or after a commit if told to."""

    def __init__(self) -> None:
        super().__init__()
        self.transactions: list[Transaction] = []
        self.reads = 0
        self.before: Callable[[Transaction], Awaitable[None]] | None = None
        self.after: Callable[[Transaction], Awaitable[None]] | None = None

    async def commit(self, transaction: Transaction) -> Outcome:
        self.transactions.append(transaction)
        if self.before is not None:
            await self.before(transaction)
        outcome = await super().commit(transaction)
        if self.after is not None:
            await self.after(transaction)
        return outcome

    async def get(self, keys: Sequence[str]) -> Listing:
        self.reads += 1
        return await super().get(keys)

    async def list(self, prefixes: Sequence[str]) -> Listing:
        self.reads += 1
        return await super().list(prefixes)


@pytest.fixture
async def store() -> Watched:
    return Watched()


@pytest.fixture
async def cluster(store: Watched) -> AsyncGenerator[Cluster, None]:
    async with a_cluster(store) as made:
        await made.pool("10.5.0.0/24", blockSize=28)
        for name in ("a", "b", "c"):
            await made.node(name)
        yield made


async def findings(cluster: Cluster) -> list[str]:
    """What the checker says, apart from addresses that no endpoint uses."""
    values = {key: value.encode() for key, value in (await cluster.values("/calico/")).items()}
    report = check(values, now=cluster.clock.now)
    return [each.sentence for each in (*report.problems, *report.remarks) if each.kind != "leaked"]


async def assigned(cluster: Cluster) -> set[Address]:
    other = await cluster.host("observer")
    return {each.address for each in other.ipam.assignments()}


async def test_one_transaction_and_no_read_per_assignment_and_release(cluster: Cluster, store: Watched) -> None:
    a = await cluster.host("a")
    store.transactions.clear()
    store.reads = 0
    addresses = [await a.auto(f"h{number}") for number in range(20)]
    for address in addresses:
        await a.ipam.release(address)
    assert (len(store.transactions), store.reads) == (40, 0)
    assert await findings(cluster) == []


async def test_requests_that_come_together_share_a_transaction(cluster: Cluster, store: Watched) -> None:
    a = await cluster.host("a")
    store.transactions.clear()
    addresses = await asyncio.gather(*(a.auto(f"h{number}") for number in range(64)))
    assert len(set(addresses)) == 64
    assert len(store.transactions) == 1
    released = await asyncio.gather(*(a.ipam.release(address) for address in addresses))
    assert (released, len(store.transactions)) == ([True] * 64, 2)
    assert await findings(cluster) == []


async def test_more_requests_than_a_transaction_takes_go_into_the_next(cluster: Cluster, store: Watched) -> None:
    a = await cluster.host("a")
    store.transactions.clear()
    addresses = await asyncio.gather(*(a.auto(f"h{number}") for number in range(240)))
    assert len(set(addresses)) == 240
    assert len(store.transactions) <= 4
    assert await findings(cluster) == []


async def test_each_of_a_batch_gets_its_own_answer(cluster: Cluster, store: Watched) -> None:
    a = await cluster.host("a")
    await a.assign(ip_address("10.5.0.1"), "first")
    store.transactions.clear()
    answers = await asyncio.gather(
        a.assign(ip_address("10.5.0.1"), "second"),
        a.assign(ip_address("10.5.0.2"), "third"),
        a.ipam.release(ip_address("10.5.0.9")),
        a.ipam.release(ip_address("10.5.0.1"), handle="other"),
        a.ipam.release_handle("first"),
        a.auto("fourth", 6),
        return_exceptions=True,
    )
    kinds = [type(answer).__name__ for answer in answers]
    assert kinds == ["AddressInUse", "NoneType", "bool", "AddressInUse", "list", "NoPool"]
    assert len(store.transactions) == 1


async def test_address_released_in_the_same_batch_is_given_out_again(cluster: Cluster, store: Watched) -> None:
    await cluster.config(strict_affinity=True, auto_allocate_blocks=True, maxBlocksPerHost=1)
    a = await cluster.host("a")
    first, *_ = [await a.auto(f"h{number}") for number in range(16)]
    store.transactions.clear()
    refused, released, again = await asyncio.gather(
        a.auto("early"), a.ipam.release(first), a.auto("late"), return_exceptions=True
    )
    assert (type(refused).__name__, released, again) == ("BlockLimit", True, first)
    assert len(store.transactions) == 1


async def test_refusal_rests_on_the_datastore_and_not_on_a_cache_that_lags(store: Watched) -> None:
    async with a_cluster(store) as cluster:
        await cluster.pool("10.5.0.0/24", blockSize=28)
        await cluster.node("a")
        fresh, lagging = await cluster.host("a"), await _lagging_host(store, cluster.clock, "a")
        address = await fresh.auto("h")
        assert await lagging.ipam.release(address) is True
        await fresh.ipam.release(address)
        await lagging.assign(address)
        await lagging.ipam.release(address)
        await fresh.assign(address)
        assert await lagging.ipam.release_handle("h") == [address]
        assert await findings(cluster) == []


async def _lagging_host(store: MemoryDatastore, clock: Clock, name: str) -> Host:
    """Its cache has listed and will never hear of anything again but in refused transactions."""

    class Deaf(MemoryDatastore):
        async def watch(self, prefixes: Sequence[str], start_revision: int) -> AsyncGenerator[Batch, None]:
            await asyncio.Event().wait()
            yield Batch(0, ())

    deaf = Deaf(store._ledger)
    deaf.commit = store.commit  # type: ignore[method-assign]
    cache = Cache(deaf, PREFIXES)
    task = asyncio.create_task(cache.run())
    await cache.synced()
    task.cancel()
    return Host(name, cache, Ipam(cache, node=name, clock=clock))


async def test_conflict_is_resolved_from_the_fresh_values(cluster: Cluster, store: Watched) -> None:
    a = await cluster.host("a")
    first = await a.auto("h")
    rival = await cluster.host("a")

    async def overtake(_: Transaction) -> None:
        store.before = None
        await rival.auto("h")

    store.before = overtake
    assert await a.auto("h") == first + 2
    assert {each.handle for each in rival.ipam.assignments()} == {"h"}
    assert await findings(cluster) == []


async def test_reclaim_by_a_peer_during_an_assignment_costs_no_address(cluster: Cluster, store: Watched) -> None:
    """A peer that writes one key at a time marks the affinity, then deletes the block, then the affinity."""
    a = await cluster.host("a")
    address = await a.auto("h")
    await a.ipam.release(address)
    block, affinity = sorted(await cluster.values())
    steps = [(affinity, b'{"state":"pendingDeletion","deleted":false}'), (block, None), (affinity, None)]

    async def peer(_: Transaction) -> None:
        if steps:
            key, value = steps.pop(0)
            await _write(store, key, value)

    store.before = peer
    assert await a.auto("h") is not None
    store.before = None
    assert not steps
    assert await findings(cluster) == []


async def _write(store: MemoryDatastore, key: str, value: bytes | None) -> None:
    operation = Delete(key) if value is None else Put(key, value)
    await MemoryDatastore.commit(store, Transaction((), (operation,)))


async def test_endless_conflicts_end_in_a_sentence(cluster: Cluster, store: Watched) -> None:
    a = await cluster.host("a")
    await a.auto("h")
    block = next(key for key in await cluster.values() if "/block/" in key)
    value = (await cluster.values())[block].encode()

    async def touch(_: Transaction) -> None:
        await _write(store, block, value)

    store.before = touch
    with pytest.raises(Conflict, match="kept changing"):
        await a.auto("h")
    store.before = None
    assert await a.auto("h") is not None


async def test_caller_cancelled_before_its_turn_gets_nothing(cluster: Cluster) -> None:
    a = await cluster.host("a")
    task = asyncio.create_task(a.auto("h"))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    await a.ipam.settled()
    assert await assigned(cluster) == set()


async def test_caller_cancelled_during_the_write_leaves_no_address(cluster: Cluster, store: Watched) -> None:
    a = await cluster.host("a")
    task: asyncio.Task[Address]

    async def vanish(_: Transaction) -> None:
        store.after = None
        task.cancel()
        await asyncio.sleep(0)

    store.after = vanish
    task = asyncio.create_task(a.auto("h"))
    other = asyncio.create_task(a.auto("other"))
    await asyncio.wait([task])
    await a.ipam.settled()
    assert task.cancelled()
    assert await assigned(cluster) == {await other}
    assert await findings(cluster) == []


async def test_caller_cancelled_with_the_answer_on_its_way_leaves_no_address(cluster: Cluster) -> None:
    for steps in range(12):
        a = await cluster.host("a")
        task = asyncio.create_task(a.auto("h"))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        await a.ipam.settled()
        if task.cancelled():
            assert await assigned(cluster) == set()
        else:
            await a.ipam.release(task.result())


async def test_given_back_is_only_what_is_still_the_same_assignment(cluster: Cluster, store: Watched) -> None:
    a, rival = await cluster.host("a"), await cluster.host("a")
    task: asyncio.Task[None]
    address = ip_address("10.5.0.1")

    async def vanish(_: Transaction) -> None:
        store.after = None
        task.cancel()
        await asyncio.sleep(0)
        await rival.ipam.release(address)
        await rival.assign(address, "h")

    store.after = vanish
    task = asyncio.create_task(a.assign(address, "h"))
    await asyncio.wait([task])
    await a.ipam.settled()
    assert await assigned(cluster) == {address}


@pytest.mark.parametrize("written", [True, False])
async def test_assignment_of_unknown_fate_is_given_back(cluster: Cluster, store: Watched, *, written: bool) -> None:
    a = await cluster.host("a")

    async def fail(_: Transaction) -> None:
        raise DatastoreUnavailable("the datastore memory did not answer")

    store.after, store.before = (fail, None) if written else (None, fail)
    answers = await asyncio.gather(*(a.auto(f"h{number}") for number in range(3)), return_exceptions=True)
    assert {type(answer) for answer in answers} == {DatastoreUnavailable}
    store.after = store.before = None
    await cluster.heard()
    assert len(await assigned(cluster)) == (3 if written else 0)
    kept = await a.auto("kept")
    await a.ipam.settled()
    assert await assigned(cluster) == {kept}
    assert await findings(cluster) == []


async def test_what_cannot_be_given_back_yet_is_given_back_later(cluster: Cluster, store: Watched) -> None:
    a = await cluster.host("a")

    async def fail(_: Transaction) -> None:
        raise DatastoreUnavailable("the datastore memory did not answer")

    store.after = fail
    for _ in range(3):
        with pytest.raises(DatastoreUnavailable):
            await a.auto("h")
        await a.ipam.settled()
    store.after = None
    kept = await a.auto("kept")
    await a.ipam.settled()
    assert await assigned(cluster) == {kept}


async def test_fault_in_a_request_is_told_and_stops_nobody_after_it(cluster: Cluster) -> None:
    class Faulty:
        def apply(self, draft: Draft) -> None:
            raise ZeroDivisionError("a fault")

    a = await cluster.host("a")
    with pytest.raises(ZeroDivisionError):
        await a.ipam._writer.submit(Faulty())
    assert await a.auto("h") is not None


async def test_requests_before_the_first_listing_fail_with_a_sentence() -> None:
    cache = Cache(MemoryDatastore(), PREFIXES, patience=0.01)
    with pytest.raises(DatastoreUnavailable):
        await Ipam(cache, node="a").release_handle("h")


async def test_hosts_racing_for_one_small_pool_share_it_exactly(cluster: Cluster) -> None:
    hosts = [await cluster.host(name) for name in ("a", "b", "c")]
    calls = [host.auto(f"{host.name}{number}") for number in range(86) for host in hosts]
    random.Random(1).shuffle(calls)
    answers = await asyncio.gather(*calls, return_exceptions=True)
    addresses = [answer for answer in answers if not isinstance(answer, BaseException)]
    failed = [answer for answer in answers if isinstance(answer, BaseException)]
    assert len(addresses) == len(set(addresses)) == 256
    assert [type(each).__name__ for each in failed] == ["NoFreeAddress"] * 2
    assert await assigned(cluster) == set(addresses)
    assert await findings(cluster) == []


_steps = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.sampled_from(["auto", "auto", "auto6", "assign", "release", "handle", "cancel", "affinity"]),
        st.integers(0, 15),
    ),
    max_size=60,
)


@given(_steps, st.integers(1, 8), st.booleans(), st.sampled_from([0, 1]), st.booleans())
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_sequence_keeps_every_address_once(
    steps: list[tuple[str, str, int]], together: int, strict: bool, cooldown: int, deaf: bool
) -> None:
    asyncio.run(_any_sequence(steps, together, strict=strict, cooldown=cooldown, deaf=deaf))


async def _any_sequence(
    steps: list[tuple[str, str, int]], together: int, *, strict: bool, cooldown: int, deaf: bool
) -> None:
    store = MemoryDatastore()
    async with a_cluster(store) as cluster:
        await cluster.pool("10.5.0.0/28", blockSize=30)
        await cluster.pool("fd5::/124", "six", blockSize=126)
        await cluster.config(strict_affinity=strict, auto_allocate_blocks=True, ipCooldownSeconds=cooldown)
        for name in "abc":
            await cluster.node(name)
        hosts = {name: await cluster.host(name) for name in "abc"}
        if deaf:
            hosts |= {name: await _lagging_host(store, cluster.clock, name) for name in "bc"}
        ours: dict[Address, str] = {}
        for first in range(0, len(steps), together):
            cluster.clock.advance(70 if first % 3 else 0.3)
            batch = _Batch(dict(ours), ours, first)
            await asyncio.gather(
                *(batch.step(hosts[name], kind, number) for name, kind, number in steps[first : first + together])
            )
            for host in hosts.values():
                await host.ipam.settled()
            await cluster.heard()
            assert {each.address: each.handle for each in hosts["a"].ipam.assignments()} == ours
            assert await findings(cluster) == []


@dataclass
class _Batch:
    """Steps at the same time: they assign under the batch's own handles, and release what was there ``before``."""

    before: dict[Address, str]
    ours: dict[Address, str]
    number: int

    async def step(self, host: Host, kind: str, number: int) -> None:
        handle = f"{host.name}-{self.number}"
        known = sorted(self.before.items(), key=str)
        some = known[number % len(known)] if known else (ip_address("10.5.0.1"), "nothing")
        try:
            if kind in ("auto", "auto6"):
                self._assigned(await host.auto(handle, 6 if kind == "auto6" else 4), handle)
            elif kind == "assign":
                address = ip_address("10.5.0.0") + number
                await host.assign(address, handle)
                self._assigned(address, handle)
            elif kind == "release":
                self._released(some[0], some[1])
                await host.ipam.release(some[0], handle=some[1])
            elif kind == "handle":
                for address in await host.ipam.release_handle(some[1]):
                    self._released(address, some[1])
            elif kind == "cancel":
                await self._cancelled(host, handle, number)
            else:
                await host.ipam.release_affinity(ip_network((int(ip_address("10.5.0.0")) + number // 4 * 4, 30)))
        except IpamError:
            pass

    def _released(self, address: Address, handle: str) -> None:
        if self.ours.get(address) == handle:
            del self.ours[address]

    def _assigned(self, address: Address, handle: str) -> None:
        assert self.ours.get(address) in (None, self.before.get(address))
        self.ours[address] = handle

    async def _cancelled(self, host: Host, handle: str, steps: int) -> None:
        task = asyncio.create_task(host.auto(handle))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled() and task.exception() is None:
            self._assigned(task.result(), handle)
