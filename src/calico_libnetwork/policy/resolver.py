"""Which tiers, policies and profiles an endpoint passes, and in which order.

    tiers      those that exist before those that do not, then by order (none is last), then by name
    policies   inside a tier by order (none is last), then by "name/namespace/kind"
    profiles   in the endpoint's own order; one that does not exist denies everything in its place

A tier counts for a direction only if one of its policies applies to the endpoint in that direction.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import DEFAULT_ALLOW_PROFILE, AnyResource, Labels, Policy, Profile, Tier
from calico_libnetwork.model.selector import Selector, conjunction, parse
from calico_libnetwork.policy.entity import in_namespace, namespace_selector, service_account_selector
from calico_libnetwork.policy.findings import Finding
from calico_libnetwork.policy.rule import DIRECTIONS, Direction, RuleMatch, compile_rules

DEFAULT_TIER = "default"
POLICY_KINDS = ("GlobalNetworkPolicy", "NetworkPolicy")
_METADATA_ANNOTATION = "projectcalico.org/metadata"
_EVERYTHING = parse("all()")


@dataclass(frozen=True, slots=True)
class TierPlace:
    """A tier as policies see it; one without a resource sorts last and denies."""

    name: str
    exists: bool = False
    order: float = math.inf
    default_action: Literal["deny", "pass"] = "deny"

    @property
    def sort_key(self) -> tuple[bool, float, str]:
        return (not self.exists, self.order, self.name)


@dataclass(frozen=True, slots=True)
class CompiledPolicy:
    """``rules`` holds the directions the policy applies in, which may well be empty of rules.

    ``readable`` is False for the stand-in of a policy that cannot be read: it has no rules and so leaves only the deny
    at the end of its tier.
    """

    key: ResourceKey
    name: str
    tier: str
    order: float
    selector: Selector
    rules: Mapping[Direction, tuple[RuleMatch, ...]]
    readable: bool = True
    workloads: bool = True

    @property
    def sort_key(self) -> tuple[float, str]:
        return (self.order, f"{self.name}/{self.key.namespace}/{self.key.kind}")

    def passes(self, direction: Direction) -> bool:
        return any(rule.action == "pass" for rule in self.rules.get(direction, ()))


@dataclass(frozen=True, slots=True)
class CompiledProfile:
    key: ResourceKey
    labels: Labels
    rules: Mapping[Direction, tuple[RuleMatch, ...]]


@dataclass(frozen=True, slots=True)
class ResolvedTier:
    """The policies of one tier that apply to an endpoint in one direction, in order; never none."""

    name: str
    denies: bool
    policies: tuple[CompiledPolicy, ...]


def compile_policy(key: ResourceKey, resource: Policy) -> tuple[CompiledPolicy, list[Finding]]:
    """Raises ``InvalidResource`` if it cannot be told which endpoints the policy applies to."""
    spec = resource.spec
    tier = spec.tier or DEFAULT_TIER
    findings: list[Finding] = []
    rules: dict[Direction, tuple[RuleMatch, ...]] = {}
    stored = {"ingress": spec.ingress, "egress": spec.egress}
    for direction in _directions(resource):
        rules[direction] = compile_rules(stored[direction], key=key, direction=direction, findings=findings)
    if spec.do_not_track or spec.pre_dnat:
        feature = "doNotTrack" if spec.do_not_track else "preDNAT"
        text = "such a policy is for host endpoints; it has no effect on workloads"
        findings.append(Finding(key, "warning", feature, f"spec.{feature}", text))
    compiled = CompiledPolicy(
        key,
        name=_shown_name(resource, tier),
        tier=tier,
        order=_order(spec.order),
        selector=conjunction(_selectors(key, resource)),
        rules=rules,
        workloads=not (spec.do_not_track or spec.pre_dnat),
    )
    return compiled, findings


def require_selectors(key: ResourceKey, resource: AnyResource) -> None:
    """Raises ``InvalidResource`` if it is a policy of which it cannot be told where it applies."""
    if key.kind in POLICY_KINDS:
        try:
            _selectors(key, resource)
        except InvalidResource as error:
            raise InvalidResource(f"{key} cannot be applied: {error}") from error


def unreadable_policy(key: ResourceKey, resource: Policy | None = None) -> CompiledPolicy:
    """What stands in for a policy of which nobody can tell where it applies: closed wherever it might have applied.

    ``resource`` is given if it is only the policy's selector that is unreadable.
    """
    first, dot, _ = key.name.partition(".")
    tier, order = first if dot else DEFAULT_TIER, math.inf
    directions: tuple[Direction, ...] = DIRECTIONS
    if resource is not None:
        tier, order = resource.spec.tier or DEFAULT_TIER, _order(resource.spec.order)
        directions = _directions(resource)
    selector = in_namespace(key.namespace) if key.namespace else _EVERYTHING
    return CompiledPolicy(key, key.name, tier, order, selector, dict.fromkeys(directions, ()), readable=False)


def compile_profile(key: ResourceKey, resource: Profile) -> tuple[CompiledProfile, list[Finding]]:
    findings: list[Finding] = []
    stored = {"ingress": resource.spec.ingress, "egress": resource.spec.egress}
    rules = {
        direction: compile_rules(stored[direction], key=key, direction=direction, findings=findings)
        for direction in DIRECTIONS
    }
    return CompiledProfile(key, resource.spec.labels_to_apply or {}, rules), findings


def default_allow_profile() -> CompiledProfile:
    """Built into Calico: it allows everything and is stored nowhere."""
    allow = (RuleMatch(0, "allow"),)
    return CompiledProfile(ResourceKey("Profile", DEFAULT_ALLOW_PROFILE), {}, {"ingress": allow, "egress": allow})


def place_tier(resource: Tier) -> TierPlace:
    spec = resource.spec
    action: Literal["deny", "pass"] = "pass" if spec.default_action.lower() == "pass" else "deny"
    return TierPlace(resource.name, exists=True, order=_order(spec.order), default_action=action)


def missing_tier(name: str) -> TierPlace:
    """The default tier has its place whether stored or not."""
    return TierPlace(name, exists=True, order=1e6) if name == DEFAULT_TIER else TierPlace(name)


def resolve(
    policies: Iterable[CompiledPolicy], tiers: Mapping[str, TierPlace], direction: Direction
) -> tuple[ResolvedTier, ...]:
    """``policies`` are those whose selector matches the endpoint; a tier missing in ``tiers`` is a missing one."""
    by_tier: dict[str, list[CompiledPolicy]] = {}
    for policy in policies:
        if policy.workloads and direction in policy.rules:
            by_tier.setdefault(policy.tier, []).append(policy)
    places = sorted((tiers.get(name) or missing_tier(name) for name in by_tier), key=lambda place: place.sort_key)
    resolved = []
    for place in places:
        ordered = tuple(sorted(by_tier[place.name], key=lambda policy: policy.sort_key))
        denies = place.default_action == "deny" or not all(policy.readable for policy in ordered)
        resolved.append(ResolvedTier(place.name, denies, ordered))
    return tuple(resolved)


def _order(order: float | None) -> float:
    return math.inf if order is None else order


def _directions(resource: Policy) -> tuple[Direction, ...]:
    """None stored means both."""
    types = [type_.lower() for type_ in resource.spec.types or ()]
    return tuple(direction for direction in DIRECTIONS if not types or direction in types)


def _selectors(key: ResourceKey, resource: Policy) -> list[Selector]:
    """What must all match. Raises ``InvalidResource``."""
    spec = resource.spec
    own = parse(spec.selector)
    if own.mentions_global:
        raise InvalidResource("global() may only stand alone in a rule's namespaceSelector")
    parts = [own]
    if key.namespace:
        parts.append(in_namespace(key.namespace))
    if spec.namespace_selector:
        parts.append(namespace_selector(spec.namespace_selector))
    if spec.service_account_selector:
        parts.append(service_account_selector(spec.service_account_selector))
    return parts


def _shown_name(resource: Policy, tier: str) -> str:
    """The name users know: newer writers keep it in an annotation, older ones stored it behind the tier's name."""
    try:
        name = json.loads(resource.annotations.get(_METADATA_ANNOTATION, "{}")).get("name")
    except (ValueError, AttributeError):
        name = None
    if isinstance(name, str) and name:
        return name
    return resource.name.removeprefix(f"{tier}.") if tier == DEFAULT_TIER else resource.name
