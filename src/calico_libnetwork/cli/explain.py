"""``explain``: whether one end reaches another, and which tier, policy and rule says so in each direction."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv6Address
from typing import Any

import click

from calico_libnetwork.cli.flow_ends import Content, End, find_end
from calico_libnetwork.cli.host_addresses import host_addresses
from calico_libnetwork.cli.session import Session, pass_session
from calico_libnetwork.errors import CalicoError, Unreadable
from calico_libnetwork.model import kinds
from calico_libnetwork.model.kinds import KINDS, ResourceKey
from calico_libnetwork.model.resources import AnyResource
from calico_libnetwork.policy.explain import Explainer, Explanation, Judgement, Step
from calico_libnetwork.policy.flow import Flow, protocol_name
from calico_libnetwork.policy.rule import PORT_PROTOCOLS, PROTOCOLS
from calico_libnetwork.policy.settings import RulesSettings
from calico_libnetwork.policy.unreadable import read

POLICY_KINDS = (
    *("WorkloadEndpoint", "HostEndpoint", "GlobalNetworkPolicy", "NetworkPolicy", "Tier", "Profile"),
    *("GlobalNetworkSet", "NetworkSet", "FelixConfiguration", "Node"),
)
"""Everything that policy depends on."""

_EPHEMERAL_PORT = 49152
_ECHO_REQUEST = {4: 8, 6: 128}
_OTHERS_SHOWN = 10


class CannotTell(click.ClickException):
    """Neither allowed nor denied: there is no answer."""

    exit_code = 2


@dataclass(frozen=True, kw_only=True)
class Packet:
    """What is asked about: ``protocol`` "" is what ``port`` suggests, TCP with one and a ping without."""

    protocol: str = ""
    port: int | None = None
    source_port: int | None = None
    icmp_type: int | None = None
    icmp_code: int = 0

    def flow(self, source: End, destination: End, version: int) -> Flow:
        protocol = _number(self.protocol or ("icmp" if self.port is None else "tcp"), version)
        ends = (source.addresses[version], destination.addresses[version], protocol)
        if protocol in PORT_PROTOCOLS:
            if self.port is None:
                raise click.UsageError(f"--protocol {self.protocol} needs --port")
            return Flow(*ends, self.source_port or _EPHEMERAL_PORT, self.port)
        if self.port is not None:
            raise click.UsageError(f"--protocol {self.protocol} has no --port")
        if protocol in (PROTOCOLS["icmp"], PROTOCOLS["icmpv6"]):
            kind = _ECHO_REQUEST[version] if self.icmp_type is None else self.icmp_type
            return Flow(*ends, icmp_type=kind, icmp_code=self.icmp_code)
        return Flow(*ends)


_port = click.IntRange(1, 65535)
_byte = click.IntRange(0, 255)


@click.command()
@click.argument("source")
@click.argument("destination")
@click.option("--protocol", default="", metavar="NAME", help="tcp, udp, icmp, sctp, udplite or a number.")
@click.option("--port", type=_port, help="The destination's port; without --protocol, of TCP.")
@click.option("--source-port", type=_port, help="Default: one that no rule is likely to name.")
@click.option("--icmp-type", type=_byte, help="Default: a ping.")
@click.option("--icmp-code", type=_byte, default=0, help="Default: 0.")
@click.option("-4", "versions", flag_value=(4,), type=click.UNPROCESSED, help="IPv4 only.")
@click.option("-6", "versions", flag_value=(6,), type=click.UNPROCESSED, help="IPv6 only.")
@click.option("-o", "--output", type=click.Choice(["json"]), help="Everything as JSON.")
@pass_session
def explain(
    session: Session,
    /,
    *,
    source: str,
    destination: str,
    versions: Sequence[int] | None,
    output: str | None,
    **asked: Any,
) -> None:
    """Say whether SOURCE reaches DESTINATION, and which policy and rule decides.

    Each is a container (name or id), NETWORK/CONTAINER, NODE/CONTAINER, an endpoint (name, id or host interface), a
    node, or an IP address. Without --protocol and --port it is about a ping. The answer comes from the datastore: it
    is what every node whose agent works does. Exit code 0 is allowed, 1 denied, 2 for a question without an answer.
    """
    try:
        content = session.run(_read(session))
        ends = find_end(source, content), find_end(destination, content)
        explainer = Explainer(content, RulesSettings(), {session.config.nodename: host_addresses()})
        told = [*_explanations(explainer, *ends, packet=Packet(**asked), versions=versions or (4, 6))]
    except CalicoError as error:
        raise CannotTell(str(error)) from error
    if output == "json":
        click.echo(json.dumps([_as_json(each) for each in told], indent=2))
    else:
        click.echo("\n\n".join("\n".join(_lines(each, *ends, explainer)) for each in told))
    sys.exit(0 if all(each.allowed for each in told) else 1)


async def _read(session: Session) -> Content:
    async with session.datastore() as datastore:
        listing = await datastore.list([KINDS[kind].prefix for kind in POLICY_KINDS])
    content: dict[ResourceKey, AnyResource | Unreadable] = {}
    for item in listing.items:
        key = kinds.parse_path(item.key)
        if key is not None:
            try:
                content[key] = read(key, item.value, first=item.version == 1)
            except Unreadable as error:
                content[key] = error
    return content


def _explanations(
    explainer: Explainer, source: End, destination: End, *, packet: Packet, versions: Sequence[int]
) -> Iterator[Explanation]:
    shared = [version for version in versions if version in source.addresses and version in destination.addresses]
    if not shared:
        families = " or ".join(f"IPv{version}" for version in versions)
        raise CannotTell(f"{source.name} and {destination.name} have no {families} addresses in common")
    for version in shared:
        flow = packet.flow(source, destination, version)
        if flow.source == flow.destination:
            raise CannotTell(f"{source.name} and {destination.name} are the same: what it sends itself never leaves it")
        if explainer.membership.workload(flow.source) is explainer.membership.workload(flow.destination) is None:
            raise CannotTell(f"neither {flow.source} nor {flow.destination} is a workload: no policy is asked")
        yield explainer.explain(flow)


def _number(text: str, version: int) -> int:
    name = text.lower()
    if name in ("icmp", "icmpv6", "icmp6"):
        return PROTOCOLS["icmp" if version == 4 else "icmpv6"]
    if name in PROTOCOLS:
        return PROTOCOLS[name]
    if not name.isdecimal() or int(name) > 255:
        raise click.BadParameter(f"{text!r} is no protocol; allowed: {', '.join(PROTOCOLS)} or a number to 255")
    return int(name)


def _lines(explanation: Explanation, source: End, destination: End, explainer: Explainer) -> Iterator[str]:
    flow = explanation.flow
    yield f"{_end(source, flow.source)} -> {_end(destination, flow.destination)}, {_protocol(flow)}"
    yield f"{_allowed(explanation.allowed).upper()}: {_summary(explanation, source, destination)}"
    for judgement, title in (
        (explanation.egress, f"Leaving {source.name}"),
        (explanation.ingress, f"Entering {destination.name}"),
    ):
        yield ""
        yield f"{title}: {_allowed(judgement.allowed)}"
        if judgement.endpoint is not None:
            labels = sorted(explainer.membership.labels(judgement.endpoint).items())
            yield f"  endpoint {judgement.endpoint.name} on node {judgement.node}"
            yield f"  labels   {', '.join(f'{key}={value}' for key, value in labels)}"
        yield from (f"  {'=>' if step is judgement.deciding else '  '} {_step(step)}" for step in judgement.steps)
        yield from _others(judgement)


def _summary(explanation: Explanation, source: End, destination: End) -> str:
    leaving = f"leaving {source.name}{_decision(explanation.egress.deciding)}"
    entering = f"entering {destination.name}{_decision(explanation.ingress.deciding)}"
    if not explanation.egress.allowed:
        return leaving
    return f"{leaving}; {entering}" if explanation.allowed else entering


def _decision(step: Step) -> str:
    return f" by {_where(step)}" if _where(step) else f", for {step.reason}"


def _others(judgement: Judgement) -> Iterator[str]:
    if not judgement.others:
        return
    yield "  policies that do not apply here:"
    for step in judgement.others[:_OTHERS_SHOWN]:
        yield f"     {step.key}: {step.reason}"
    if len(judgement.others) > _OTHERS_SHOWN:
        yield f"     and {len(judgement.others) - _OTHERS_SHOWN} more, with -o json"


def _step(step: Step) -> str:
    where = f"{_where(step)}: " if _where(step) else ""
    return f"{where}{step.verdict or 'no match'}, {step.reason}"


def _where(step: Step) -> str:
    """A rule, a policy or profile as a whole, or the end of a tier; "" for what is outside of them."""
    if step.key is not None:
        tier = f" in tier {step.tier}" if step.tier else ""
        return f"{step.key}{tier}" if step.rule is None else f"rule {step.rule + 1} of {step.key}{tier}"
    return f"the end of tier {step.tier}" if step.tier else ""


def _end(end: End, address: object) -> str:
    return end.name if end.name == str(address) else f"{end.name} ({address})"


def _protocol(flow: Flow) -> str:
    if flow.icmp_type is not None:
        echo = (flow.icmp_type, flow.icmp_code) == (_ECHO_REQUEST[flow.version], 0)
        return "ping" if echo else f"{protocol_name(flow.protocol)} type {flow.icmp_type} code {flow.icmp_code}"
    port = f" port {flow.destination_port}" if flow.protocol in PORT_PROTOCOLS else ""
    return protocol_name(flow.protocol) + port


def _allowed(allowed: bool) -> str:
    return "allowed" if allowed else "denied"


def _as_json(explanation: Explanation) -> dict[str, Any]:
    flow = explanation.flow
    return {
        "source": str(flow.source),
        "destination": str(flow.destination),
        "ipVersion": 6 if isinstance(flow.source, IPv6Address) else 4,
        "protocol": flow.protocol,
        "sourcePort": flow.source_port,
        "destinationPort": flow.destination_port,
        "icmpType": flow.icmp_type,
        "icmpCode": flow.icmp_code,
        "allowed": explanation.allowed,
        "egress": _judgement_json(explanation.egress),
        "ingress": _judgement_json(explanation.ingress),
    }


def _judgement_json(judgement: Judgement) -> dict[str, Any]:
    return {
        "allowed": judgement.allowed,
        "endpoint": judgement.endpoint and judgement.endpoint.name,
        "node": judgement.node,
        "decidedBy": _step_json(judgement.deciding),
        "steps": [_step_json(step) for step in judgement.steps],
        "notApplying": [_step_json(step) for step in judgement.others],
    }


def _step_json(step: Step) -> dict[str, Any]:
    return {
        "tier": step.tier,
        "kind": step.key and step.key.kind,
        "namespace": step.key and step.key.namespace,
        "name": step.key and step.key.name,
        "rule": step.rule,
        "verdict": step.verdict,
        "reason": step.reason,
    }
