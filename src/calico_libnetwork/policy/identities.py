"""Labels with those of the profiles merged in, and who must be looked at again when a profile's labels change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import HostEndpoint, NetworkSet, WorkloadEndpoint
from calico_libnetwork.policy.entity import (
    NAMESPACE_LABEL,
    NAMESPACE_PREFIX,
    ORCHESTRATOR_LABEL,
    SERVICE_ACCOUNT_LABEL,
    SERVICE_ACCOUNT_PREFIX,
)
from calico_libnetwork.policy.resolver import CompiledProfile

_NAMESPACE_PROFILE_PREFIX = "kns."
_FORGED = (NAMESPACE_PREFIX, SERVICE_ACCOUNT_PREFIX)
_NOBODY: frozenset[ResourceKey] = frozenset()


@dataclass(frozen=True, slots=True)
class Identity:
    """What decides which selectors match: own labels over those of the profiles, the first profile first."""

    labels: Mapping[str, str]
    profiles: tuple[str, ...]


def workload_identity(key: ResourceKey, resource: WorkloadEndpoint) -> Identity:
    """Labels that would pretend to be those of a namespace or service account do not count."""
    labels = {name: value for name, value in resource.labels.items() if not name.startswith(_FORGED)}
    labels.setdefault(NAMESPACE_LABEL, key.namespace)
    labels.setdefault(ORCHESTRATOR_LABEL, resource.spec.orchestrator)
    if resource.spec.service_account_name:
        labels.setdefault(SERVICE_ACCOUNT_LABEL, resource.spec.service_account_name)
    return Identity(labels, tuple(resource.spec.profiles or ()))


def network_set_identity(key: ResourceKey, resource: NetworkSet) -> Identity:
    if not key.namespace:
        return Identity(resource.labels, ())
    return Identity({**resource.labels, NAMESPACE_LABEL: key.namespace}, (_NAMESPACE_PROFILE_PREFIX + key.namespace,))


def host_identity(resource: HostEndpoint) -> Identity:
    return Identity(resource.labels, tuple(resource.spec.profiles or ()))


class Identities:
    def __init__(self, profiles: Mapping[str, CompiledProfile]) -> None:
        self._profiles = profiles
        self._identities: dict[ResourceKey, Identity] = {}
        self._users: dict[str, set[ResourceKey]] = {}

    def put(self, key: ResourceKey, identity: Identity) -> None:
        self.remove(key)
        self._identities[key] = identity
        for profile in identity.profiles:
            self._users.setdefault(profile, set()).add(key)

    def remove(self, key: ResourceKey) -> None:
        identity = self._identities.pop(key, None)
        for profile in identity.profiles if identity else ():
            users = self._users.get(profile)
            if users is not None:
                users.discard(key)
                if not users:
                    del self._users[profile]

    def users(self, profile: str) -> frozenset[ResourceKey]:
        users = self._users.get(profile)
        return frozenset(users) if users else _NOBODY

    def labels(self, key: ResourceKey) -> Mapping[str, str]:
        identity = self._identities[key]
        labels = dict(identity.labels)
        for name in identity.profiles:
            profile = self._profiles.get(name)
            for label, value in profile.labels.items() if profile else ():
                labels.setdefault(label, value)
        return labels
