"""BGP's settings, peers and filters, as Calico's schema has them."""

from __future__ import annotations

from typing import Any

from calico_libnetwork.model.validation import formats
from calico_libnetwork.model.validation.fields import Boolean, Field, Integer, ListOf, Object, Text, Type, words
from calico_libnetwork.model.validation.problems import Report

Fields = dict[str, Any]

_CIDRS = ListOf(Object(Field("cidr", formats.NETWORK)))
_PASSWORD = Object(
    Field(
        "secretKeyRef",
        Object(Field("name", Text()), Field("key", Text(), kept=True), Field("optional", Boolean(), kept=True)),
        kept=True,
    )
)
_ROUTE_PRIORITY = Integer(1, 2147483646)


def _communities_are_used(settings: Fields, path: str, report: Report) -> None:
    if "communities" in settings and "prefixAdvertisements" not in settings:
        report(f"{path}.communities", "are defined and not used in prefixAdvertisements")
    defined = {community["name"] for community in settings.get("communities", [])}
    for position, advertisement in enumerate(settings.get("prefixAdvertisements", [])):
        for index, community in enumerate(advertisement["communities"]):
            if community not in defined and not formats.is_community(community):
                here = f"{path}.prefixAdvertisements[{position}].communities[{index}]"
                report(here, f"must be a community such as 64512:1 or a name from communities, not {community!r}")


def _mesh_settings_need_the_mesh(settings: Fields, path: str, report: Report) -> None:
    if settings.get("nodeToNodeMeshEnabled") is False:
        for name in ("nodeMeshPassword", "nodeMeshMaxRestartTime"):
            if name in settings:
                report(f"{path}.{name}", "may not stand where nodeToNodeMeshEnabled is false")


BGP_CONFIGURATION = Object(
    Field("logSeverityScreen", words("Trace", "Debug", "Info", "Warning", "Error", "Fatal"), default="Info"),
    Field("nodeToNodeMeshEnabled", Boolean(), kept=True),
    Field("asNumber", formats.ASNumber(), kept=True),
    Field("serviceLoadBalancerIPs", _CIDRS),
    Field("serviceExternalIPs", _CIDRS),
    Field("serviceClusterIPs", _CIDRS),
    Field("serviceLoadBalancerAggregation", words("Enabled", "Disabled"), default="Enabled"),
    Field(
        "communities",
        ListOf(
            Object(
                Field("name", formats.NAME, required="must be given"),
                Field("value", formats.COMMUNITY, required="must be given"),
            )
        ),
    ),
    Field(
        "prefixAdvertisements",
        ListOf(
            Object(
                Field("cidr", formats.NETWORK, required="must be given"),
                Field("communities", ListOf(Text()), required="must name a community"),
            )
        ),
    ),
    Field("listenPort", Integer(0, 65535)),
    Field("nodeMeshPassword", _PASSWORD, kept=True),
    Field("nodeMeshMaxRestartTime", formats.DURATION, kept=True),
    Field("bindMode", words("None", "NodeIP"), kept=True),
    Field("ignoredInterfaces", ListOf(formats.INTERFACE_PATTERN)),
    Field("localWorkloadPeeringIPV4", formats.ADDRESS_4),
    Field("localWorkloadPeeringIPV6", formats.ADDRESS_6),
    Field("programClusterRoutes", words("Enabled", "Disabled"), kept=True),
    Field("ipv4NormalRoutePriority", _ROUTE_PRIORITY, kept=True),
    Field("ipv4ElevatedRoutePriority", _ROUTE_PRIORITY, kept=True),
    Field("ipv6NormalRoutePriority", _ROUTE_PRIORITY, kept=True),
    Field("ipv6ElevatedRoutePriority", _ROUTE_PRIORITY, kept=True),
    rules=[_communities_are_used, _mesh_settings_need_the_mesh],
)


def _peer_is_named_once(peer: Fields, path: str, report: Report) -> None:
    for name, other in (
        ("nodeSelector", "node"),
        ("peerSelector", "peerIP"),
        ("peerSelector", "asNumber"),
        ("localWorkloadSelector", "peerIP"),
        ("localWorkloadSelector", "peerSelector"),
    ):
        if name in peer and other in peer:
            report(f"{path}.{name}", f"may not stand beside {other}")
    if "localWorkloadSelector" in peer and "asNumber" not in peer:
        report(f"{path}.asNumber", "must be given beside localWorkloadSelector")
    if peer.get("keepOriginalNextHop") and "nextHopMode" in peer:
        report(f"{path}.keepOriginalNextHop", "may not be true beside nextHopMode")


def _gateway_fits_the_peer(peer: Fields, path: str, report: Report) -> None:
    if "reachableBy" not in peer:
        return
    address = formats.split_peer_address(peer.get("peerIP", ""))
    if address is None or (":" in address[0]) != (":" in peer["reachableBy"]):
        report(f"{path}.reachableBy", "needs a peerIP of the same family")


BGP_PEER = Object(
    Field("node", formats.NAME),
    Field("nodeSelector", formats.SELECTOR),
    Field("peerIP", formats.PEER_ADDRESS),
    Field("asNumber", formats.ASNumber()),
    Field("localASNumber", formats.ASNumber(), kept=True),
    Field("peerSelector", formats.SELECTOR),
    Field("keepOriginalNextHop", Boolean()),
    Field("password", _PASSWORD, kept=True),
    Field("sourceAddress", words("UseNodeIP", "None")),
    Field("maxRestartTime", formats.DURATION, kept=True),
    Field("keepaliveTime", formats.DURATION, kept=True),
    Field("numAllowedLocalASNumbers", Integer(0, 2**31 - 1), kept=True),
    Field("ttlSecurity", Integer(0, 255), kept=True),
    Field("reachableBy", formats.ADDRESS),
    Field("filters", ListOf(formats.NAME)),
    Field("localWorkloadSelector", formats.SELECTOR),
    Field("reversePeering", words("Auto", "Manual"), kept=True),
    Field("nextHopMode", words("Auto", "Self", "Keep"), kept=True),
    rules=[_peer_is_named_once, _gateway_fits_the_peer],
)


def _match_is_whole(rule: Fields, path: str, report: Report) -> None:
    if ("cidr" in rule) != ("matchOperator" in rule):
        report(f"{path}.cidr", "and matchOperator stand together or not at all")
    if "prefixLength" in rule and "cidr" not in rule:
        report(f"{path}.prefixLength", "needs a cidr beside it")
    if "operations" in rule and rule["action"] != "Accept":
        report(f"{path}.operations", "may only stand in a rule with action Accept")


def _one_operation(operation: Fields, path: str, report: Report) -> None:
    if len(operation) != 1:
        report(path, "must have exactly one of addCommunity, prependASPath and setPriority")


_AS_NUMBERS = ListOf(formats.ASNumber(), 1, 10)
_OPERATIONS = ListOf(
    Object(
        Field("addCommunity", Object(Field("value", formats.COMMUNITY, required="must be given")), kept=True),
        Field("prependASPath", Object(Field("prefix", _AS_NUMBERS, required="must be given")), kept=True),
        Field("setPriority", Object(Field("value", _ROUTE_PRIORITY, required="must be given")), kept=True),
        rules=[_one_operation],
    ),
    1,
    10,
)


def _filter_rules(network: Type, longest: int) -> ListOf:
    length = Integer(0, longest)
    return ListOf(
        Object(
            Field("cidr", network),
            Field(
                "prefixLength",
                Object(Field("min", length, kept=True), Field("max", length, kept=True)),
                kept=True,
            ),
            Field("source", words("RemotePeers")),
            Field("interface", formats.INTERFACE_PATTERN),
            Field("matchOperator", words("Equal", "NotEqual", "In", "NotIn")),
            Field("peerType", words("eBGP", "iBGP")),
            Field("communities", Object(Field("values", ListOf(formats.COMMUNITY, 1, 1), kept=True)), kept=True),
            Field("asPathPrefix", ListOf(formats.ASNumber())),
            Field("priority", _ROUTE_PRIORITY, kept=True),
            Field("action", words("Accept", "Reject"), required="must be Accept or Reject"),
            Field("operations", _OPERATIONS),
            rules=[_match_is_whole],
        )
    )


BGP_FILTER = Object(
    Field("exportV4", _filter_rules(formats.NETWORK_4, 32)),
    Field("importV4", _filter_rules(formats.NETWORK_4, 32)),
    Field("exportV6", _filter_rules(formats.NETWORK_6, 128)),
    Field("importV6", _filter_rules(formats.NETWORK_6, 128)),
)
