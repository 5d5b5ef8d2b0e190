"""Labels with those of the profiles merged in, and who must be looked at again when a profile's labels change."""

from __future__ import annotations

from collections.abc import Mapping

from calico_libnetwork.dataplane.rules.endpoints import Identity
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.policy.resolver import CompiledProfile

_NOBODY: frozenset[ResourceKey] = frozenset()


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
