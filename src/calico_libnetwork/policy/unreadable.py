"""What can be read, and what is enforced in the place of a policy that cannot be and never was readable before.

As much of it as says where it applies is read by itself, and there it denies, in its directions, what the rest of its
tier does not allow. A selector that cannot be read may mean any endpoint. A value that is no resource at all says
nothing: the first under its key has never been a policy to anybody, and one in the place of another may well be.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

from calico_libnetwork.errors import InvalidResource, Unreadable
from calico_libnetwork.model import documents, kinds
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import API_VERSION, AnyResource, Policy
from calico_libnetwork.policy.resolver import CompiledPolicy, compile_policy, require_selectors, unreadable_policy

_SELECTORS = ("selector", "namespaceSelector", "serviceAccountSelector")
_OTHERS = ("tier", "order", "types", "doNotTrack", "preDNAT")


def read(key: ResourceKey, value: bytes, *, first: bool) -> AnyResource:
    """Raises ``Unreadable``, also for a policy of which nobody can tell where it applies."""
    try:
        resource = kinds.decode(key, value)
        require_selectors(key, resource)
    except InvalidResource as error:
        raise Unreadable(str(error), value, first=first) from error
    return resource


def stand_in(key: ResourceKey, error: Unreadable) -> CompiledPolicy | None:
    """None: nothing is."""
    spec = _spec(error.value)
    if spec is None:
        return None if error.first else unreadable_policy(key)
    others = dict(_readable_parts(key, spec))
    try:
        policy = _policy(key, others | {name: spec[name] for name in _SELECTORS if name in spec})
        return replace(compile_policy(key, policy)[0], readable=False)
    except InvalidResource:
        return unreadable_policy(key, _policy(key, others))


def consequence(key: ResourceKey, policy: CompiledPolicy | None) -> str:
    """Of a stand-in, for people."""
    if policy is None:
        return "it has never been a policy and is left out"
    where = "where its selector says"
    if policy.selector == unreadable_policy(key).selector:
        where = "on every endpoint of its namespace" if key.namespace else "on every endpoint"
    return f"it denies, {where}, what the rest of its tier does not allow"


def _spec(value: bytes) -> dict[str, Any] | None:
    try:
        spec = documents.decode(value).get("spec")
    except InvalidResource:
        return None
    return spec if isinstance(spec, dict) else None


def _readable_parts(key: ResourceKey, spec: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name in _OTHERS:
        if name in spec:
            try:
                _policy(key, {name: spec[name]})
            except InvalidResource:
                continue
            yield name, spec[name]


def _policy(key: ResourceKey, spec: dict[str, Any]) -> Policy:
    metadata = {"name": key.name, "namespace": key.namespace}
    document = {"apiVersion": API_VERSION, "kind": key.kind, "metadata": metadata, "spec": spec}
    return cast("Policy", kinds.decode(key, documents.encode(document)))
