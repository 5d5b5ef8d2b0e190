"""Pools, nodes, endpoints and BGP, as Calico's schema has them."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from typing import Any

from calico_libnetwork.model.names import split_workload_endpoint_name
from calico_libnetwork.model.validation import formats
from calico_libnetwork.model.validation.fields import (
    Boolean,
    Field,
    Integer,
    ListOf,
    Object,
    Opaque,
    Text,
    words,
)
from calico_libnetwork.model.validation.problems import Report

Fields = dict[str, Any]

_BLOCK_SIZES = {4: (20, 32), 6: (116, 128)}
_LINK_LOCAL: dict[int, formats.Network] = {4: IPv4Network("169.254.0.0/16"), 6: IPv6Network("fe80::/10")}


def _pool_cidr(text: str) -> bool:
    return "/" in text and formats.network(text) is not None


def _block_size(pool: Fields) -> Fields:
    return {"blockSize": 122 if ":" in pool["cidr"] else 26}


def _pool_size(pool: Fields, path: str, report: Report) -> None:
    cidr, size = formats.network(pool["cidr"]), pool["blockSize"]
    if cidr is None:
        return
    low, high = _BLOCK_SIZES[cidr.version]
    if not low <= size <= high:
        report(f"{path}.blockSize", f"must be from {low} to {high} in an IPv{cidr.version} pool, not {size}")
    elif cidr.prefixlen > size and not pool.get("disabled"):
        report(f"{path}.cidr", f"is smaller than one block (/{size}): take a larger pool or a smaller blockSize")
    if cidr.overlaps(_LINK_LOCAL[cidr.version]):
        report(f"{path}.cidr", f"overlaps the link-local addresses {_LINK_LOCAL[cidr.version]}")


def _pool_encapsulation(pool: Fields, path: str, report: Report) -> None:
    ipip, vxlan = pool["ipipMode"] != "Never", pool["vxlanMode"] != "Never"
    if ipip and vxlan:
        report(f"{path}.vxlanMode", "must be Never where ipipMode is not")
    if ipip and ":" in pool["cidr"]:
        report(f"{path}.ipipMode", "must be Never in an IPv6 pool")
    if "LoadBalancer" not in pool["allowedUses"]:
        return
    if len(set(pool["allowedUses"])) > 1:
        report(f"{path}.allowedUses", "may not hold another use beside LoadBalancer")
    if ipip or vxlan:
        report(f"{path}.{'ipipMode' if ipip else 'vxlanMode'}", "must be Never in a LoadBalancer pool")
    if pool.get("disableBGPExport"):
        report(f"{path}.disableBGPExport", "must be false in a LoadBalancer pool")
    if pool["nodeSelector"] != "all()":
        report(f"{path}.nodeSelector", "must be all() in a LoadBalancer pool")


def _pool_of_namespaces(pool: Fields, path: str, report: Report) -> None:
    if pool.get("namespaceSelector") and "Tunnel" in pool["allowedUses"]:
        report(f"{path}.namespaceSelector", "needs allowedUses without Tunnel, for tunnel addresses have no namespace")


IP_POOL = Object(
    Field(
        "cidr",
        Text(
            "a CIDR without host bits, such as 10.65.0.0/16",
            _pool_cidr,
            stored=lambda text: str(formats.network(text)),
        ),
        required="must be given",
    ),
    Field("vxlanMode", words("Never", "Always", "CrossSubnet"), default="Never"),
    Field("ipipMode", words("Never", "Always", "CrossSubnet"), default="Never"),
    Field("natOutgoing", Boolean()),
    Field("disabled", Boolean()),
    Field("disableBGPExport", Boolean()),
    Field("blockSize", Integer()),
    Field("nodeSelector", formats.SELECTOR, default="all()"),
    Field("namespaceSelector", formats.SELECTOR),
    Field("allowedUses", ListOf(words("Workload", "Tunnel", "LoadBalancer")), default=["Workload", "Tunnel"]),
    Field("assignmentMode", words("Automatic", "Manual"), default="Automatic"),
    rules=[_pool_size, _pool_encapsulation, _pool_of_namespaces],
    derived=_block_size,
)
IP_RESERVATION = Object(Field("reservedCIDRs", ListOf(formats.CIDR)))


def _bgp_is_not_empty(node: Fields, path: str, report: Report) -> None:
    if node.get("bgp") == {}:
        report(f"{path}.bgp", "must have a field, or be left out")


NODE = Object(
    Field(
        "bgp",
        Object(
            Field("asNumber", formats.ASNumber(), kept=True),
            Field("ipv4Address", formats.CIDR_4),
            Field("ipv6Address", formats.CIDR_6),
            Field("ipv4IPIPTunnelAddr", formats.ADDRESS_4),
            Field("routeReflectorClusterID", formats.ADDRESS_4),
        ),
        kept=True,
    ),
    Field("ipv4VXLANTunnelAddr", formats.ADDRESS_4),
    Field("vxlanTunnelMACAddr", formats.MAC),
    Field("ipv6VXLANTunnelAddr", formats.ADDRESS_6),
    Field("vxlanTunnelMACAddrV6", formats.MAC),
    Field("orchRefs", ListOf(Object(Field("nodeName", Text()), Field("orchestrator", Text(), kept=True)))),
    Field(
        "wireguard",
        Object(
            Field("interfaceIPv4Address", formats.ADDRESS_4),
            Field("interfaceIPv6Address", formats.ADDRESS_6),
        ),
        kept=True,
    ),
    Field(
        "addresses",
        ListOf(
            Object(
                Field("address", Text(), kept=True),
                Field("type", Text()),
            )
        ),
    ),
    Field("interfaces", ListOf(Object(Field("name", Text()), Field("addresses", ListOf(formats.CIDR))))),
    rules=[_bgp_is_not_empty],
)

_ENDPOINT_PROTOCOL = formats.ProtocolOf(("TCP", "UDP", "SCTP"))


def _port_needs_a_name(port: Fields, path: str, report: Report) -> None:
    if not port["name"] and not port["hostPort"]:
        report(f"{path}.name", "must be given where hostPort is not")


def _endpoint_networks(endpoint: Fields, path: str, report: Report) -> None:
    networks = [formats.network(text) for text in endpoint.get("ipNetworks", [])]
    for position, found in enumerate(networks):
        if found is not None and found.num_addresses > 1:
            report(f"{path}.ipNetworks[{position}]", "must be one address: /32 in IPv4, /128 in IPv6")
    for position, translation in enumerate(endpoint.get("ipNATs", [])):
        internal = formats.network(translation["internalIP"])
        external = formats.network(translation["externalIP"])
        if internal is not None and external is not None and internal.version != external.version:
            report(f"{path}.ipNATs[{position}].externalIP", "must be of internalIP's family")
        if internal not in networks:
            report(f"{path}.ipNATs[{position}].internalIP", "must be one of ipNetworks")


WORKLOAD_ENDPOINT = Object(
    Field("orchestrator", formats.NAME, required="must be given"),
    Field("workload", formats.NAME),
    Field("node", formats.NAME, required="must be given"),
    Field("containerID", formats.CONTAINER_ID),
    Field("pod", formats.NAME),
    Field("endpoint", formats.NAME),
    Field("serviceAccountName", formats.NAME),
    Field("ipNetworks", ListOf(formats.CIDR)),
    Field(
        "ipNATs",
        ListOf(
            Object(
                Field("internalIP", formats.ADDRESS, kept=True, required="must be given"),
                Field("externalIP", formats.ADDRESS, kept=True, required="must be given"),
            )
        ),
    ),
    Field("ipv4Gateway", formats.ADDRESS_4),
    Field("ipv6Gateway", formats.ADDRESS_6),
    Field("profiles", ListOf(formats.NAME)),
    Field("interfaceName", formats.INTERFACE, required="must be given"),
    Field("mac", formats.MAC),
    Field(
        "ports",
        ListOf(
            Object(
                Field(
                    "name", Text("a port's name", lambda text: not text or formats.is_port_name(text)), "", kept=True
                ),
                Field("protocol", _ENDPOINT_PROTOCOL, kept=True, required="must be TCP, UDP or SCTP"),
                Field("port", Integer(1, 65535), kept=True, required="must be given"),
                Field("hostPort", Integer(0, 65535), 0, kept=True),
                Field(
                    "hostIP", Text("an IP address", lambda text: not text or formats.is_address(text)), "", kept=True
                ),
                rules=[_port_needs_a_name],
            )
        ),
    ),
    Field("allowSpoofedSourcePrefixes", ListOf(formats.CIDR)),
    Field("qosControls", Opaque()),
    rules=[_endpoint_networks],
)

ENDPOINT_NAMES = {
    "k8s": ("node", "orchestrator", "pod", "endpoint"),
    "cni": ("node", "orchestrator", "containerID", "endpoint"),
    "libnetwork": ("node", "orchestrator", "orchestrator", "endpoint"),
}
_OTHER_NAME = ("node", "orchestrator", "workload", "endpoint")


def endpoint_name(spec: Fields, path: str, report: Report) -> str:
    """The name that a workload endpoint must have; "" and a report where a part of it is missing."""
    segments = []
    for part in ENDPOINT_NAMES.get(spec.get("orchestrator", ""), _OTHER_NAME):
        if not spec.get(part):
            report(f"{path}.{part}", "must be given, for it is a part of the name")
        segments.append(str(spec.get(part, "")).replace("-", "--"))
    name = "-".join(segments)
    return name if len(split_workload_endpoint_name(name)) == len(segments) and all(segments) else ""


def _endpoint_is_somewhere(endpoint: Fields, path: str, report: Report) -> None:
    if "interfaceName" not in endpoint and "expectedIPs" not in endpoint:
        report(path, "must have interfaceName or expectedIPs")


HOST_ENDPOINT = Object(
    Field("node", formats.NAME, required="must be given"),
    Field("interfaceName", formats.INTERFACE),
    Field("expectedIPs", ListOf(formats.ADDRESS)),
    Field("profiles", ListOf(formats.NAME)),
    Field(
        "ports",
        ListOf(
            Object(
                Field("name", formats.PORT_NAME, kept=True, required="must be given"),
                Field("protocol", _ENDPOINT_PROTOCOL, kept=True, required="must be TCP, UDP or SCTP"),
                Field("port", Integer(1, 65535), kept=True, required="must be given"),
            )
        ),
    ),
    Field("qosControls", Opaque()),
    rules=[_endpoint_is_somewhere],
)
CLUSTER_INFORMATION = Object(
    Field("clusterGUID", Text()),
    Field("clusterType", Text()),
    Field("calicoVersion", Text()),
    Field("datastoreReady", Boolean(), kept=True),
    Field("variant", Text()),
)
IPAM_CONFIGURATION = Object(
    Field("strictAffinity", Boolean(), False, kept=True),
    Field("maxBlocksPerHost", Integer(0, 1_000_000)),
    Field("autoAllocateBlocks", Boolean(), False, kept=True),
    Field("kubeVirtVMAddressPersistence", words("Enabled", "Disabled"), default="Enabled"),
    Field("ipCooldownSeconds", Integer(0)),
)
CALICO_NODE_STATUS = Object(
    Field("node", formats.NAME),
    Field("classes", ListOf(words("Agent", "BGP", "Routes"))),
    Field("updatePeriodSeconds", Integer(0, 86400), kept=True),
)
