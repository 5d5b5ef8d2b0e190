"""Why a packet passes or does not: the first packet of a flow, judged by the resources, with every step named.

The judgement is made from resources alone and holds for any node of the cluster, so it says what the kernel does where
an agent is in sync. Whether it does is tested with real packets.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import cast

from calico_libnetwork.errors import Unreadable
from calico_libnetwork.model import resources
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import DEFAULT_ALLOW_PROFILE, AnyResource
from calico_libnetwork.policy.flow import Address, Flow
from calico_libnetwork.policy.membership import Membership
from calico_libnetwork.policy.mismatch import mismatch
from calico_libnetwork.policy.resolver import (
    POLICY_KINDS,
    CompiledPolicy,
    CompiledProfile,
    ResolvedTier,
    TierPlace,
    compile_policy,
    compile_profile,
    default_allow_profile,
    place_tier,
    resolve,
)
from calico_libnetwork.policy.rule import PORT_PROTOCOLS, UDP, Direction, RuleMatch
from calico_libnetwork.policy.settings import Options, RulesSettings, read_options
from calico_libnetwork.policy.unreadable import stand_in

_IPIP = 4
_ENDING = ("allow", "deny", "pass")


@dataclass(frozen=True, slots=True)
class Step:
    """``key`` and ``rule`` (from 0) say which rule; no rule is the end of a tier, of the profiles, or before policy.

    ``verdict`` is what the step does to the packet, "" if it does nothing; ``reason`` says why, or why not.
    """

    tier: str
    key: ResourceKey | None
    rule: int | None
    verdict: str
    reason: str


@dataclass(frozen=True, slots=True)
class Judgement:
    """One direction at one endpoint, on its ``node``. ``steps`` are in order, the last one decides.

    ``endpoint`` is None, and everything allowed, where policy has no say. ``others`` are policies that do not apply.
    """

    direction: Direction
    endpoint: ResourceKey | None
    node: str
    allowed: bool
    steps: tuple[Step, ...]
    others: tuple[Step, ...] = ()

    @property
    def deciding(self) -> Step:
        return self.steps[-1]


@dataclass(frozen=True, slots=True)
class Explanation:
    flow: Flow
    egress: Judgement
    ingress: Judgement

    @property
    def allowed(self) -> bool:
        return self.egress.allowed and self.ingress.allowed


class Explainer:
    """``content`` is everything of the kinds that policy depends on; others do no harm.

    ``hosts`` are addresses of nodes, by name, besides those that their Nodes tell.
    """

    def __init__(
        self,
        content: Mapping[ResourceKey, AnyResource | Unreadable],
        settings: RulesSettings,
        hosts: Mapping[str, Collection[Address]] | None = None,
    ) -> None:
        self._settings = settings
        self._configurations = {
            key: resource.spec
            for key, resource in content.items()
            if key.kind == "FelixConfiguration" and not isinstance(resource, Unreadable)
        }
        self._tiers: dict[str, TierPlace] = {}
        self._profiles: dict[str, CompiledProfile] = {DEFAULT_ALLOW_PROFILE: default_allow_profile()}
        self._policies: list[CompiledPolicy] = []
        for key, resource in content.items():
            self._compile(key, resource)
        self.membership = Membership(content, self._profiles, hosts or {})

    def explain(self, flow: Flow) -> Explanation:
        return Explanation(flow, self._egress(flow), self._ingress(flow))

    def _compile(self, key: ResourceKey, resource: AnyResource | Unreadable) -> None:
        if key.kind in POLICY_KINDS:
            policy = _compiled_policy(key, resource)
            self._policies += [policy] if policy is not None else []
        elif isinstance(resource, Unreadable):
            return
        elif key.kind == "Tier":
            self._tiers[key.name] = place_tier(resource)
        elif key.kind == "Profile" and key.name != DEFAULT_ALLOW_PROFILE:
            self._profiles[key.name] = compile_profile(key, resource)[0]

    def _egress(self, flow: Flow) -> Judgement:
        endpoint = self.membership.workload(flow.source)
        if endpoint is None:
            return _unpoliced("egress", f"{flow.source} is no workload: what it sends is not for its policy to judge")
        node = self.membership.node_of(endpoint)
        options = read_options(self._settings, self._configurations, node=node, findings=[])
        for forbidden in _forbidden_tunnels(flow, options):
            return Judgement("egress", endpoint, node, allowed=False, steps=(_before_policy("deny", forbidden),))
        judgement = self._judge(endpoint, flow, "egress")
        if not judgement.allowed or flow.destination not in self.membership.node_addresses(node):
            return judgement
        action = options.endpoint_to_host
        reason = f"{flow.destination} is the workload's own host, and defaultEndpointToHostAction is {action.title()}"
        if flow.protocol in PORT_PROTOCOLS:
            reason += " (where the port is published, ask with the address and port of its container instead)"
        step = Step("", None, None, "deny" if action == "drop" else "allow", reason)
        steps = (*judgement.steps, step)
        return Judgement("egress", endpoint, node, allowed=action != "drop", steps=steps, others=judgement.others)

    def _ingress(self, flow: Flow) -> Judgement:
        endpoint = self.membership.workload(flow.destination)
        if endpoint is None:
            return _unpoliced("ingress", f"{flow.destination} is no workload: no policy protects it here")
        if flow.source in self.membership.node_addresses(self.membership.node_of(endpoint)):
            return _unpoliced("ingress", f"{flow.source} is the workload's own host, which always reaches it")
        return self._judge(endpoint, flow, "ingress")

    def _judge(self, endpoint: ResourceKey, flow: Flow, direction: Direction) -> Judgement:
        labels = self.membership.labels(endpoint)
        applying = [policy for policy in self._policies if policy.selector.matches(labels)]
        others = tuple(self._not_applying(direction, labels))
        steps = tuple(self._steps(endpoint, flow, direction, applying))
        allowed = steps[-1].verdict == "allow"
        node = self.membership.node_of(endpoint)
        return Judgement(direction, endpoint, node, allowed=allowed, steps=steps, others=others)

    def _steps(
        self, endpoint: ResourceKey, flow: Flow, direction: Direction, applying: list[CompiledPolicy]
    ) -> Iterator[Step]:
        """Through tiers and profiles; the last one decides."""
        for tier in resolve(applying, self._tiers, direction):
            verdict = ""
            for step in self._tier_steps(tier, flow, direction):
                yield step
                verdict = step.verdict
            if verdict in ("allow", "deny"):
                return
        yield from self._profile_steps(endpoint, flow, direction)

    def _tier_steps(self, tier: ResolvedTier, flow: Flow, direction: Direction) -> Iterator[Step]:
        for policy in tier.policies:
            if not policy.readable:
                yield Step(
                    tier.name,
                    policy.key,
                    None,
                    "",
                    "it cannot be read, so it allows nothing (a node that has read it before keeps to that)",
                )
            for step in self._rules(policy.rules[direction], flow, tier.name, policy.key):
                yield step
                if step.verdict in _ENDING:
                    return
        yield Step(tier.name, None, None, "deny" if tier.denies else "pass", "no rule of the tier's policies matched")

    def _profile_steps(self, endpoint: ResourceKey, flow: Flow, direction: Direction) -> Iterator[Step]:
        names = self.membership.profiles_of(endpoint)
        for name in names:
            key, profile = ResourceKey("Profile", name), self._profiles.get(name)
            if profile is None:
                yield Step("", key, None, "deny", "the profile does not exist or cannot be read")
                return
            for step in self._rules(profile.rules[direction], flow, "", key):
                yield step
                if step.verdict in ("allow", "deny"):
                    return
        reason = "no rule of the endpoint's profiles matched" if names else "the endpoint has no profile"
        yield Step("", None, None, "deny", reason)

    def _rules(self, rules: Iterable[RuleMatch], flow: Flow, tier: str, key: ResourceKey) -> Iterator[Step]:
        """Up to the first rule that decides."""
        for rule in rules:
            reason = mismatch(rule, flow, self.membership)
            yield Step(tier, key, rule.index, "" if reason else rule.action, reason or "every condition holds")
            if not reason and rule.action != "log":
                return

    def _not_applying(self, direction: Direction, labels: Mapping[str, str]) -> Iterator[Step]:
        for policy in self._policies:
            if not policy.selector.matches(labels):
                reason = f"its selector {policy.selector.canonical} does not match the endpoint's labels"
            elif not policy.workloads:
                reason = "it is for host endpoints"
            elif direction not in policy.rules:
                reason = f"it is not for {direction}"
            else:
                continue
            yield Step(policy.tier, policy.key, None, "", reason)


def _compiled_policy(key: ResourceKey, resource: AnyResource | Unreadable) -> CompiledPolicy | None:
    if isinstance(resource, Unreadable):
        return stand_in(key, resource)
    return compile_policy(key, cast("resources.Policy", resource))[0]


def _forbidden_tunnels(flow: Flow, options: Options) -> Iterator[str]:
    if flow.protocol == UDP and flow.destination_port == options.vxlan_port and not options.allow_vxlan:
        yield f"workloads may not send VXLAN (UDP port {options.vxlan_port})"
    if flow.protocol == _IPIP and not options.allow_ipip:
        yield "workloads may not send IPIP"


def _before_policy(verdict: str, reason: str) -> Step:
    return Step("", None, None, verdict, reason)


def _unpoliced(direction: Direction, reason: str) -> Judgement:
    return Judgement(direction, None, "", allowed=True, steps=(_before_policy("allow", reason),))
