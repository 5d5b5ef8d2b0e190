"""The table of kinds: where each is stored and how its value is read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import msgspec

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model import resources
from calico_libnetwork.model.documents import UNDECODABLE
from calico_libnetwork.model.resources import AnyResource, Resource

RESOURCE_PREFIX = "/calico/resources/v3/projectcalico.org/"


@dataclass(frozen=True, slots=True)
class Kind:
    """``plural`` is the key's segment; a namespaced kind has the namespace as a further segment."""

    name: str
    plural: str
    namespaced: bool
    decoder: msgspec.json.Decoder[Any]

    @property
    def prefix(self) -> str:
        return f"{RESOURCE_PREFIX}{self.plural}/"


def _kind(name: str, view: Any, *, plural: str | None = None, namespaced: bool = False) -> Kind:
    return Kind(name, plural or f"{name.lower()}s", namespaced, msgspec.json.Decoder(view))


_ANY = Resource[Any]

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _kind("IPPool", resources.IPPool),
        _kind("IPReservation", resources.IPReservation),
        _kind("Profile", resources.Profile),
        _kind("WorkloadEndpoint", resources.WorkloadEndpoint, namespaced=True),
        _kind("NetworkPolicy", resources.Policy, plural="networkpolicies", namespaced=True),
        _kind("NetworkSet", resources.NetworkSet, namespaced=True),
        _kind("StagedNetworkPolicy", _ANY, plural="stagednetworkpolicies", namespaced=True),
        _kind("StagedKubernetesNetworkPolicy", _ANY, plural="stagedkubernetesnetworkpolicies", namespaced=True),
        _kind("GlobalNetworkPolicy", resources.Policy, plural="globalnetworkpolicies"),
        _kind("StagedGlobalNetworkPolicy", _ANY, plural="stagedglobalnetworkpolicies"),
        _kind("GlobalNetworkSet", resources.NetworkSet),
        _kind("HostEndpoint", resources.HostEndpoint),
        _kind("Tier", resources.Tier),
        _kind("Node", resources.Node),
        _kind("ClusterInformation", resources.ClusterInformation),
        _kind("FelixConfiguration", resources.FelixConfiguration),
        _kind("BGPConfiguration", resources.BGPConfiguration),
        _kind("BGPPeer", resources.BGPPeer),
        _kind("BGPFilter", resources.BGPFilter),
        _kind("IPAMConfiguration", _ANY),
        _kind("KubeControllersConfiguration", _ANY),
        _kind("CalicoNodeStatus", _ANY, plural="caliconodestatuses"),
    )
}
_BY_PLURAL = {kind.plural: kind for kind in KINDS.values()}
# What users call a kind besides its name and its plural
_ALIASES = {
    "BGPConfiguration": "bgpconfig bgpconfigs",
    "BGPPeer": "bgpp bgpps bp bps",
    "CalicoNodeStatus": "caliconodestat caliconodestats",
    "ClusterInformation": "clusterinfo clusterinfos",
    "FelixConfiguration": "felixconfig felixconfigs",
    "GlobalNetworkPolicy": "gnp gnps",
    "GlobalNetworkSet": "gns globalnetset globalnetsets",
    "HostEndpoint": "hep heps",
    "IPAMConfiguration": "ipamconfig ipamconfigs",
    "IPPool": "ipp ipps pool pools",
    "IPReservation": "ipr iprs",
    "KubeControllersConfiguration": "kubecontrollersconfig kubecontrollersconfigs",
    "NetworkPolicy": "np nps policy policies pol",
    "NetworkSet": "netset netsets",
    "Node": "no nos",
    "Profile": "pro pros",
    "StagedGlobalNetworkPolicy": "sgnp sgnps",
    "StagedKubernetesNetworkPolicy": "sknp sknps",
    "StagedNetworkPolicy": "snp snps",
    "WorkloadEndpoint": "wep weps",
}
_BY_WORD = {
    word: kind
    for kind in KINDS.values()
    for word in (kind.name.lower(), kind.plural, *_ALIASES.get(kind.name, "").split())
}


def find_kind(word: str) -> Kind:
    """By name, plural or alias, in any case. Raises ``InvalidResource``."""
    try:
        return _BY_WORD[word.lower()]
    except KeyError:
        raise InvalidResource(f"{word} is no kind of resource; there are {', '.join(sorted(KINDS))}") from None


class ResourceKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """Identity of a resource; ``namespace`` is "" for a global kind."""

    kind: str
    name: str
    namespace: str = ""

    def __str__(self) -> str:
        """``Profile(net1)``, ``NetworkPolicy(libnetwork/allow-web)``, as messages name it."""
        return f"{self.kind}({self.namespace}/{self.name})" if self.namespace else f"{self.kind}({self.name})"

    @property
    def path(self) -> str:
        """The datastore key; names go in verbatim."""
        prefix = KINDS[self.kind].prefix
        return f"{prefix}{self.namespace}/{self.name}" if self.namespace else f"{prefix}{self.name}"


def parse_path(path: str) -> ResourceKey | None:
    """The inverse of ``ResourceKey.path``; None for a key that is no resource of a known kind."""
    if not path.startswith(RESOURCE_PREFIX):
        return None
    plural, _, rest = path.removeprefix(RESOURCE_PREFIX).partition("/")
    kind = _BY_PLURAL.get(plural)
    if kind is None:
        return None
    namespace, name = "", rest
    if kind.namespaced:
        namespace, _, name = rest.partition("/")
        if not namespace:
            return None
    if not name or "/" in name:
        return None
    return ResourceKey(kind.name, name, namespace)


def decode(key: ResourceKey, value: bytes) -> AnyResource:
    """The typed view of a stored value. Raises ``InvalidResource`` naming the object and the field."""
    try:
        resource: AnyResource = KINDS[key.kind].decoder.decode(value)
    except UNDECODABLE as error:
        raise InvalidResource(f"{key} is not readable: {error}") from error
    return resource
