"""Which container is behind an endpoint.

Docker 29 names the container when it requests the address; older ones list an endpoint under its id, with the
container's name, from Join on, and under the container's id once it has started. Where labels decide about traffic
the daemon is asked, since a name may just have changed hands; its saved table serves while it does not answer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from calico_libnetwork.docker.containers import Container, ContainerTable
from calico_libnetwork.docker.namespaces import container_in
from calico_libnetwork.errors import DockerUnavailable, NotFound

_JOINING = "ep-"


class Questions(Protocol):
    """What may be asked of the daemon; from inside a call, all but ``started``.

    Those raise ``DockerUnavailable`` at once if it is away.
    """

    async def network(self, network_id: str) -> Mapping[str, Any]:
        """``GET /networks/ID``. Raises ``NotFound``."""
        ...

    async def container_named(self, name: str) -> Container | None: ...

    async def started(self) -> None:
        """Waits, within limits, while the daemon does not answer."""
        ...


class Identities:
    def __init__(self, daemon: Questions, table: ContainerTable) -> None:
        self._daemon = daemon
        self._table = table

    def known(self, name: str) -> Container | None:
        """As last heard of; asks nobody."""
        return self._table.by_name(name)

    async def named(self, name: str) -> Container | None:
        """As Docker has it now, if it answers."""
        try:
            return await self._daemon.container_named(name)
        except (DockerUnavailable, NotFound):
            return self._table.by_name(name)

    async def of_endpoint(self, network_id: str, endpoint_id: str) -> Container | None:
        """Of an endpoint that is joining or has joined."""
        try:
            members = (await self._daemon.network(network_id)).get("Containers") or {}
        except (DockerUnavailable, NotFound):
            return None
        for key, member in members.items():
            if member.get("EndpointID") == endpoint_id:
                known = None if key.startswith(_JOINING) else self._table.by_id(key)
                return known or await self.named(member.get("Name") or "")
        return None

    async def endpoint_of(self, network_id: str, container_id: str) -> str | None:
        """The endpoint id of a container that has joined a network."""
        try:
            members: Mapping[str, Any] = (await self._daemon.network(network_id)).get("Containers") or {}
        except (DockerUnavailable, NotFound):
            return None
        return (members.get(container_id) or {}).get("EndpointID")

    async def in_sandbox(self, sandbox: str) -> Container | None:
        """Of a container whose process is in the namespace already; needs no daemon, and a table that knows the id."""
        container_id = await asyncio.to_thread(container_in, Path(sandbox)) if sandbox else None
        return self._table.by_id(container_id) if container_id is not None else None

    async def daemon_started(self) -> None:
        """Waits for a daemon that does not answer, if it ever did: having called this plugin, it must be starting."""
        if not self._table.is_empty:
            await self._daemon.started()

    def with_id(self, container_id: str) -> Container | None:
        return self._table.by_id(container_id)
