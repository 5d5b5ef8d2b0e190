"""What the rules depend on besides policy: this process's settings, then FelixConfiguration over them.

``node.<name>`` wins over ``default`` field by field, as in Felix. A value that cannot be used is a finding and leaves
the field as it was.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any, Literal

from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.policy.entity import Network, parse_network
from calico_libnetwork.policy.findings import Finding

ACCEPT_MARK, PASS_MARK = 0x10000, 0x20000
EndpointToHost = Literal["drop", "return", "accept"]


@dataclass(frozen=True, slots=True)
class RulesSettings:
    """``accept_mark`` tells Docker's FORWARD chain that policy has let a packet pass; ``pass_mark`` is our own.

    ``invalid_policy``: ``deny`` puts an unreadable policy on every endpoint of the node, ``ignore`` leaves it out as
    Felix does.
    """

    accept_mark: int = ACCEPT_MARK
    pass_mark: int = PASS_MARK
    endpoint_to_host: EndpointToHost = "drop"
    vxlan_port: int = 4789
    invalid_policy: Literal["deny", "ignore"] = "deny"


@dataclass(frozen=True, slots=True)
class Options:
    """The values in force; texts are checked and safe to put between nft's words."""

    accept_mark: int
    pass_mark: int
    endpoint_to_host: EndpointToHost
    vxlan_port: int
    prefixes: tuple[str, ...] = ("cali",)
    deny: Literal["drop", "reject"] = "drop"
    log_prefix: str = "calico-packet"
    log_limit: str = ""
    log_burst: int = 5
    drop_invalid: bool = True
    allow_vxlan: bool = False
    allow_ipip: bool = False
    allow_spoofing: bool = False
    nat_ports: str = ""
    nat_address: str = ""
    nat_interfaces: str = ""
    nat_exclude_nodes: bool = False
    vxlan_sources: tuple[Network, ...] = ()


def initial_options(settings: RulesSettings) -> Options:
    return Options(settings.accept_mark, settings.pass_mark, settings.endpoint_to_host, settings.vxlan_port)


def read_options(
    settings: RulesSettings,
    configurations: Mapping[ResourceKey, Mapping[str, Any]],
    *,
    node: str,
    findings: list[Finding],
) -> Options:
    """``configurations`` are the raw specs as stored, of any FelixConfiguration."""
    options = initial_options(settings)
    keys = [ResourceKey("FelixConfiguration", name) for name in ("default", f"node.{node}")]
    findings += _not_done(configurations, keys)
    for key in keys:
        spec = configurations.get(key, {})
        for name, (attribute, read) in _FIELDS.items():
            value = spec.get(name)
            if value is None or value == "":
                continue
            try:
                options = replace(options, **{attribute: read(value)})
            except (ValueError, TypeError) as error:
                text = f"{value!r} is not usable ({error}); left as it was"
                findings.append(Finding(key, "error", "configuration", f"spec.{name}", text))
    return options


def _not_done(
    configurations: Mapping[ResourceKey, Mapping[str, Any]], keys: Sequence[ResourceKey]
) -> Iterator[Finding]:
    """Settings that would change traffic and that this agent does not have; the last of ``keys`` that has one wins."""
    for name, (harmless, text) in _NOT_DONE.items():
        having = [key for key in keys if configurations.get(key, {}).get(name) not in (None, "")]
        if having and not harmless(configurations[having[-1]][name]):
            yield Finding(having[-1], "error", "configuration", f"spec.{name}", f"this agent does not do it: {text}")


def _word(*allowed: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        word = str(value).lower()
        if word not in allowed:
            raise ValueError(f"allowed: {', '.join(allowed)}")
        return word

    return read


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError("must be true or false")
    return value


def _one_of(when_true: str, *others: str) -> Callable[[Any], bool]:
    word = _word(when_true, *others)
    return lambda value: word(value) == when_true


def _matching(pattern: str, explanation: str) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not re.fullmatch(pattern, value):
            raise ValueError(explanation)
        return value

    return read


def _prefixes(value: Any) -> tuple[str, ...]:
    """Our own interfaces stay in whatever the list says."""
    names = str(value).split(",")
    if not all(re.fullmatch(r"[A-Za-z0-9_-]{1,15}", name) for name in names):
        raise ValueError("a comma separated list of interface name prefixes")
    return tuple(dict.fromkeys(("cali", *names)))


def quotable(value: object) -> str:
    """nft's strings know no escapes."""
    return re.sub(r"[^ !#-~]", "_", str(value))


def _port(value: Any) -> int:
    if not isinstance(value, int) or not 1 <= value <= 65535:
        raise ValueError("a port number")
    return value


def _port_range(value: Any) -> str:
    found = re.fullmatch(r"(\d{1,5})(?::(\d{1,5}))?", str(value))
    if found is None or not 1 <= int(found[1]) <= int(found[2] or found[1]) <= 65535:
        raise ValueError("a port or a range first:last")
    return found[1] if found[2] is None else f"{found[1]}-{found[2]}"


def _burst(value: Any) -> int:
    if not isinstance(value, int) or not 1 <= value <= 10000:
        raise ValueError("a number of packets")
    return value


def _networks(value: Any) -> tuple[Network, ...]:
    return tuple(parse_network(str(text)) for text in value)


def _interfaces(value: Any) -> str:
    """iptables writes a trailing ``+`` where nft writes ``*``."""
    name = _matching(r"!?[A-Za-z0-9_.-]{1,15}[+*]?", "an interface name, + at its end for any rest")(value)
    return name.replace("+", "*")


_REJECT = _word("drop", "reject")
_FIELDS: dict[str, tuple[str, Callable[[Any], Any]]] = {
    "interfacePrefix": ("prefixes", _prefixes),
    "defaultEndpointToHostAction": ("endpoint_to_host", _word("drop", "return", "accept")),
    "iptablesFilterDenyAction": ("deny", _REJECT),
    "nftablesFilterDenyAction": ("deny", _REJECT),
    "logPrefix": ("log_prefix", quotable),
    "logActionRateLimit": ("log_limit", _matching(r"\d{1,6}/(second|minute|hour|day)", "a rate such as 10/minute")),
    "logActionRateLimitBurst": ("log_burst", _burst),
    "disableConntrackInvalidCheck": ("drop_invalid", lambda value: not _flag(value)),
    "vxlanPort": ("vxlan_port", _port),
    "allowVXLANPacketsFromWorkloads": ("allow_vxlan", _flag),
    "allowIPIPPacketsFromWorkloads": ("allow_ipip", _flag),
    "workloadSourceSpoofing": ("allow_spoofing", _one_of("any", "disabled")),
    "natPortRange": ("nat_ports", _port_range),
    "natOutgoingAddress": ("nat_address", lambda value: str(ip_address(str(value)))),
    "natOutgoingExclusions": ("nat_exclude_nodes", _one_of("ippoolsandhostips", "ippoolsonly")),
    "iptablesNATOutgoingInterfaceFilter": ("nat_interfaces", _interfaces),
    "externalNodesList": ("vxlan_sources", _networks),
}


def _is(*values: Any) -> Callable[[Any], bool]:
    return lambda value: (value.lower() if isinstance(value, str) else value) in values


def _has_bits(bits: int) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, int) and value & bits == bits


_PLAIN = "traffic between hosts is not encrypted"
_MARKS = ACCEPT_MARK | PASS_MARK
# by name, which values ask for nothing else than what is done anyway, and what is done instead of what is asked for
_NOT_DONE: dict[str, tuple[Callable[[Any], bool], str]] = {
    "wireguardEnabled": (_is(False), _PLAIN),
    "wireguardEnabledV6": (_is(False), _PLAIN),
    "bpfEnabled": (_is(False), "the rules are nftables'"),
    "chainInsertMode": (_is("insert"), "the rules are in chains of their own, before others'"),
    "ipv6Support": (_is(True), "IPv6 stays on"),
    "vxlanEnabled": (_is(True), "the pools alone decide"),
    "iptablesMarkMask": (_has_bits(_MARKS), f"marks are {_MARKS:#x}"),
    "nftablesMarkMask": (_has_bits(_MARKS), f"marks are {_MARKS:#x}"),
    "removeExternalRoutes": (_is(True), "other routes to containers' interfaces are removed"),
    "deviceRouteProtocol": (_is(80), "routes to containers have protocol 80"),
    "deviceRouteSourceAddress": (_is(), "routes to containers name no source address"),
    "deviceRouteSourceAddressIPv6": (_is(), "routes to containers name no source address"),
    "routeSyncDisabled": (_is(False), "routes are written"),
    "ipForwarding": (_is("enabled"), "forwarding is turned on"),
    "mtuIfacePattern": (_is(), "the MTU is that of the interface with the node's address"),
    "floatingIPs": (_is("disabled"), "no address is translated to a container's"),
    "awsSrcDstCheck": (_is("donothing"), "the cloud's check of addresses stays as it is"),
}
