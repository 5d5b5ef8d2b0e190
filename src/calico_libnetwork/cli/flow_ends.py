"""Who a word of the command line stands for: an address, a container, an endpoint or a node. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_interface

from calico_libnetwork.docker.endpoints import HELD_ADDRESSES
from calico_libnetwork.docker.labels import CONTAINER_NAME
from calico_libnetwork.docker.profiles import NETWORK_ID, NETWORK_NAME
from calico_libnetwork.errors import NotFound, Unreadable
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import CONTAINER_ID, AnyResource, WorkloadEndpoint
from calico_libnetwork.policy.flow import Address

Content = Mapping[ResourceKey, AnyResource | Unreadable]

_ID_PREFIX = re.compile(r"[0-9a-f]{4,64}")


@dataclass(frozen=True, slots=True)
class End:
    """One end of a flow: what it is called, and its address per family."""

    name: str
    addresses: Mapping[int, Address]


@dataclass(frozen=True, slots=True)
class _Known:
    """A workload endpoint under all its names."""

    key: ResourceKey
    container: str
    container_id: str
    network: str
    network_id: str
    node: str
    endpoint_id: str
    interface: str
    addresses: tuple[Address, ...]
    held: bool

    @property
    def shown(self) -> str:
        return f"{self.network or self.network_id[:12]}/{self.container or self.endpoint_id[:12]} on node {self.node}"


def find_end(word: str, content: Content) -> End:
    """Raises ``NotFound`` if the word stands for nothing, for several, or for what has no address yet."""
    try:
        address = ip_address(word)
    except ValueError:
        return _named(word, content)
    return End(word, {address.version: address})


def _named(word: str, content: Content) -> End:
    found = _endpoints_called(word, [*_known(content)])
    if len(found) > 1:
        listed = ", ".join(sorted(each.shown for each in found))
        raise NotFound(f"{word} may be {listed}: write NETWORK/CONTAINER, NODE/CONTAINER, or the address meant")
    if found:
        (endpoint,) = found
        if endpoint.held:
            raise NotFound(f"{word} is closed until the labels of its container are known: ask again in a moment")
        if not endpoint.addresses:
            raise NotFound(f"{word} is {endpoint.key}, which has no address")
        return End(word, {address.version: address for address in reversed(endpoint.addresses)})
    addresses = _node_addresses(content.get(ResourceKey("Node", word)))
    if not addresses:
        raise NotFound(
            f"nothing is called {word}: no container of a Calico network, no endpoint, no node, and it is no address;"
            " calico-libnetwork get workloadendpoints -A -o wide lists the endpoints"
        )
    return End(word, addresses)


def _endpoints_called(word: str, known: list[_Known]) -> list[_Known]:
    """By the first kind of name under which there are any."""
    qualifier, _, rest = word.rpartition("/")
    for matches in _ways(rest):
        found = [each for each in known if matches(each) and (not qualifier or _qualifies(qualifier, each))]
        if found:
            return found
    return []


def _ways(name: str) -> Iterator[Callable[[_Known], bool]]:
    yield lambda each: each.container == name
    yield lambda each: name in (each.key.name, each.endpoint_id, each.interface)
    if _ID_PREFIX.fullmatch(name):
        yield lambda each: each.container_id.startswith(name)
        yield lambda each: each.endpoint_id.startswith(name)


def _qualifies(qualifier: str, endpoint: _Known) -> bool:
    return qualifier in (endpoint.network, endpoint.network_id, endpoint.node, endpoint.key.namespace)


def _known(content: Content) -> Iterator[_Known]:
    for key, resource in content.items():
        if key.kind != "WorkloadEndpoint" or isinstance(resource, Unreadable):
            continue
        endpoint: WorkloadEndpoint = resource
        told, spec = endpoint.annotations, endpoint.spec
        yield _Known(
            key,
            container=told.get(CONTAINER_NAME, ""),
            container_id=told.get(CONTAINER_ID, ""),
            network=told.get(NETWORK_NAME, ""),
            network_id=told.get(NETWORK_ID, ""),
            node=spec.node,
            endpoint_id=spec.endpoint,
            interface=spec.interface_name,
            addresses=_addresses(spec.ip_networks or ()),
            held=HELD_ADDRESSES in told,
        )


def _node_addresses(node: AnyResource | Unreadable | None) -> dict[int, Address]:
    if node is None or isinstance(node, Unreadable) or node.spec.bgp is None:
        return {}
    texts = filter(None, (node.spec.bgp.ipv4_address, node.spec.bgp.ipv6_address))
    return {address.version: address for address in _addresses(texts)}


def _addresses(texts: Iterable[str]) -> tuple[Address, ...]:
    found = []
    for text in texts:
        try:
            found.append(ip_interface(text).ip)
        except ValueError:
            continue
    return tuple(found)
