"""Builds the drivers and what belongs to them from their parts, once the cache of the datastore is in sync."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.docker import host_ports
from calico_libnetwork.docker.containers import ContainerTable
from calico_libnetwork.docker.departures import Departures
from calico_libnetwork.docker.endpoint_writer import EndpointWriter
from calico_libnetwork.docker.endpoints import Endpoint, EndpointIndex, endpoint_key
from calico_libnetwork.docker.host_ports import Hold
from calico_libnetwork.docker.identity import Identities, Questions
from calico_libnetwork.docker.in_flight import InFlight
from calico_libnetwork.docker.ipam_driver import IpamDriver, interface_exists
from calico_libnetwork.docker.labelling import Labelling
from calico_libnetwork.docker.network_driver import EndpointParts, EndpointStatus, NetworkDriver, Veths
from calico_libnetwork.docker.networks import Networks
from calico_libnetwork.docker.plugin import Drivers
from calico_libnetwork.docker.publishing import Publishing
from calico_libnetwork.docker.reconciler import DockerView, Reconciler
from calico_libnetwork.docker.recording import Recording
from calico_libnetwork.docker.removals import Removals
from calico_libnetwork.docker.returns import Returns
from calico_libnetwork.docker.sandboxes import Sandboxes
from calico_libnetwork.docker.settings import DockerSettings
from calico_libnetwork.docker.siblings import Siblings
from calico_libnetwork.docker.watcher import DaemonListener, DockerNames
from calico_libnetwork.ipam import Ipam
from calico_libnetwork.model.names import endpoint_interface

SANDBOXES_FILE = "sandboxes.json"
RETURNS_FILE = "returns.json"


class DaemonApi(Questions, DockerView, Protocol):
    """What the drivers and the reconciler ask of Docker."""


@dataclass(frozen=True, slots=True)
class Assembly:
    """``close`` once the plugin has stopped."""

    drivers: Drivers
    parts: EndpointParts
    listener: DaemonListener
    reconciler: Reconciler
    recording: Recording

    async def close(self) -> None:
        self.parts.publishing.close()
        await self.parts.labelling.close()
        await self.parts.removals.drain()
        await self.parts.sandboxes.close()
        await self.parts.returns.close()


def assemble(
    settings: DockerSettings,
    *,
    cache: Cache,
    ipam: Ipam,
    veths: Veths,
    status: EndpointStatus,
    daemon: DaemonApi,
    table: ContainerTable,
    interfaces: Callable[[], Iterable[str]],
    interface_exists: Callable[[str], bool] = interface_exists,
    hold: Hold = host_ports.bind,
) -> Assembly:
    parts = _parts(
        settings,
        cache=cache,
        ipam=ipam,
        veths=veths,
        status=status,
        daemon=daemon,
        table=table,
        interface_exists=interface_exists,
        hold=hold,
    )
    network = NetworkDriver(settings, parts, cache=cache, veths=veths, status=status)

    async def forget(endpoint: Endpoint) -> None:
        await network.remove_endpoint(endpoint.endpoint_id)

    ipam_driver = _ipam_driver(settings, parts, cache, ipam=ipam, forget=forget, interface_exists=interface_exists)
    recording = _recording(settings, parts, ipam=ipam, forget=forget, interface_exists=interface_exists)
    reconciler = Reconciler(
        node=settings.node,
        docker=daemon,
        endpoints=parts.endpoints,
        networks=parts.networks,
        ipam=ipam,
        in_flight=parts.in_flight,
        departures=parts.departures,
        reachable=lambda: cache.connected,
        veths=veths,
        interfaces=interfaces,
        being_made=lambda: network.being_made,
        forget=forget,
        recording=recording,
    )
    cache.subscribe(lambda events: reconciler.hurry() if any(map(recording.is_lost, events)) else None)
    parts.labelling.resume()
    parts.publishing.resume()
    listener = _Listener(parts.networks, parts.labelling, parts.siblings, reconciler)
    return Assembly(Drivers(network, ipam_driver), parts, listener, reconciler, recording)


def _parts(
    settings: DockerSettings,
    *,
    cache: Cache,
    ipam: Ipam,
    veths: Veths,
    status: EndpointStatus,
    daemon: Questions,
    table: ContainerTable,
    interface_exists: Callable[[str], bool],
    hold: Hold,
) -> EndpointParts:
    endpoints = EndpointIndex(cache, node=settings.node)
    names = DockerNames(daemon, table)

    def exists(endpoint_id: str) -> bool:
        return endpoints.get(endpoint_key(settings.node, endpoint_id)) is not None

    def is_here(endpoint_id: str) -> bool:
        return not departures.was_told(endpoint_id) and interface_exists(endpoint_interface(endpoint_id))

    networks = Networks(cache, endpoints, names, node=settings.node, create_profiles=settings.create_profiles)
    labelling = Labelling(settings, cache=cache, endpoints=endpoints, identities=Identities(daemon, table))
    sandboxes = Sandboxes(settings.run_directory / SANDBOXES_FILE, exists=exists)
    departures = Departures()
    return EndpointParts(
        endpoints=endpoints,
        networks=networks,
        labelling=labelling,
        in_flight=InFlight(),
        departures=departures,
        returns=Returns(node=settings.node, ipam=ipam, endpoints=endpoints, file=settings.run_directory / RETURNS_FILE),
        removals=Removals(veths),
        sandboxes=sandboxes,
        siblings=Siblings(
            cache,
            endpoints,
            networks,
            sandboxes,
            departures,
            node=settings.node,
            interface_exists=interface_exists,
        ),
        writer=EndpointWriter(cache, networks, labelling, node=settings.node),
        publishing=Publishing(
            cache,
            endpoints,
            sandboxes,
            node=settings.node,
            is_here=is_here,
            possible=lambda: status.publishes_ports,
            hold=hold,
        ),
    )


def _ipam_driver(
    settings: DockerSettings,
    parts: EndpointParts,
    cache: Cache,
    *,
    ipam: Ipam,
    forget: Callable[[Endpoint], Awaitable[None]],
    interface_exists: Callable[[str], bool],
) -> IpamDriver:
    return IpamDriver(
        node=settings.node,
        cache=cache,
        ipam=ipam,
        networks=parts.networks,
        endpoints=parts.endpoints,
        in_flight=parts.in_flight,
        departures=parts.departures,
        returns=parts.returns,
        forget=forget,
        interface_exists=interface_exists,
    )


def _recording(
    settings: DockerSettings,
    parts: EndpointParts,
    *,
    ipam: Ipam,
    forget: Callable[[Endpoint], Awaitable[None]],
    interface_exists: Callable[[str], bool],
) -> Recording:
    return Recording(
        node=settings.node,
        ipam=ipam,
        endpoints=parts.endpoints,
        networks=parts.networks,
        labelling=parts.labelling,
        writer=parts.writer,
        in_flight=parts.in_flight,
        departures=parts.departures,
        siblings=parts.siblings,
        publishing=parts.publishing,
        forget=forget,
        interface_exists=interface_exists,
    )


@dataclass(frozen=True, slots=True)
class _Listener:
    """What the daemon's state changes in the datastore."""

    networks: Networks
    labelling: Labelling
    siblings: Siblings
    reconciler: Reconciler

    def known_networks(self) -> set[str]:
        return self.networks.own()

    async def networks_gone(self, network_ids: set[str]) -> None:
        await self.networks.forget(network_ids)

    async def container_connected(self, network_id: str, container_id: str) -> None:
        await self.labelling.container_connected(network_id, container_id)
        await self.siblings.settle_container(container_id)

    async def container_renamed(self) -> None:
        await self.labelling.follow_names()

    async def daemon_listed(self) -> None:
        await self.labelling.daemon_listed()
        await self.labelling.follow_names()
        self.reconciler.hurry()
