"""Calico's v3 resources as typed, frozen views.

A view is for reading: it knows the fields this project uses and ignores the rest. What is stored is never made from
a view alone; ``documents`` changes the stored JSON tree and so keeps every field that others wrote. Containers may
be null in stored data (Go writes null for an empty slice), hence the ``| None``; read them as ``x or ()``.

Source of the fields and defaults: Calico's v3 API as of August 2026.
"""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import msgspec
from msgspec import field

API_VERSION = "projectcalico.org/v3"
LIBNETWORK_NAMESPACE = "libnetwork"
ORCHESTRATOR = "libnetwork"
CONTAINER_ID = "org.projectcalico.libnetwork/container-id"
"""The annotation that tells which endpoints are one container's."""
DEFAULT_ALLOW_PROFILE = "projectcalico-default-allow"

Labels = dict[str, str]
Port = int | str


class View(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True, kw_only=True):
    """Base of all views: camelCase on the wire, absent where default."""


class Metadata(View, frozen=True):
    name: str
    namespace: str = ""
    uid: str = ""
    creation_timestamp: str | None = None
    deletion_timestamp: str | None = None
    labels: Labels | None = None
    annotations: dict[str, str] | None = None


S = TypeVar("S")


class Resource(View, Generic[S], frozen=True):
    """The envelope; ``S`` is the kind's spec."""

    kind: str
    api_version: str
    metadata: Metadata
    spec: S

    @property
    def name(self) -> str:
        return self.metadata.name

    @property
    def labels(self) -> Labels:
        return self.metadata.labels or {}

    @property
    def annotations(self) -> dict[str, str]:
        return self.metadata.annotations or {}


class IPPoolSpec(View, frozen=True):
    cidr: str
    vxlan_mode: str = "Never"
    ipip_mode: str = "Never"
    nat_outgoing: bool = False
    disabled: bool = False
    disable_bgp_export: bool = field(name="disableBGPExport", default=False)
    block_size: int = 0  # 0 in old data: 26 for IPv4, 122 for IPv6
    node_selector: str = ""  # "" in old data means all()
    namespace_selector: str = ""
    allowed_uses: tuple[str, ...] | None = None  # absent in old data: Workload and Tunnel
    assignment_mode: str = "Automatic"


class Condition(View, frozen=True):
    type: str = ""
    status: str = ""


class IPPoolStatus(View, frozen=True):
    conditions: tuple[Condition, ...] | None = None


class IPPool(Resource[IPPoolSpec], frozen=True):
    status: IPPoolStatus | None = None


class IPReservationSpec(View, frozen=True):
    reserved_cidrs: tuple[str, ...] | None = field(name="reservedCIDRs", default=None)


class NodeBGPSpec(View, frozen=True):
    as_number: int | str | None = None
    ipv4_address: str = ""
    ipv6_address: str = ""
    ipv4_ipip_tunnel_addr: str = field(name="ipv4IPIPTunnelAddr", default="")
    route_reflector_cluster_id: str = field(name="routeReflectorClusterID", default="")


class NodeAddress(View, frozen=True):
    address: str = ""
    type: str = ""


class NodeSpec(View, frozen=True):
    bgp: NodeBGPSpec | None = None
    ipv4_vxlan_tunnel_addr: str = field(name="ipv4VXLANTunnelAddr", default="")
    vxlan_tunnel_mac_addr: str = field(name="vxlanTunnelMACAddr", default="")
    ipv6_vxlan_tunnel_addr: str = field(name="ipv6VXLANTunnelAddr", default="")
    vxlan_tunnel_mac_addr_v6: str = field(name="vxlanTunnelMACAddrV6", default="")
    addresses: tuple[NodeAddress, ...] | None = None


class EndpointPort(View, frozen=True):
    name: str = ""
    protocol: int | str = ""
    port: int = 0
    host_port: int = 0
    host_ip: str = field(name="hostIP", default="")


class WorkloadEndpointSpec(View, frozen=True):
    orchestrator: str = ""
    workload: str = ""
    node: str = ""
    container_id: str = field(name="containerID", default="")
    pod: str = ""
    endpoint: str = ""
    service_account_name: str = ""
    ip_networks: tuple[str, ...] | None = None
    ipv4_gateway: str = ""
    ipv6_gateway: str = ""
    profiles: tuple[str, ...] | None = None
    interface_name: str = ""
    mac: str = ""
    ports: tuple[EndpointPort, ...] | None = None
    allow_spoofed_source_prefixes: tuple[str, ...] | None = None


class HostEndpointSpec(View, frozen=True):
    node: str = ""
    interface_name: str = ""
    expected_ips: tuple[str, ...] | None = field(name="expectedIPs", default=None)
    profiles: tuple[str, ...] | None = None
    ports: tuple[EndpointPort, ...] | None = None


class ICMPFields(View, frozen=True, forbid_unknown_fields=True):
    type: int | None = None
    code: int | None = None


class EntityRule(View, frozen=True, forbid_unknown_fields=True):
    """A match nobody here knows makes the whole resource unreadable: passing over it would let more through."""

    nets: tuple[str, ...] | None = None
    selector: str = ""
    namespace_selector: str = ""
    services: dict[str, Any] | None = None
    ports: tuple[Port, ...] | None = None
    not_nets: tuple[str, ...] | None = None
    not_selector: str = ""
    not_ports: tuple[Port, ...] | None = None
    service_accounts: dict[str, Any] | None = None


class Rule(View, frozen=True, forbid_unknown_fields=True):
    """Unknown fields are not passed over, as in ``EntityRule``."""

    action: str
    ip_version: int | None = None
    protocol: int | str | None = None
    icmp: ICMPFields | None = None
    not_protocol: int | str | None = None
    not_icmp: ICMPFields | None = field(name="notICMP", default=None)
    source: EntityRule = EntityRule()
    destination: EntityRule = EntityRule()
    http: dict[str, Any] | None = None
    metadata: dict[str, Any] | None = None


class ProfileSpec(View, frozen=True):
    ingress: tuple[Rule, ...] | None = None
    egress: tuple[Rule, ...] | None = None
    labels_to_apply: Labels | None = None


class PolicySpec(View, frozen=True):
    """Of a GlobalNetworkPolicy and of a NetworkPolicy; the latter has no ``do_not_track`` and the like."""

    tier: str = ""
    order: float | None = None
    ingress: tuple[Rule, ...] | None = None
    egress: tuple[Rule, ...] | None = None
    selector: str = ""
    types: tuple[str, ...] | None = None
    do_not_track: bool = False
    pre_dnat: bool = field(name="preDNAT", default=False)
    apply_on_forward: bool = False
    service_account_selector: str = ""
    namespace_selector: str = ""
    performance_hints: tuple[str, ...] | None = None


class TierSpec(View, frozen=True):
    order: float | None = None
    default_action: str = ""


class NetworkSetSpec(View, frozen=True):
    """Of a GlobalNetworkSet and of a NetworkSet."""

    nets: tuple[str, ...] | None = None


class ClusterInformationSpec(View, frozen=True):
    cluster_guid: str = field(name="clusterGUID", default="")
    cluster_type: str = ""
    calico_version: str = ""
    datastore_ready: bool | None = None
    variant: str = ""


class FelixConfigurationSpec(View, frozen=True):
    """Every field stays as stored: its consumers pick the ones they support."""


class PrefixLength(View, frozen=True):
    min: int | None = None
    max: int | None = None


class BGPFilterRule(View, frozen=True):
    """One rule of a BGPFilter, either family."""

    cidr: str = ""
    prefix_length: PrefixLength | None = None
    source: str = ""
    interface: str = ""
    match_operator: str = ""
    action: str = ""
    peer_type: str = ""
    communities: dict[str, Any] | None = None
    as_path_prefix: tuple[int | str, ...] | None = None
    priority: int | None = None
    operations: tuple[dict[str, Any], ...] | None = None


class BGPFilterSpec(View, frozen=True):
    export_v4: tuple[BGPFilterRule, ...] | None = None
    import_v4: tuple[BGPFilterRule, ...] | None = None
    export_v6: tuple[BGPFilterRule, ...] | None = None
    import_v6: tuple[BGPFilterRule, ...] | None = None


class BGPConfigurationSpec(View, frozen=True):
    log_severity_screen: str = ""
    node_to_node_mesh_enabled: bool | None = None
    as_number: int | str | None = None
    service_load_balancer_ips: tuple[dict[str, str], ...] | None = field(name="serviceLoadBalancerIPs", default=None)
    service_external_ips: tuple[dict[str, str], ...] | None = field(name="serviceExternalIPs", default=None)
    service_cluster_ips: tuple[dict[str, str], ...] | None = field(name="serviceClusterIPs", default=None)
    service_load_balancer_aggregation: str | None = None
    listen_port: int | None = None
    ignored_interfaces: tuple[str, ...] | None = None
    program_cluster_routes: str | None = None
    node_mesh_password: dict[str, Any] | None = None
    node_mesh_max_restart_time: str | None = None
    bind_mode: str | None = None
    communities: tuple[dict[str, str], ...] | None = None
    prefix_advertisements: tuple[dict[str, Any], ...] | None = None
    ipv4_normal_route_priority: int | None = None
    ipv6_normal_route_priority: int | None = None


class BGPPeerSpec(View, frozen=True):
    node: str = ""
    node_selector: str = ""
    peer_ip: str = field(name="peerIP", default="")
    as_number: int | str | None = None
    peer_selector: str = ""
    keep_original_next_hop: bool = False
    password: dict[str, Any] | None = None
    source_address: str = ""
    max_restart_time: str | None = None
    keepalive_time: str | None = None
    num_allowed_local_as_numbers: int | None = field(name="numAllowedLocalASNumbers", default=None)
    local_as_number: int | str | None = field(name="localASNumber", default=None)
    ttl_security: int | None = None
    reachable_by: str = ""
    filters: tuple[str, ...] | None = None
    next_hop_mode: str | None = None
    reverse_peering: str | None = None
    local_workload_selector: str = ""


class AnySpec(View, frozen=True):
    """Of kinds that are stored and kept, and not read."""


AnyResource = Resource[Any]
WorkloadEndpoint = Resource[WorkloadEndpointSpec]
HostEndpoint = Resource[HostEndpointSpec]
Profile = Resource[ProfileSpec]
Policy = Resource[PolicySpec]
Tier = Resource[TierSpec]
NetworkSet = Resource[NetworkSetSpec]
Node = Resource[NodeSpec]
IPReservation = Resource[IPReservationSpec]
ClusterInformation = Resource[ClusterInformationSpec]
BGPConfiguration = Resource[BGPConfigurationSpec]
BGPPeer = Resource[BGPPeerSpec]
BGPFilter = Resource[BGPFilterSpec]
FelixConfiguration = Resource[dict[str, Any]]
