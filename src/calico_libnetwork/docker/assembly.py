"""Builds the two drivers from their parts; called once, when the datastore's cache is there."""

from __future__ import annotations

from collections.abc import Callable

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.docker.endpoints import Endpoint, EndpointIndex, endpoint_key
from calico_libnetwork.docker.in_flight import InFlight
from calico_libnetwork.docker.ipam_driver import IpamDriver, interface_exists
from calico_libnetwork.docker.network_driver import EndpointStatus, NetworkDriver, Veths
from calico_libnetwork.docker.networks import NetworkNames, Networks
from calico_libnetwork.docker.plugin import Drivers
from calico_libnetwork.docker.sandboxes import Sandboxes
from calico_libnetwork.docker.settings import DockerSettings
from calico_libnetwork.ipam import Ipam

SANDBOXES_FILE = "sandboxes.json"


def build_drivers(
    settings: DockerSettings,
    *,
    cache: Cache,
    ipam: Ipam,
    veths: Veths,
    status: EndpointStatus,
    names: NetworkNames,
    interface_exists: Callable[[str], bool] = interface_exists,
) -> Drivers:
    endpoints = EndpointIndex(cache, node=settings.node)
    networks = Networks(cache, endpoints, names, node=settings.node, create_profiles=settings.create_profiles)
    in_flight = InFlight()

    def exists(endpoint_id: str) -> bool:
        return endpoints.get(endpoint_key(settings.node, endpoint_id)) is not None

    network = NetworkDriver(
        settings,
        cache=cache,
        networks=networks,
        endpoints=endpoints,
        veths=veths,
        status=status,
        in_flight=in_flight,
        sandboxes=Sandboxes(settings.run_directory / SANDBOXES_FILE, exists=exists),
    )

    async def forget(endpoint: Endpoint) -> None:
        await network.forget_endpoint(endpoint.key)
        await veths.schedule_delete(endpoint.interface)

    ipam_driver = IpamDriver(
        node=settings.node,
        cache=cache,
        ipam=ipam,
        networks=networks,
        endpoints=endpoints,
        in_flight=in_flight,
        forget=forget,
        interface_exists=interface_exists,
    )
    return Drivers(network, ipam_driver)
