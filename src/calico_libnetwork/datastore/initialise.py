"""The first start: whatever Calico needs in a datastore, made where it is missing.

What calico/node writes at its start with etcd: ClusterInformation (never with ``calicoVersion``, which calicoctl
compares with its own), three tiers, default pools where a family has none, the Felix, BGP and IPAM configurations,
and this host's Node. One reading, one pure plan, one transaction that holds only if nothing it rests on has changed;
so it is idempotent, and of two hosts that start together one writes and the other finds everything there. What exists
is kept: an address that a user set, a tier's order, ``datastoreReady: false`` (a locked datastore is not written to).
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_network

from calico_libnetwork.datastore.protocol import Datastore, Listing, Put, Transaction, absent, unchanged
from calico_libnetwork.errors import ConfigError, Conflict, InvalidResource, NotFound
from calico_libnetwork.model import defaults, documents, kinds
from calico_libnetwork.model.documents import Document, new_document
from calico_libnetwork.model.kinds import KINDS, ResourceKey

CLUSTER_TYPE = "docker"
DEFAULT_IPV4_POOL = IPv4Network("192.168.0.0/16")
IPV4_POOL_FALLBACKS = tuple(IPv4Network(f"172.{second}.0.0/16") for second in range(16, 32))

_READ = ("ClusterInformation", "Tier", "IPPool", "Node", "FelixConfiguration", "BGPConfiguration", "IPAMConfiguration")
_CLUSTER = ResourceKey("ClusterInformation", "default")
_TIERS: dict[str, Document] = {
    "default": {"order": 1000000, "defaultAction": "Deny"},
    "kube-admin": {"order": 1000, "defaultAction": "Pass"},
    "kube-baseline": {"order": 10000000, "defaultAction": "Pass"},
}
_ATTEMPTS = 10

Network = IPv4Network | IPv6Network


@dataclass(frozen=True, kw_only=True)
class FirstStart:
    """Of this host: its name, its Node resource, and what the user said about pools.

    ``node_document`` makes the Node out of the stored one, None where there is none; pure. Without it, the Node is
    somebody else's to make.
    ``host_networks`` are those the host has on its own interfaces, from which the default IPv4 pool keeps away.
    ``ipv6`` says whether the kernel has IPv6. A pool left at None is chosen: Calico's default, or a random ULA /48.
    """

    node: str
    node_document: Callable[[Document | None], Document] | None = None
    ipv4_pool: IPv4Network | None = None
    ipv6_pool: IPv6Network | None = None
    no_default_pools: bool = False
    ipv6: bool = True
    host_networks: Sequence[Network] = field(default=())


@dataclass(frozen=True)
class Started:
    """``ready`` is False for a locked datastore, where nothing was written; ``remark`` is a sentence for the log.

    ``written`` are the keys that were missing or not as they should be.
    """

    ready: bool
    remark: str = ""
    written: tuple[str, ...] = ()


async def ensure_cluster(datastore: Datastore) -> Started:
    """The part that every writer needs: ClusterInformation and the tiers. Raises as ``initialise``."""
    return await _settle(datastore, ("ClusterInformation", "Tier"), _cluster_plan)


async def initialise(datastore: Datastore, settings: FirstStart) -> Started:
    """Raises ``ConfigError`` for settings that contradict each other, ``Conflict``, ``DatastoreUnavailable``."""
    if settings.no_default_pools and (settings.ipv4_pool or settings.ipv6_pool):
        raise ConfigError("NO_DEFAULT_POOLS and CALICO_IPV4POOL_CIDR or CALICO_IPV6POOL_CIDR are both set; unset one")
    return await _settle(datastore, _READ, lambda found: _plan(found, settings))


async def set_ready(datastore: Datastore, *, ready: bool) -> None:
    """Locks or unlocks the datastore by ``datastoreReady``.

    Raises ``NotFound`` where nothing was initialised, ``InvalidResource`` where it cannot be read.
    """
    for _ in range(_ATTEMPTS):
        listing = await datastore.get([_CLUSTER.path])
        if not listing.items:
            raise NotFound(f"{_CLUSTER} does not exist: there is no cluster in {datastore.description} yet")
        (item,) = listing.items
        document = _readable(_CLUSTER, item.value)
        if not document:
            raise InvalidResource(f"{_CLUSTER} is not readable; apply a good version in its place")
        changed = document | {"spec": (document.get("spec") or {}) | {"datastoreReady": ready}}
        put = Put(item.key, documents.encode(changed))
        if (await datastore.commit(Transaction([unchanged(item)], [put]))).succeeded:
            return
    raise Conflict(f"{_CLUSTER} was changed by others {_ATTEMPTS} times in a row; try again")


async def _settle(
    datastore: Datastore,
    read: Sequence[str],
    plan: Callable[[_Found], Iterator[tuple[ResourceKey, Document]]],
) -> Started:
    for _ in range(_ATTEMPTS):
        found = _Found(await datastore.list([KINDS[kind].prefix for kind in read]))
        if found.spec(_CLUSTER).get("datastoreReady") is False:
            return Started(False, "the datastore is locked (datastoreReady is false in ClusterInformation(default))")
        wanted = [pair for pair in plan(found) if found.documents.get(pair[0]) != pair[1]]
        if not wanted or (await datastore.commit(_transaction(found, wanted))).succeeded:
            return Started(True, written=tuple(key.path for key, _ in wanted))
    raise Conflict(f"other hosts kept changing {datastore.description} during the first start; start again")


class _Found:
    """What the datastore holds; an unreadable value counts as present and is left to its owner."""

    def __init__(self, listing: Listing) -> None:
        self.items = {item.key: item for item in listing.items}
        self.documents: dict[ResourceKey, Document] = {}
        for path, item in self.items.items():
            key = kinds.parse_path(path)
            if key is not None:
                self.documents[key] = _readable(key, item.value)

    def spec(self, key: ResourceKey) -> Document:
        return self.documents.get(key, {}).get("spec") or {}

    def of_kind(self, kind: str) -> Iterator[tuple[ResourceKey, Document]]:
        return ((key, document) for key, document in self.documents.items() if key.kind == kind)


def _readable(key: ResourceKey, value: bytes) -> Document:
    try:
        if key.kind == "Node":
            kinds.decode(key, value)  # which goes into the details of it
        document = documents.decode(value)
        return document if isinstance(document.get("spec"), dict | None) else {}
    except InvalidResource:
        return {}


def _transaction(found: _Found, wanted: list[tuple[ResourceKey, Document]]) -> Transaction:
    paths = [key.path for key, _ in wanted]
    return Transaction(
        [unchanged(found.items[path]) if path in found.items else absent(path) for path in paths],
        [Put(key.path, documents.encode(document)) for key, document in wanted],
    )


def _cluster_plan(found: _Found) -> Iterator[tuple[ResourceKey, Document]]:
    yield _CLUSTER, _cluster_information(found.documents.get(_CLUSTER))
    for name, spec in _TIERS.items():
        yield _unless_present(found, ResourceKey("Tier", name), spec, status={})


def _plan(found: _Found, settings: FirstStart) -> Iterator[tuple[ResourceKey, Document]]:
    """Every object as it should be: those that exist as they are, but for what is said here."""
    yield from _cluster_plan(found)
    node = ResourceKey("Node", settings.node)
    stored = found.documents.get(node)
    if settings.node_document is not None:
        yield node, stored if stored == {} else settings.node_document(stored)
    if not settings.no_default_pools:
        for name, pool in _missing_pools(found, settings):
            yield _unless_present(found, ResourceKey("IPPool", name), _pool_spec(pool))
    for name, spec in (
        ("default", {"logSeverityScreen": "Info", "reportingInterval": "0s"}),
        (f"node.{settings.node}", {"defaultEndpointToHostAction": "Return"}),
    ):
        yield _unless_present(found, ResourceKey("FelixConfiguration", name), spec | _FELIX_DEFAULTS)
    yield _unless_present(found, ResourceKey("BGPConfiguration", "default"), _BGP_DEFAULTS)
    yield _unless_present(found, ResourceKey("IPAMConfiguration", "default"), _IPAM_DEFAULTS)


# Defaults of Calico's schemas, which its tools store with every new object
_FELIX_DEFAULTS: Document = {  # but those that a Felix before 3.32 does not know, and warns of
    name: value for name, value in defaults.FELIX.items() if not name.startswith("nftables")
}
_BGP_DEFAULTS: Document = {"logSeverityScreen": "Info", "serviceLoadBalancerAggregation": "Enabled"}
_IPAM_DEFAULTS: Document = {
    "strictAffinity": False,
    "autoAllocateBlocks": True,
    "kubeVirtVMAddressPersistence": "Enabled",
}


def _unless_present(
    found: _Found, key: ResourceKey, spec: Document, *, status: Document | None = None
) -> tuple[ResourceKey, Document]:
    return key, found.documents[key] if key in found.documents else _new(key, spec, status=status)


def _new(
    key: ResourceKey, spec: Document, *, status: Document | None = None, annotations: dict[str, str] | None = None
) -> Document:
    created = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    document = new_document(key.kind, key.name, spec, uid=str(uuid.uuid4()), created=created, annotations=annotations)
    return document if status is None else document | {"status": status}


_CLUSTER_FIELDS = ("clusterGUID", "clusterType", "calicoVersion", "datastoreReady")


def _cluster_information(stored: Document | None) -> Document:
    if stored is None:
        return _new(_CLUSTER, {"clusterGUID": uuid.uuid4().hex, "clusterType": CLUSTER_TYPE, "datastoreReady": True})
    if not stored:
        return stored
    spec: Document = dict(stored.get("spec") or {})
    words = [word for word in str(spec.get("clusterType") or "").split(",") if word]
    if CLUSTER_TYPE not in words:
        spec["clusterType"] = ",".join([*words, CLUSTER_TYPE])
    if not spec.get("clusterGUID"):
        spec["clusterGUID"] = uuid.uuid4().hex
    if spec.get("datastoreReady") is None:
        spec["datastoreReady"] = True
    in_order = {name: spec[name] for name in _CLUSTER_FIELDS if name in spec}
    return stored | {"spec": in_order | spec}


def _missing_pools(found: _Found, settings: FirstStart) -> Iterator[tuple[str, Network]]:
    present = {network.version for network in _pools(found)}
    if 4 not in present:
        yield "default-ipv4-ippool", settings.ipv4_pool or _free_ipv4_pool(settings.host_networks)
    if 6 not in present and settings.ipv6:
        yield "default-ipv6-ippool", settings.ipv6_pool or _random_ula()


def _pools(found: _Found) -> Iterator[Network]:
    for _, document in found.of_kind("IPPool"):
        try:
            yield ip_network(str((document.get("spec") or {}).get("cidr")))
        except ValueError:
            continue


def _free_ipv4_pool(host_networks: Sequence[Network]) -> IPv4Network:
    taken = [network for network in host_networks if isinstance(network, IPv4Network) and network.prefixlen]
    for pool in (DEFAULT_IPV4_POOL, *IPV4_POOL_FALLBACKS):
        if not any(pool.overlaps(network) for network in taken):
            return pool
    return DEFAULT_IPV4_POOL


def _random_ula() -> IPv6Network:
    """fd00::/8 and 40 random bits, as RFC 4193 has it."""
    return IPv6Network(((0xFD << 120) | (uuid.uuid4().int >> 88 << 80), 48))


def _pool_spec(pool: Network) -> Document:
    spec: Document = {"cidr": str(pool), "vxlanMode": "Never", "ipipMode": "Never"}
    if pool.version == 4:
        spec["natOutgoing"] = True
    return spec | {
        "blockSize": 26 if pool.version == 4 else 122,
        "nodeSelector": "all()",
        "allowedUses": ["Workload", "Tunnel"],
        "assignmentMode": "Automatic",
    }
