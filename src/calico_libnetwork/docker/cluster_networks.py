"""One network on all hosts: keeps this host's Docker and the cluster's list of Calico networks equal.

Level-triggered: every round reads Docker's list and the records, plans, and acts; events only say when to look, and a
round comes every few seconds anyway. Docker is changed through its API, which calls this plugin back, so nothing here
runs inside a call of Docker's. Whatever is written compares what it rests on, and the next round mends what a crash or
another host left between two steps. Not for a swarm or a cluster store: there a network is global already.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol, assert_never

import structlog

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.protocol import (
    Compare,
    Delete,
    Event,
    Operation,
    Put,
    Transaction,
    absent,
    unchanged,
)
from calico_libnetwork.docker import cluster_records as records
from calico_libnetwork.docker.cluster_plan import (
    Clash,
    Create,
    Forget,
    Join,
    Publish,
    Remove,
    Step,
    View,
    Withdraw,
    plan,
)
from calico_libnetwork.docker.cluster_records import ClusterNetwork, LocalNetwork, Member
from calico_libnetwork.docker.scope import kind_of
from calico_libnetwork.errors import CalicoError, DatastoreUnavailable, DockerRefused, DockerUnavailable, NotFound

PERIOD = 10.0
"""Seconds between two rounds without an event."""
PRUNING = 5.0
"""Seconds around Docker's word that it has pruned, in which a removal counts as part of that."""

_log = structlog.get_logger(__name__)


class ClusterDocker(Protocol):
    """All raise ``DockerUnavailable``."""

    async def info(self) -> Mapping[str, Any]: ...

    async def networks(self) -> Sequence[Mapping[str, Any]]: ...

    async def create_network(self, request: Mapping[str, Any]) -> str:
        """Raises ``DockerRefused``."""
        ...

    async def remove_network(self, network_id: str) -> None:
        """Raises ``NotFound``, ``DockerRefused``."""
        ...


class ClusterNetworks:
    """``used_elsewhere`` tells whether a container of another host is in the network with that uid.

    ``restore_profiles`` brings back the profiles that another host deleted with its network in the moment in which a
    container of this host came into it.
    """

    def __init__(
        self,
        cache: Cache,
        docker: ClusterDocker,
        *,
        node: str,
        used_elsewhere: Callable[[str], bool],
        restore_profiles: Callable[[], Awaitable[object]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._cache = cache
        self._docker = docker
        self._node = node
        self._used_elsewhere = used_elsewhere
        self._restore_profiles = restore_profiles
        self._clock = clock
        self._wake = asyncio.Event()
        self._kept: set[str] = set()  # ids of networks that are to go when their last container does
        self.problems: list[str] = []
        self.off = ""
        self._withdrawn: list[tuple[float, ClusterNetwork]] = []
        self._pruned = -math.inf
        cache.subscribe(self._on_events)

    async def run(self) -> None:
        """For ever: a round now, at every word of Docker or of the datastore, and every so often."""
        while True:
            self._wake.clear()
            try:
                await self.round()
            except (DockerUnavailable, DatastoreUnavailable) as error:
                _log.debug("cluster networks not compared", reason=str(error))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD):
                    await self._wake.wait()

    def networks_changed(self) -> None:
        self._wake.set()

    def container_disconnected(self, network_id: str) -> None:
        if network_id in self._kept:
            self._wake.set()

    def networks_pruned(self) -> None:
        """Docker has removed what this host does not use: what another host uses was not meant, and comes back."""
        self._pruned = self._clock()
        self._wake.set()

    def names(self) -> list[str]:
        """Of the cluster's networks."""
        return sorted(self._networks())

    async def round(self) -> None:
        """Raises ``DockerUnavailable``, ``DatastoreUnavailable``."""
        info = await self._docker.info()
        kind = kind_of(info)
        self.off = "left to Docker's swarm or cluster store" if kind.swarm or kind.cluster_store else ""
        if self.off or not self._cache.connected:
            return
        local = [records.local_network(each) for each in await self._docker.networks() if not each.get("ConfigOnly")]
        view = View(local, self._networks(), self._members(), info.get("ID") or "")
        problems: list[str] = []
        for step in plan(view):
            try:
                await self._take(step, view)
            except (DockerRefused, NotFound) as error:
                problems.append(_sentence(step, error))
            if isinstance(step, Clash):
                problems.append(step.reason)
        await self._restore_pruned()
        await self._restore_profiles()
        self._tell(problems)

    async def _take(self, step: Step, view: View) -> None:
        match step:
            case Publish():
                await self._publish(step.local, view)
            case Join():
                await self._join(step.local.id, step.network, view)
            case Withdraw():
                await self._withdraw(step.network, step.network_id)
            case Forget():
                await self._forget(step.network_id)
            case Create():
                await self._create(step.network, view)
            case Remove():
                await self._remove(step.local)
            case Clash():
                pass
            case _:
                assert_never(step)

    async def _publish(self, local: LocalNetwork, view: View) -> None:
        network = ClusterNetwork(
            name=local.name, uid=str(uuid.uuid4()), node=self._node, specification=local.specification
        )
        path = records.network_key(local.name)
        write = [Put(path, records.encode(network)), self._member(local.id, network, view)]
        if await self._commit([self._as_cached(path)], write):
            _log.info("network is now the cluster's", network=local.name, id=local.short_id)

    async def _join(self, network_id: str, network: ClusterNetwork, view: View) -> None:
        path = records.network_key(network.name)
        if await self._commit([self._as_cached(path)], [self._member(network_id, network, view)]):
            _log.info("network of this host is the cluster's", network=network.name, id=network_id[:12])

    async def _withdraw(self, network: ClusterNetwork, network_id: str) -> None:
        path = records.network_key(network.name)
        if await self._commit([self._as_cached(path)], [Delete(path), Delete(self._member_key(network_id))]):
            _log.info("network was removed here and is no longer the cluster's", network=network.name)
            self._withdrawn.append((self._clock(), network))

    async def _forget(self, network_id: str) -> None:
        key = self._member_key(network_id)
        await self._commit([self._as_cached(key)], [Delete(key)])

    async def _create(self, network: ClusterNetwork, view: View) -> None:
        network_id = await self._docker.create_network(records.creation_request(network))
        _log.info("network of the cluster created", network=network.name, id=network_id[:12], origin=network.node)
        await self._join(network_id, network, view)

    async def _remove(self, local: LocalNetwork) -> None:
        self._kept.add(local.id)
        with contextlib.suppress(NotFound):
            await self._docker.remove_network(local.id)
        self._kept.discard(local.id)
        _log.info("network was removed elsewhere, removed here", network=local.name, id=local.short_id)
        await self._forget(local.id)

    async def _restore_pruned(self) -> None:
        now = self._clock()
        self._withdrawn = [entry for entry in self._withdrawn if now - entry[0] < PRUNING]
        if now - self._pruned >= PRUNING:
            return
        for _, network in self._withdrawn:
            path = records.network_key(network.name)
            if self._used_elsewhere(network.uid) and await self._commit(
                [absent(path)], [Put(path, records.encode(network))]
            ):
                _log.info("network was pruned here and is in use elsewhere, restored", network=network.name)
        self._withdrawn.clear()

    async def _commit(self, compares: list[Compare], operations: Sequence[Operation]) -> bool:
        """What lost against another writer is planned anew."""
        succeeded = (await self._cache.commit(Transaction(compares, operations))).succeeded
        if not succeeded:
            self._wake.set()
        return succeeded

    def _as_cached(self, path: str) -> Compare:
        existing = self._cache.get(path)
        return unchanged(existing) if existing is not None else absent(path)

    def _member(self, network_id: str, network: ClusterNetwork, view: View) -> Put:
        member = Member(uid=network.uid, name=network.name, daemon=view.daemon)
        return Put(self._member_key(network_id), records.encode(member))

    def _member_key(self, network_id: str) -> str:
        return records.members_prefix(self._node) + network_id

    def _networks(self) -> dict[str, ClusterNetwork]:
        found = map(records.read_network, self._cache.under(records.NETWORKS))
        return {network.name: network for network in found if network is not None}

    def _members(self) -> dict[str, Member]:
        prefix = records.members_prefix(self._node)
        found = ((item.key.removeprefix(prefix), records.read_member(item)) for item in self._cache.under(prefix))
        return {network_id: member for network_id, member in found if member is not None}

    def _tell(self, problems: list[str]) -> None:
        """Each sentence once, when it becomes true."""
        for problem in problems:
            if problem not in self.problems:
                _log.warning("cluster network", problem=problem)
        self.problems = problems

    def _on_events(self, events: Sequence[Event]) -> None:
        if any(event.key.startswith(records.NETWORKS) for event in events):
            self._wake.set()


def _sentence(step: Step, error: CalicoError) -> str:
    if isinstance(step, Create):
        network = step.network
        return f"network {network.name} of the cluster, created on {network.node}, cannot be made here: {error}"
    if isinstance(step, Remove):
        return (
            f"network {step.local.name} ({step.local.short_id}) was removed on another host and stays here until its"
            f" last container has left it: {error}"
        )
    return str(error)
