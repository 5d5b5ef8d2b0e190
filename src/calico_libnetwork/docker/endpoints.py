"""Workload endpoints as Docker's side needs them: how one is written, and who holds an address, by index.

The index follows the cache, so that a lookup costs the same among ten endpoints as among ten thousand.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from ipaddress import ip_interface
from typing import TypeVar

from calico_libnetwork.datastore.cache import Cache
from calico_libnetwork.datastore.protocol import Event, KeyValue
from calico_libnetwork.docker.labels import CONTAINER_NAME, Facts
from calico_libnetwork.docker.profiles import ANNOTATION_PREFIX, NETWORK_ID
from calico_libnetwork.docker.published_ports import HostPort, read_ports, write_ports
from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model import documents, kinds
from calico_libnetwork.model.documents import Document
from calico_libnetwork.model.ipam_keys import Address
from calico_libnetwork.model.kinds import KINDS, ResourceKey
from calico_libnetwork.model.names import endpoint_interface, workload_endpoint_name
from calico_libnetwork.model.resources import CONTAINER_ID, LIBNETWORK_NAMESPACE, ORCHESTRATOR, WorkloadEndpoint

HELD_ADDRESSES = ANNOTATION_PREFIX + "held-addresses"
ALIASES = ANNOTATION_PREFIX + "aliases"
SIBLING_PROFILES = ANNOTATION_PREFIX + "sibling-profiles"

_LABELS = {
    "projectcalico.org/namespace": LIBNETWORK_NAMESPACE,
    "projectcalico.org/orchestrator": ORCHESTRATOR,
}
_PREFIX = KINDS["WorkloadEndpoint"].prefix
SHORT_ID = 12

_Key = TypeVar("_Key")


def endpoint_key(node: str, endpoint_id: str) -> ResourceKey:
    return ResourceKey("WorkloadEndpoint", workload_endpoint_name(node, endpoint_id), LIBNETWORK_NAMESPACE)


def chosen_mac(endpoint_id: str) -> str:
    """A locally administered unicast address, the same whenever Docker repeats the call."""
    octets = bytearray(hashlib.sha256(endpoint_id.encode()).digest()[:6])
    octets[0] = octets[0] & 0xFC | 0x02
    return octets.hex(":")


@dataclass(frozen=True, slots=True, kw_only=True)
class NewEndpoint:
    """An endpoint to be written; ``labels`` are the container's, already checked.

    One that is ``held`` keeps its addresses in an annotation until it is opened. Calico takes an endpoint without
    addresses for none, and so its interface stays closed.
    """

    node: str
    endpoint_id: str
    addresses: tuple[Address, ...]
    profiles: tuple[str, ...]
    mac: str
    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    held: bool = False
    ports: tuple[HostPort, ...] = ()

    @property
    def key(self) -> ResourceKey:
        return endpoint_key(self.node, self.endpoint_id)

    def document(self, *, uid: str, created: str) -> Document:
        spec: Document = {
            "orchestrator": ORCHESTRATOR,
            "workload": "libnetwork",
            "node": self.node,
            "endpoint": self.endpoint_id,
        }
        networks = [f"{address}/{address.max_prefixlen}" for address in self.addresses]
        annotations = dict(self.annotations)
        if self.held:
            annotations[HELD_ADDRESSES] = ",".join(networks)
        else:
            spec["ipNetworks"] = networks
        if self.profiles:
            spec["profiles"] = list(self.profiles)
        spec |= {"interfaceName": endpoint_interface(self.endpoint_id), "mac": self.mac}
        if self.ports:
            spec["ports"] = write_ports(self.ports)
        return documents.new_document(
            "WorkloadEndpoint",
            self.key.name,
            spec,
            uid=uid,
            created=created,
            namespace=LIBNETWORK_NAMESPACE,
            labels=dict(sorted({**self.labels, **_LABELS}.items())),
            annotations=dict(sorted(annotations.items())),
        )


def identified(document: Document, facts: Facts, *, opened: bool) -> Document:
    """A stored endpoint with what is now known of its container, and open if it was held and is to be ``opened``.

    Labels that somebody else has put there stay; so does everything that is not ours.
    """
    metadata: Document = dict(document["metadata"])
    labels = {**(metadata.get("labels") or {}), **facts.labels}
    annotations = {**(metadata.get("annotations") or {}), **facts.annotations}
    spec: Document = dict(document["spec"])
    if opened and HELD_ADDRESSES in annotations:
        networks = annotations.pop(HELD_ADDRESSES).split(",")
        spec = _inserted(spec, "ipNetworks", networks, before=("profiles", "interfaceName"))
    metadata["labels"] = dict(sorted(labels.items()))
    metadata["annotations"] = dict(sorted(annotations.items()))
    return document | {"metadata": metadata, "spec": spec}


def with_profiles(document: Document, profiles: Sequence[str], *, of_siblings: Sequence[str]) -> Document:
    """A stored endpoint with these profiles; ``of_siblings`` are those among them to be taken away again some day."""
    metadata: Document = dict(document["metadata"])
    annotations = {**(metadata.get("annotations") or {}), SIBLING_PROFILES: ",".join(of_siblings)}
    if not of_siblings:
        del annotations[SIBLING_PROFILES]
    metadata["annotations"] = dict(sorted(annotations.items()))
    return document | {"metadata": metadata, "spec": document["spec"] | {"profiles": list(profiles)}}


def with_ports(document: Document, ports: Sequence[HostPort]) -> Document:
    """A stored endpoint that publishes these; what else its ``ports`` name stays."""
    spec: Document = dict(document["spec"])
    others = [port for port in spec.pop("ports", None) or () if not port.get("hostPort")]
    if others or ports:
        spec = _inserted(
            spec, "ports", others + write_ports(ports), before=("allowSpoofedSourcePrefixes", "qosControls")
        )
    return document | {"spec": spec}


def _inserted(spec: Document, key: str, value: object, *, before: tuple[str, ...]) -> Document:
    """``key`` where Calico's own tools would write it."""
    head = itertools.takewhile(lambda item: item[0] not in before, spec.items())
    placed = {**dict(head), key: value}
    return placed | {name: field for name, field in spec.items() if name not in placed}


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A stored workload endpoint, of any node and orchestrator; ``addresses`` also while it is ``held``.

    ``sibling_profiles``: those of ``profiles`` that it has for its container's other networks. ``aliases``: how Docker
    finds the container in the network beside its name and short id. ``created`` is RFC 3339, "" where the writer left
    it out. ``ports``: those of its host that lead to it.
    """

    key: ResourceKey
    node: str
    endpoint_id: str
    interface: str
    mac: str
    addresses: frozenset[Address]
    profiles: tuple[str, ...]
    sibling_profiles: tuple[str, ...]
    network_id: str
    container_id: str
    container_name: str
    aliases: frozenset[str]
    created: str
    held: bool
    ports: tuple[HostPort, ...] = ()

    @property
    def short_id(self) -> str:
        """Of the container, as Docker shows it."""
        return self.container_id[:SHORT_ID]

    @property
    def owner(self) -> str:
        """For messages: whose it is and where."""
        name = f"container {self.container_name}" if self.container_name else f"endpoint {self.endpoint_id[:12]}"
        return f"{name} on node {self.node}"


class EndpointIndex:
    """All workload endpoints of the cluster by key and by address, and Docker's on this node by interface."""

    def __init__(self, cache: Cache, *, node: str) -> None:
        self._node = node
        self._by_path: dict[str, Endpoint] = {}
        self._own: dict[str, Endpoint] = {}
        self._by_address: dict[Address, set[str]] = {}
        self._by_interface: dict[str, str] = {}
        self._by_container: dict[str, set[str]] = {}
        cache.subscribe(self._on_events)
        for key_value in cache.under(_PREFIX):
            self._put(key_value)

    def get(self, key: ResourceKey) -> Endpoint | None:
        return self._by_path.get(key.path)

    def holders(self, address: Address) -> list[Endpoint]:
        return [self._by_path[path] for path in self._by_address.get(address, ())]

    def of_interface(self, name: str) -> Endpoint | None:
        """The endpoint of this node with that host side interface."""
        path = self._by_interface.get(name)
        return self._by_path[path] if path is not None else None

    def of_container(self, container_id: str) -> list[Endpoint]:
        """Docker's on this node, as far as it is known whose they are."""
        return [self._by_path[path] for path in sorted(self._by_container.get(container_id, ()))]

    def all(self) -> list[Endpoint]:
        """As they are now."""
        return [*self._by_path.values()]

    def of_network(self, network_id: str) -> Iterator[Endpoint]:
        return (endpoint for endpoint in self._by_path.values() if endpoint.network_id == network_id)

    def is_own(self, endpoint: Endpoint) -> bool:
        """Whether Docker on this node has, or had, this endpoint: not one of Kubernetes or another orchestrator."""
        return endpoint.key.path in self._own

    def of_node(self) -> Iterator[Endpoint]:
        """Docker's, as they are now; the index may change while they are gone through."""
        return iter([*self._own.values()])

    def uses_profile(self, profile: str) -> bool:
        return any(profile in endpoint.profiles for endpoint in self._by_path.values())

    def _on_events(self, events: Sequence[Event]) -> None:
        for event in events:
            if event.key.startswith(_PREFIX):
                self._remove(event.key)
                if event.current is not None:
                    self._put(event.current)

    def _put(self, key_value: KeyValue) -> None:
        endpoint = _read(key_value)
        if endpoint is None:
            return
        path = key_value.key
        self._by_path[path] = endpoint
        for address in endpoint.addresses:
            self._by_address.setdefault(address, set()).add(path)
        if endpoint.key == endpoint_key(self._node, endpoint.endpoint_id):
            self._own[path] = endpoint
            self._by_interface[endpoint.interface] = path
            if endpoint.container_id:
                self._by_container.setdefault(endpoint.container_id, set()).add(path)

    def _remove(self, path: str) -> None:
        endpoint = self._by_path.pop(path, None)
        if endpoint is None:
            return
        if self._own.pop(path, None) is not None and endpoint.container_id:
            _discard(self._by_container, endpoint.container_id, path)
        for address in endpoint.addresses:
            _discard(self._by_address, address, path)
        if self._by_interface.get(endpoint.interface) == path:
            del self._by_interface[endpoint.interface]


def _discard(index: dict[_Key, set[str]], key: _Key, path: str) -> None:
    index[key].discard(path)
    if not index[key]:
        del index[key]


def _read(key_value: KeyValue) -> Endpoint | None:
    """None for what is no readable endpoint: it then holds no address that we could know of."""
    key = kinds.parse_path(key_value.key)
    if key is None:
        return None
    try:
        resource: WorkloadEndpoint = kinds.decode(key, key_value.value)
        held = resource.annotations.get(HELD_ADDRESSES, "")
        networks = resource.spec.ip_networks or tuple(filter(None, held.split(",")))
        addresses = frozenset(ip_interface(network).ip for network in networks)
    except (InvalidResource, ValueError):
        return None
    spec = resource.spec
    return Endpoint(
        key=key,
        node=spec.node,
        endpoint_id=spec.endpoint,
        interface=spec.interface_name,
        mac=spec.mac,
        addresses=addresses,
        profiles=spec.profiles or (),
        sibling_profiles=tuple(filter(None, resource.annotations.get(SIBLING_PROFILES, "").split(","))),
        network_id=resource.annotations.get(NETWORK_ID, ""),
        container_id=resource.annotations.get(CONTAINER_ID, ""),
        container_name=resource.annotations.get(CONTAINER_NAME, ""),
        aliases=frozenset(filter(None, resource.annotations.get(ALIASES, "").split(","))),
        created=resource.metadata.creation_timestamp or "",
        held=bool(held) and not spec.ip_networks,
        ports=read_ports(spec.ports) if spec.ports else (),
    )
