"""Compiled policies, profiles and tiers, and which of the policies select which local labels."""

from __future__ import annotations

from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import DEFAULT_ALLOW_PROFILE
from calico_libnetwork.model.selector import Selector
from calico_libnetwork.policy.labels import LabelIndex, LabelSet
from calico_libnetwork.policy.resolver import (
    CompiledPolicy,
    CompiledProfile,
    ResolvedTier,
    TierPlace,
    default_allow_profile,
    resolve,
)
from calico_libnetwork.policy.rule import DIRECTIONS, Direction


class Policies:
    """``index`` holds the labels of this node's endpoints and the selectors of all policies."""

    def __init__(self) -> None:
        self.index = LabelIndex()
        self.tiers: dict[str, TierPlace] = {}
        self.profiles: dict[str, CompiledProfile] = {DEFAULT_ALLOW_PROFILE: default_allow_profile()}
        self.policies: dict[ResourceKey, CompiledPolicy] = {}
        self._by_selector: dict[Selector, set[ResourceKey]] = {}

    def source(self, key: ResourceKey) -> CompiledPolicy | CompiledProfile | None:
        return self.profiles.get(key.name) if key.kind == "Profile" else self.policies.get(key)

    def put(self, policy: CompiledPolicy) -> set[LabelSet]:
        """Answers the label sets for which the list of policies changed, not merely the rules of one of them."""
        old = self.policies.get(policy.key)
        if old is not None and _place(old) == _place(policy):
            self.policies[policy.key] = policy
            return set()
        affected = self.remove(policy.key)
        self.policies[policy.key] = policy
        keys = self._by_selector.setdefault(policy.selector, set())
        if not keys:
            self.index.add_selector(policy.selector)
        keys.add(policy.key)
        return affected | self.index.matching(policy.selector)

    def remove(self, key: ResourceKey) -> set[LabelSet]:
        old = self.policies.pop(key, None)
        if old is None:
            return set()
        affected = set(self.index.matching(old.selector))
        keys = self._by_selector[old.selector]
        keys.discard(key)
        if not keys:
            del self._by_selector[old.selector]
            self.index.remove_selector(old.selector)
        return affected

    def resolve(self, label_set: LabelSet, direction: Direction) -> tuple[ResolvedTier, ...]:
        keys = (key for selector in label_set.matching for key in self._by_selector[selector])
        return resolve((self.policies[key] for key in keys), self.tiers, direction)


def _place(policy: CompiledPolicy) -> tuple[object, ...]:
    """What of a policy shows outside its own chains."""
    directions = tuple((direction in policy.rules, policy.passes(direction)) for direction in DIRECTIONS)
    return (policy.selector, policy.tier, policy.sort_key, policy.readable, policy.workloads, directions)
