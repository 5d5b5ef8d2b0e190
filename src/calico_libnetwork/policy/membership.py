"""Which addresses a selector stands for, and whose an address is: asked of the resources, one address at a time."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from ipaddress import ip_address

from calico_libnetwork.errors import Unreadable
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import AnyResource, EndpointPort
from calico_libnetwork.model.selector import Selector
from calico_libnetwork.policy.entity import Network, parse_network
from calico_libnetwork.policy.flow import Address
from calico_libnetwork.policy.identities import (
    Identities,
    Identity,
    host_identity,
    network_set_identity,
    workload_identity,
)
from calico_libnetwork.policy.resolver import CompiledProfile
from calico_libnetwork.policy.rule import PROTOCOLS

_SET_KINDS = ("GlobalNetworkSet", "NetworkSet")


class Membership:
    """``hosts``: by node, addresses of the host besides those in its Node."""

    def __init__(
        self,
        content: Mapping[ResourceKey, AnyResource | Unreadable],
        profiles: Mapping[str, CompiledProfile],
        hosts: Mapping[str, Collection[Address]],
    ) -> None:
        self._identities = Identities(profiles)
        self._by_address: dict[Address, list[ResourceKey]] = {}
        self._networks: list[tuple[Network, ResourceKey]] = []
        self._ports: dict[ResourceKey, tuple[EndpointPort, ...]] = {}
        self._workloads: dict[ResourceKey, Identity] = {}
        self._nodes: dict[ResourceKey, str] = {}
        self._node_addresses = {node: set(addresses) for node, addresses in hosts.items()}
        for key, resource in sorted(content.items(), key=lambda item: item[0]):
            if not isinstance(resource, Unreadable):
                self._add(key, resource)

    def workload(self, address: Address) -> ResourceKey | None:
        """The workload endpoint that has the address; the first by name where several claim it."""
        return next((key for key in self._by_address.get(address, ()) if key in self._workloads), None)

    def labels(self, key: ResourceKey) -> Mapping[str, str]:
        return self._identities.labels(key)

    def profiles_of(self, endpoint: ResourceKey) -> tuple[str, ...]:
        return self._workloads[endpoint].profiles

    def node_of(self, endpoint: ResourceKey) -> str:
        return self._nodes[endpoint]

    def node_addresses(self, node: str) -> set[Address]:
        return self._node_addresses.get(node, set())

    def selected(self, selector: Selector, address: Address) -> bool:
        return any(selector.matches(self.labels(owner)) for owner in self.owners(address))

    def owners(self, address: Address) -> list[ResourceKey]:
        """Endpoints with the address and network sets around it."""
        around = [key for network, key in self._networks if address in network]
        return [*self._by_address.get(address, ()), *around]

    def has_port(self, name: str, selector: Selector | None, address: Address, *, protocol: int, port: int) -> bool:
        """Whether an endpoint with the address, of those selected, knows this protocol and port by the name."""
        return any(
            (defined.name, _protocol(defined), defined.port) == (name, protocol, port)
            for key in self._by_address.get(address, ())
            if selector is None or selector.matches(self.labels(key))
            for defined in self._ports.get(key, ())
        )

    def _add(self, key: ResourceKey, resource: AnyResource) -> None:
        spec = resource.spec
        if key.kind == "WorkloadEndpoint":
            addresses = _addresses(spec.ip_networks)
            if addresses:
                self._nodes[key] = spec.node
                self._workloads[key] = workload_identity(key, resource)
                self._own(key, self._workloads[key], addresses, spec.ports)
        elif key.kind == "HostEndpoint":
            self._own(key, host_identity(resource), _addresses(spec.expected_ips), spec.ports)
        elif key.kind in _SET_KINDS:
            self._identities.put(key, network_set_identity(key, resource))
            self._networks += [(network, key) for network in _networks(spec.nets)]
        elif key.kind == "Node":
            bgp = spec.bgp
            texts = [bgp.ipv4_address, bgp.ipv6_address] if bgp else []
            texts += [address.address for address in spec.addresses or ()]
            self._node_addresses.setdefault(key.name, set()).update(_addresses(tuple(filter(None, texts))))

    def _own(
        self, key: ResourceKey, identity: Identity, addresses: list[Address], ports: tuple[EndpointPort, ...] | None
    ) -> None:
        self._identities.put(key, identity)
        self._ports[key] = ports or ()
        for address in addresses:
            self._by_address.setdefault(address, []).append(key)


def _addresses(texts: tuple[str, ...] | None) -> list[Address]:
    found = []
    for text in texts or ():
        try:
            found.append(ip_address(text.partition("/")[0]))
        except ValueError:
            continue
    return found


def _networks(texts: tuple[str, ...] | None) -> list[Network]:
    found = []
    for text in texts or ():
        try:
            found.append(parse_network(text))
        except ValueError:
            continue
    return found


def _protocol(port: EndpointPort) -> int:
    text = str(port.protocol).lower()
    return PROTOCOLS.get(text, int(text) if text.isascii() and text.isdigit() else 0)
