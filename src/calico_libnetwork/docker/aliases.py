"""By what names Docker finds this host's containers beside their own, per network: aliases, and host names.

Docker tells them nowhere but in a container's own description, which waits for the container's lock: while a container
starts it does not answer. So it is asked for outside of any call, once per change, and what is not answered in time is
asked for again.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, Protocol

from calico_libnetwork.docker.hosts_file import NAME
from calico_libnetwork.errors import DockerUnavailable, NotFound

PERIOD = 30.0
"""Seconds until what was not answered is asked for again, if nothing happens before."""
_TOGETHER = 32

Names = Mapping[str, frozenset[str]]  # by network id


class AliasDocker(Protocol):
    async def container_networks(self, container_id: str) -> Mapping[str, Mapping[str, Any]]:
        """As its description has them, by network name. Never from inside a call.

        Raises ``NotFound``, ``DockerUnavailable``.
        """
        ...


class Aliases:
    """``changed`` is called whenever more has become known."""

    def __init__(self, docker: AliasDocker, *, changed: Callable[[], None]) -> None:
        self._docker = docker
        self._changed = changed
        self._known: dict[str, Names] = {}
        self._unknown: set[str] = set()
        self._listed: frozenset[str] = frozenset()
        self._wake = asyncio.Event()
        self._settled = asyncio.Event()

    async def run(self) -> None:
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PERIOD if self._unknown else None):
                    await self._wake.wait()
            self._wake.clear()
            await self.learn()

    def container_changed(self, container_id: str) -> None:
        """It was started, connected, disconnected, renamed or removed."""
        self._known.pop(container_id, None)
        self._unknown.add(container_id)
        self._wake.set()

    def daemon_listed(self, container_ids: Collection[str]) -> None:
        self._known.clear()
        self._listed = frozenset(container_ids)
        self._unknown = set(self._listed)
        self._settled.clear()
        self._wake.set()

    async def settled(self) -> None:
        """Returns once all listed containers have been asked for: until then a name may be taken for nobody's."""
        await self._settled.wait()

    def of(self, container_id: str, network_id: str) -> frozenset[str] | None:
        """None as long as they are not known, or the container has left the network."""
        return self._known.get(container_id, {}).get(network_id)

    def by_network(self) -> dict[str, set[str]]:
        """All that are known on this host, by the id of the network that they hold in."""
        found: dict[str, set[str]] = defaultdict(set)
        for networks in self._known.values():
            for network_id, names in networks.items():
                found[network_id] |= names
        return found

    async def learn(self) -> None:
        asked, self._unknown = self._unknown, set()
        turns = asyncio.Semaphore(_TOGETHER)

        async def ask(container_id: str) -> None:
            async with turns:
                try:
                    networks = await self._docker.container_networks(container_id)
                except NotFound:
                    return
                except DockerUnavailable:
                    self._unknown.add(container_id)
                    return
            if container_id not in self._unknown:  # changed while it was asked for
                self._known[container_id] = dict(_names(networks))

        await asyncio.gather(*(ask(container_id) for container_id in asked))
        if asked >= self._listed:  # not listed anew meanwhile
            self._settled.set()
        self._changed()


def _names(networks: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, frozenset[str]]]:
    """Of the networks that the container is up in. Docker 25 and newer list all names, older ones the aliases."""
    for settings in networks.values():
        if settings.get("EndpointID"):
            names = (*(settings.get("Aliases") or ()), *(settings.get("DNSNames") or ()))
            yield settings.get("NetworkID") or "", frozenset(filter(NAME.fullmatch, names))
