"""Follows Docker's events, so that what a call needs to know is known before it comes.

One list at every connection is the truth, events keep it. A new connection replays the events since the last one seen,
since dockerd starts containers before its API answers. While the connection stands, the daemon serves; without it no
call asks it anything.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import structlog

from calico_libnetwork.docker.containers import ContainerTable
from calico_libnetwork.docker.daemon import Daemon
from calico_libnetwork.docker.identity import Questions
from calico_libnetwork.docker.scope import AnnouncedScope, kind_of
from calico_libnetwork.errors import DockerUnavailable, NotFound
from calico_libnetwork.state_file import StateFile

PAUSE = 0.25
"""Seconds between two attempts to reach the daemon."""

_log = structlog.get_logger(__name__)


class DaemonListener(Protocol):
    """What follows from the daemon's state, once the drivers are there."""

    def known_networks(self) -> set[str]:
        """Ids of the networks that this node believes to exist."""
        ...

    async def networks_gone(self, network_ids: set[str]) -> None: ...

    async def container_connected(self, network_id: str, container_id: str) -> None:
        """A container's endpoint is up: the daemon now tells whose it is."""
        ...

    async def container_renamed(self) -> None: ...

    async def daemon_listed(self) -> None:
        """Containers and networks are known anew, as after a restart of the daemon or of this process."""
        ...


class DockerObserver(Protocol):
    """Told of everything after it has been taken in; must not wait."""

    def docker_event(self, event: Mapping[str, Any]) -> None: ...

    def docker_listed(self) -> None: ...


class Watcher:
    """Run it for as long as the plugin lives; a daemon that is down or out of reach only costs knowledge."""

    def __init__(self, daemon: Daemon, table: ContainerTable, scope: AnnouncedScope, file: Path) -> None:
        self._daemon = daemon
        self._table = table
        self._scope = scope
        self._file = StateFile(file, table.encode)
        self._listener: DaemonListener | None = None
        self._observers: list[DockerObserver] = []
        self._since = 0
        self._outage: str | None = None
        _restore(table, self._file)

    async def attach(self, listener: DaemonListener) -> None:
        """From now on ``listener`` is told; also at once, where the daemon is connected already."""
        self._listener = listener
        if self._daemon.serving:
            with contextlib.suppress(DockerUnavailable):  # the next connection makes up for it
                await self._list()

    def observe(self, observer: DockerObserver) -> None:
        self._observers.append(observer)

    async def run(self) -> None:
        try:
            while True:
                try:
                    await self._daemon.connect()
                    await self._follow()
                except (DockerUnavailable, NotFound) as error:
                    self._note_outage(str(error))
                finally:
                    await self._daemon.disconnect()
                await asyncio.sleep(PAUSE)
        finally:
            await self._file.close()

    async def _follow(self) -> None:
        """The stream begins before the listing, so that nothing falls between the two."""
        since = self._since or time.time_ns()
        version = await self._learn_kind()
        await self._list()
        self._outage = None
        _log.info("following Docker's events", docker=version)
        async for event in self._daemon.events(since):
            await self._take(event)
        raise DockerUnavailable("Docker's event stream ended")

    async def _list(self) -> None:
        known = self._listener.known_networks() if self._listener is not None else set()
        networks = {network["Id"]: network["Name"] for network in await self._daemon.networks()}
        self._table.replace(await self._daemon.containers(), networks)
        self._file.save_soon()
        if self._listener is not None:
            await self._listener.networks_gone(known - networks.keys())
            await self._listener.daemon_listed()
        for observer in self._observers:
            observer.docker_listed()

    async def _learn_kind(self) -> str:
        info = await self._daemon.info()
        self._scope.learn(kind_of(info))
        return str(info.get("ServerVersion"))

    async def _take(self, event: Mapping[str, Any]) -> None:
        self._since = max(self._since, int(event.get("timeNano") or 0))
        if self._table.apply(event):
            self._file.save_soon()
        actor = event.get("Actor") or {}
        match event.get("Type"), event.get("Action"):
            case "network", "connect" if self._listener is not None:
                container = (actor.get("Attributes") or {}).get("container", "")
                await self._listener.container_connected(actor.get("ID") or "", container)
            case "container", "start" if not self._table.was_connected(actor.get("ID") or ""):
                await self._look_at(actor.get("ID") or "")
            case "container", "rename" if self._listener is not None:
                await self._listener.container_renamed()
            case "network", "create" | "destroy" | "remove":
                await self._learn_kind()  # entering and leaving swarm mode makes and removes networks
        for observer in self._observers:
            observer.docker_event(event)

    async def _look_at(self, container_id: str) -> None:
        """It started without a word of a network: Docker 29 forgets that of a container whose Join has failed."""
        container = await self._daemon.container(container_id)
        if container is not None:
            self._table.put(container)
            self._file.save_soon()

    def _note_outage(self, reason: str) -> None:
        if self._outage is None:
            _log.warning("Docker is out of reach; container names and labels come late until it is back", reason=reason)
        self._outage = reason


class DockerNames:
    """Names of networks: from the table, else asked for where that cannot block."""

    def __init__(self, daemon: Questions, table: ContainerTable) -> None:
        self._daemon = daemon
        self._table = table

    async def network_name(self, network_id: str) -> str | None:
        known = self._table.network_name(network_id)
        if known is not None:
            return known
        try:
            network = await self._daemon.network(network_id)
        except (DockerUnavailable, NotFound):
            return None
        name: str = network["Name"]
        self._table.put_network(network_id, name)
        return name

    async def network_exists(self, network_id: str) -> bool | None:
        try:
            await self._daemon.network(network_id)
        except NotFound:
            return False
        except DockerUnavailable:
            return None
        return True


def _restore(table: ContainerTable, file: StateFile) -> None:
    content = file.read()
    if content is not None:
        try:
            table.restore(content)
        except ValueError as error:
            file.discard(str(error))
