"""What becomes of ``docker run -p``: ports of the host are held, and recorded in the endpoint for the agent.

CreateEndpoint does it, since that may fail. Docker tells of the ports for each network of a container, and means one of
them: that of its default route. So a port that another endpoint of the container has already is no conflict, and
ProgramExternalConnectivity and RevokeExternalConnectivity, which follow the default route, move the ports. Whether it
is the same container, Docker 29 says in time; with earlier versions Join finds out.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import structlog

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.protocol import Put, Transaction, unchanged
from calico_libnetwork.docker import messages
from calico_libnetwork.docker.endpoints import Endpoint, EndpointIndex, endpoint_key, with_ports
from calico_libnetwork.docker.host_ports import Hold, HostPorts
from calico_libnetwork.docker.published_ports import PORT_MAP, AskedPort, HostPort, asked_ports, listed, objection
from calico_libnetwork.docker.sandboxes import Sandboxes
from calico_libnetwork.errors import CalicoError, Conflict, PortInUse
from calico_libnetwork.model import documents
from calico_libnetwork.model.ipam_keys import Address

_ATTEMPTS = 5

_log = structlog.get_logger(__name__)


class Publishing:
    """``possible`` tells whether the kernel of this host is ours to program."""

    def __init__(
        self,
        cache: Cache,
        endpoints: EndpointIndex,
        sandboxes: Sandboxes,
        *,
        node: str,
        is_here: Callable[[str], bool],
        possible: Callable[[], bool],
        hold: Hold,
    ) -> None:
        self._cache = cache
        self._endpoints = endpoints
        self._sandboxes = sandboxes
        self._node = node
        self._possible = possible
        self._ports = HostPorts(is_here=is_here, owner=self._owner, hold=hold)
        self._contested: dict[str, PortInUse] = {}  # by endpoint, until Join says whether it is the holder's sibling

    def of(self, endpoint_id: str) -> tuple[HostPort, ...]:
        return self._ports.of(endpoint_id)

    async def claim(
        self, request: messages.CreateEndpoint, addresses: Collection[Address], container_name: str
    ) -> tuple[HostPort, ...]:
        """Those of a new endpoint. Raises ``PortInUse``, ``Refused``. ``container_name`` is "" if unknown."""
        asked = asked_ports(request.options)
        if asked and not self._possible():
            text = "no port is published beside Felix; use the container's own address"
            _log.warning(text, endpoint=request.endpoint_id[:12], ports=listed(asked))
            return ()
        try:
            return await self._take(request.endpoint_id, asked, addresses)
        except PortInUse as error:
            holder = self._endpoint(error.holder)
            if holder is None or (container_name and holder.container_name != container_name):
                raise
            if not container_name:
                self._contested[request.endpoint_id] = error
            return ()

    async def join(self, endpoint_id: str, sandbox: str) -> None:
        """The container is known by its sandbox: one endpoint of it publishes.

        Raises ``PortInUse`` if the port that the endpoint has not got is another container's.
        """
        error = self._contested.pop(endpoint_id, None)
        if error is not None and self._endpoint(error.holder) and self._sandboxes.of(error.holder) != sandbox:
            raise error
        endpoint = self._endpoint(endpoint_id)
        if endpoint is not None and endpoint.ports:
            others = (self._endpoint(each) for each in self._sandboxes.members(sandbox) if each != endpoint_id)
            if any(other is not None and other.ports for other in others):
                await self._withdraw(endpoint)

    async def program(self, request: messages.Connectivity) -> None:
        """The container's default route leads through the endpoint. Too late to fail: Docker 29 would forget it."""
        if not (request.options or {}).get(PORT_MAP) or not self._possible():
            return
        try:
            await self._cache.synced()
            endpoint = self._endpoint(request.endpoint_id)
            if endpoint is not None and not endpoint.ports:
                ports = await self._take(request.endpoint_id, asked_ports(request.options), endpoint.addresses)
                await self._record(endpoint, ports)
        except CalicoError as error:
            self.forget(request.endpoint_id)
            _log.warning("no port is published", endpoint=request.endpoint_id[:12], reason=str(error))

    async def revoke(self, request: messages.EndpointRequest) -> None:
        """It does no more, or the endpoint is about to go. Raises ``DatastoreError``."""
        self.forget(request.endpoint_id)
        endpoint = self._endpoint(request.endpoint_id)
        if endpoint is not None and endpoint.ports:
            await self._withdraw(endpoint)

    def forget(self, endpoint_id: str) -> None:
        self._contested.pop(endpoint_id, None)
        self._ports.release(endpoint_id)

    def resume(self) -> None:
        """What an earlier process had published."""
        for endpoint in self._endpoints.of_node() if self._possible() else ():
            for problem in self._ports.keep(endpoint.endpoint_id, endpoint.ports, _versions(endpoint.addresses)):
                _log.warning("a published port is not held", container=endpoint.container_name, problem=problem)

    def close(self) -> None:
        self._ports.close()

    def _endpoint(self, endpoint_id: str) -> Endpoint | None:
        return self._endpoints.get(endpoint_key(self._node, endpoint_id))

    async def _take(
        self, endpoint_id: str, asked: Sequence[AskedPort], addresses: Collection[Address]
    ) -> tuple[HostPort, ...]:
        versions = _versions(addresses)
        reasons = {port: objection(port, versions) for port in asked}
        for port, reason in reasons.items():
            if reason:
                _log.warning("a port is not published", endpoint=endpoint_id[:12], port=str(port), reason=reason)
        ports = await self._ports.take(endpoint_id, [port for port in asked if not reasons[port]], versions)
        if ports:
            _log.info("ports are published", endpoint=endpoint_id[:12], ports=listed(ports))
        return ports

    async def _withdraw(self, endpoint: Endpoint) -> None:
        self.forget(endpoint.endpoint_id)
        await self._record(endpoint, ())

    def _owner(self, endpoint_id: str) -> str:
        endpoint = self._endpoint(endpoint_id)
        return endpoint.owner if endpoint is not None else f"endpoint {endpoint_id[:12]}"

    async def _record(self, endpoint: Endpoint, ports: tuple[HostPort, ...]) -> None:
        for _ in range(_ATTEMPTS):
            stored = self._cache.get(endpoint.key.path)
            if stored is None:
                return
            before = documents.decode(stored.value)
            after = with_ports(before, ports)
            if after == before:
                return
            write = Transaction([unchanged(stored)], [Put(endpoint.key.path, documents.encode(after))])
            if (await self._cache.commit(write)).succeeded:
                return
        raise Conflict(f"{endpoint.key} kept being changed by others; its published ports are not recorded")


def _versions(addresses: Collection[Address]) -> frozenset[int]:
    return frozenset(address.version for address in addresses)
