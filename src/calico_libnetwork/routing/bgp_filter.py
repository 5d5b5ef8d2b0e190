"""A BGPFilter's rules as statements of BIRD's filter language. Pure.

A rule with a part that cannot be expressed is left out whole and reported: shortened, an Accept would let more
through, and a Reject could cut off the cluster.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import Any, Literal

from calico_libnetwork.model.resources import BGPFilter, BGPFilterRule
from calico_libnetwork.routing.bgp_settings import is_interface_pattern, parse_community
from calico_libnetwork.routing.cluster import Family, Finding, parse_as_number

Direction = Literal["import", "export"]
MAXIMUM_PRIORITY = 0x3FFFFFFF
_BEST_PREFERENCE = 0x7FFFFFFF
_OPERATORS = {"Equal": "net = {}", "NotEqual": "net != {}", "In": "net ~ {}", "NotIn": "net !~ {}"}


class _Unsupported(Exception):
    """The rule is left out; the text becomes the finding."""


def statements(
    resource: BGPFilter, direction: Direction, family: Family, *, external: bool
) -> tuple[tuple[str, ...], list[Finding]]:
    """In order; a route that no rule matches goes on to what follows. ``external``: the peer has another AS number."""
    spec = resource.spec
    rules = {
        ("import", 4): spec.import_v4,
        ("import", 6): spec.import_v6,
        ("export", 4): spec.export_v4,
        ("export", 6): spec.export_v6,
    }[direction, family]
    lines, findings = [], []
    subject = f"BGPFilter({resource.name})"
    for position, rule in enumerate(rules or ()):
        if rule.peer_type and rule.peer_type != ("eBGP" if external else "iBGP"):
            continue
        field = f"spec.{direction}V{family}[{position}]"
        try:
            lines.append(_statement(rule, family))
        except _Unsupported as error:
            findings.append(Finding("error", subject, f"{field} is left out: {error}"))
            continue
        if direction == "export" and external and any("setPriority" in each for each in rule.operations or ()):
            text = (
                f"{field}.operations: BGP tells no priority to a peer of another AS, so setPriority has no effect there"
            )
            findings.append(Finding("warning", subject, text))
    return tuple(lines), findings


def priority_function(family: Family, normal: int) -> str:
    """What rules that match a priority compare with.

    As Calico carries it: in BGP as a local preference counted down from the greatest, which every node of the AS
    hears and BIRD chooses by; one in the lower half is somebody's own and says nothing. What the agent has put into
    the kernel has the ``normal`` priority, whatever its metric. BIRD's own metric there stays the same for all, since
    BIRD 2.0 leaves the former route in the kernel when a metric changes.
    """
    lowest = _BEST_PREFERENCE - MAXIMUM_PRIORITY
    lines = [
        f"function {priority_of(family)} {{",
        f"  if source = RTS_BGP && defined(bgp_local_pref) && bgp_local_pref >= {lowest}",
        f"    then return {_BEST_PREFERENCE} - bgp_local_pref;",
        "  if source = RTS_INHERIT && !(defined(krt_source) && krt_source = 80) && defined(krt_metric)",
        "    && krt_metric > 0 then return krt_metric;",
        f"  return {normal};",
        "}",
    ]
    return "\n".join(lines)


def priority_of(family: Family) -> str:
    """The call whose value is the priority of the route at hand."""
    return f"cal_priority{family}()"


def _statement(rule: BGPFilterRule, family: Family) -> str:
    if rule.action not in ("Accept", "Reject"):
        raise _Unsupported(f"action {rule.action!r} is neither Accept nor Reject")
    changes = "".join(f"{change} " for operation in rule.operations or () for change in _operation(operation))
    condition = " && ".join(f"({part})" for part in _conditions(rule, family))
    body = f"{{ {changes}{rule.action.lower()}; }}"
    return f"if {condition} then {body}" if condition else f"{changes}{rule.action.lower()};"


def _conditions(rule: BGPFilterRule, family: Family) -> Iterator[str]:
    if rule.cidr or rule.prefix_length is not None:
        yield _network(rule, family)
    if rule.source:
        if rule.source != "RemotePeers":
            raise _Unsupported(f"source {rule.source!r} is not RemotePeers")
        yield "source = RTS_BGP"
    if rule.interface:
        if not is_interface_pattern(rule.interface):
            raise _Unsupported(f"interface {rule.interface!r} is no interface name")
        yield f'ifname ~ "{rule.interface}"'
    if rule.communities:
        alternatives = [_community(value) for value in rule.communities.get("values") or ()]
        yield " || ".join(f"{literal} ~ {attribute}" for literal, attribute in alternatives)
    if rule.as_path_prefix:
        yield f"bgp_path ~ [= {' '.join(_as_number(number) for number in rule.as_path_prefix)} * =]"
    if rule.priority is not None:
        yield f"{priority_of(family)} = {_priority(rule.priority)}"


def _network(rule: BGPFilterRule, family: Family) -> str:
    try:
        network = ipaddress.ip_network(rule.cidr, strict=False)
    except ValueError:
        network = None
    if network is None or network.version != family:
        raise _Unsupported(f"cidr {rule.cidr!r} is no IPv{family} CIDR")
    operator = _OPERATORS.get(rule.match_operator)
    if operator is None:
        raise _Unsupported(f"matchOperator {rule.match_operator!r} is none of {', '.join(_OPERATORS)}")
    limits = rule.prefix_length
    if limits is None:
        return operator.format(network)
    shortest = network.prefixlen if limits.min is None else max(limits.min, 0)
    longest = network.max_prefixlen if limits.max is None else min(limits.max, network.max_prefixlen)
    if rule.match_operator in ("In", "NotIn"):
        return operator.format(f"[ {network}{{{min(shortest, longest)},{longest}}} ]")
    return f"{operator.format(network)} && net.len >= {shortest} && net.len <= {longest}"


def _community(text: Any) -> tuple[str, str]:
    """The literal and the route attribute it lives in."""
    community = parse_community(str(text))
    if community is None:
        raise _Unsupported(f"{text!r} is no BGP community")
    literal = f"({', '.join(map(str, community))})"
    return literal, "bgp_community" if len(community) == 2 else "bgp_large_community"


def _as_number(value: int | str) -> str:
    number = parse_as_number(value)
    if number is None:
        raise _Unsupported(f"{value!r} is no AS number")
    return str(number)


def _priority(value: int) -> int:
    if not 0 < value <= MAXIMUM_PRIORITY:
        raise _Unsupported(f"priority {value} is not between 1 and {MAXIMUM_PRIORITY}")
    return value


def _operation(operation: dict[str, Any]) -> Iterator[str]:
    match operation:
        case {"addCommunity": {"value": value}}:
            literal, attribute = _community(value)
            yield f"{attribute}.add({literal});"
        case {"prependASPath": {"prefix": [*numbers]}}:
            yield from (f"bgp_path.prepend({_as_number(number)});" for number in reversed(numbers))
        case {"setPriority": {"value": int(value)}}:
            yield f"bgp_local_pref = {_BEST_PREFERENCE - _priority(value)};"
        case _:
            raise _Unsupported(f"operation {', '.join(operation) or '(none)'} is not supported")
