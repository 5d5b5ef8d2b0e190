"""Order of tiers and policies, directions, and what stands in for the unreadable."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model.kinds import ResourceKey, decode
from calico_libnetwork.model.resources import AnyResource
from calico_libnetwork.policy.resolver import (
    CompiledPolicy,
    TierPlace,
    compile_policy,
    compile_profile,
    default_allow_profile,
    place_tier,
    resolve,
    unreadable_policy,
)


def _resource(kind: str, name: str, spec: dict[str, Any], namespace: str = "", **metadata: Any) -> AnyResource:
    key = ResourceKey(kind, name, namespace)
    metadata = {"name": name, "namespace": namespace, **metadata}
    document = {"kind": kind, "apiVersion": "projectcalico.org/v3", "metadata": metadata, "spec": spec}
    return decode(key, msgspec.json.encode(document))


def _policy(name: str, spec: dict[str, Any] | None = None, namespace: str = "", **metadata: Any) -> CompiledPolicy:
    kind = "NetworkPolicy" if namespace else "GlobalNetworkPolicy"
    key = ResourceKey(kind, name, namespace)
    return compile_policy(key, _resource(kind, name, spec or {}, namespace, **metadata))[0]


def _tier(name: str, **spec: Any) -> TierPlace:
    return place_tier(_resource("Tier", name, spec))


def _names(policies: list[CompiledPolicy], *tiers: TierPlace) -> list[tuple[str, list[str]]]:
    resolved = resolve(policies, {tier.name: tier for tier in tiers}, "ingress")
    return [(tier.name, [policy.name for policy in tier.policies]) for tier in resolved]


def test_policies_go_by_order_then_by_name_and_those_without_order_last() -> None:
    policies = [_policy("z", {"order": 1}), _policy("a"), _policy("b", {"order": 1}), _policy("c", {"order": -1.5})]
    assert _names(policies) == [("default", ["c", "b", "z", "a"])]


def test_equal_names_go_by_namespace_and_kind() -> None:
    policies = [_policy("a", namespace="libnetwork"), _policy("a")]
    (tier,) = resolve(policies, {}, "ingress")
    assert [policy.key.kind for policy in tier.policies] == ["GlobalNetworkPolicy", "NetworkPolicy"]


def test_tiers_go_by_order_and_missing_ones_last_but_the_default_tier_always_has_its_place() -> None:
    policies = [_policy(f"p-{tier}", {"tier": tier}) for tier in ("gone", "late", "none", "default", "early", "same")]
    tiers = (_tier("none"), _tier("late", order=2e6), _tier("same", order=-1), _tier("early", order=-1))
    assert [name for name, _ in _names(policies, *tiers)] == ["early", "same", "default", "late", "none", "gone"]


def test_a_tier_without_a_policy_for_the_direction_is_left_out() -> None:
    assert _names([_policy("a", {"types": ["Egress"]})]) == []
    assert _names([_policy("a", {"types": ["Ingress"], "egress": [{"action": "Allow"}]})]) == [("default", ["a"])]
    assert _names([_policy("a", {"egress": [{"action": "Allow"}]})]) == [("default", ["a"])]


def test_the_end_of_a_tier_is_its_default_action() -> None:
    tiers = {"pass": _tier("pass", defaultAction="Pass"), "deny": _tier("deny", order=1)}
    policies = [_policy(name, {"tier": name}) for name in ("pass", "deny", "default", "gone")]
    denies = {tier.name: tier.denies for tier in resolve(policies, tiers, "ingress")}
    assert denies == {"pass": False, "deny": True, "default": True, "gone": True}


@pytest.mark.parametrize("feature", ["doNotTrack", "preDNAT"])
def test_policies_for_host_endpoints_alone_do_not_touch_workloads_and_say_so(feature: str) -> None:
    key = ResourceKey("GlobalNetworkPolicy", "a")
    spec = {feature: True, "applyOnForward": True, "ingress": [{"action": "Deny"}]}
    policy, findings = compile_policy(key, _resource(key.kind, "a", spec))
    assert resolve([policy], {}, "ingress") == ()
    assert [(finding.severity, finding.feature) for finding in findings] == [("warning", feature)]


def test_a_namespaced_policy_selects_in_its_namespace() -> None:
    policy = _policy("a", {"selector": "has(x)"}, namespace="libnetwork")
    assert policy.selector.canonical == '(has(x) && projectcalico.org/namespace == "libnetwork")'


def test_namespace_and_service_account_selectors_look_at_prefixed_labels() -> None:
    policy = _policy("a", {"selector": "has(x)", "namespaceSelector": "y == '1'", "serviceAccountSelector": "all()"})
    assert policy.selector.canonical == '(has(x) && pcns.y == "1" && has(projectcalico.org/serviceaccount))'


@pytest.mark.parametrize("spec", [{"selector": "a =="}, {"selector": "global()"}, {"namespaceSelector": "("}])
def test_a_policy_whose_selector_is_unreadable_is_refused(spec: dict[str, Any]) -> None:
    with pytest.raises(InvalidResource):
        _policy("a", spec)


def test_the_stand_in_of_an_unreadable_policy_closes_even_a_tier_that_passes() -> None:
    tiers = {"security": _tier("security", defaultAction="Pass")}
    stand_in = unreadable_policy(ResourceKey("GlobalNetworkPolicy", "security.x"))
    assert [(tier.name, tier.denies) for tier in resolve([stand_in], tiers, "egress")] == [("security", True)]
    resource = _resource("GlobalNetworkPolicy", "x", {"tier": "security", "types": ["Ingress"], "selector": "("})
    partly = unreadable_policy(stand_in.key, resource)
    assert resolve([partly], tiers, "egress") == ()
    assert [tier.name for tier in resolve([partly], tiers, "ingress")] == ["security"]


def test_the_name_users_know_decides_the_order() -> None:
    annotations = {"projectcalico.org/metadata": '{"name": "b"}'}
    assert _policy("default.a").name == "a"
    assert _policy("knp.default.a", annotations=annotations).name == "b"
    assert _policy("security.a", {"tier": "security"}).name == "security.a"
    assert _policy("a", annotations={"projectcalico.org/metadata": "nonsense"}).name == "a"


def test_profiles_bring_labels_and_the_built_in_one_allows_everything() -> None:
    key = ResourceKey("Profile", "a")
    profile, findings = compile_profile(key, _resource("Profile", "a", {"labelsToApply": {"x": ""}, "ingress": None}))
    assert profile.labels == {"x": ""}
    assert profile.rules == {"ingress": (), "egress": ()}
    assert not findings
    for rules in default_allow_profile().rules.values():
        assert [rule.action for rule in rules] == ["allow"]
