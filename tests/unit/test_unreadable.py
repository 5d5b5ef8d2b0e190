"""What stands in for a policy that cannot be read: as narrow as what can be read of it allows."""

from __future__ import annotations

import json
from typing import Any

import pytest

from calico_libnetwork.errors import Unreadable
from calico_libnetwork.model.kinds import ResourceKey
from calico_libnetwork.model.resources import API_VERSION
from calico_libnetwork.policy.unreadable import consequence, read, stand_in

KEY = ResourceKey("GlobalNetworkPolicy", "security.a")
EVERYWHERE = "it denies, on every endpoint, what the rest of its tier does not allow"
THERE = "it denies, where its selector says, what the rest of its tier does not allow"


def found(value: bytes | str, *, key: ResourceKey = KEY, first: bool = True) -> tuple[str, str, str, str]:
    """Tier, selector and directions of the stand-in, and what is said of it."""
    value = value.encode() if isinstance(value, str) else value
    policy = stand_in(key, Unreadable("x", value, first=first))
    if policy is None:
        return "", "", "", consequence(key, None)
    assert not policy.readable
    assert not any(policy.rules.values())
    return policy.tier, policy.selector.canonical, " ".join(policy.rules), consequence(key, policy)


def stored(**spec: Any) -> str:
    metadata = {"name": KEY.name}
    return json.dumps({"apiVersion": API_VERSION, "kind": KEY.kind, "metadata": metadata, "spec": spec})


DB = {"tier": "security", "selector": "role == 'db'", "types": ["Ingress"]}


@pytest.mark.parametrize(
    ("spec", "tier", "selector", "directions", "said"),
    [
        (DB | {"ingress": 5}, "security", 'role == "db"', "ingress", THERE),
        (DB | {"ingress": [{"action": "Allow", "unheard": 1}]}, "security", 'role == "db"', "ingress", THERE),
        (DB | {"ingress": [], "order": "first"}, "security", 'role == "db"', "ingress", THERE),
        (DB | {"types": "Ingress"}, "security", 'role == "db"', "ingress egress", THERE),
        (DB | {"tier": 7}, "default", 'role == "db"', "ingress", THERE),
        (DB | {"egress": 5, "doNotTrack": "no"}, "security", 'role == "db"', "ingress", THERE),
        (DB | {"ingress": 5, "selector": "role ="}, "security", "all()", "ingress", EVERYWHERE),
        (DB | {"selector": ["role"]}, "security", "all()", "ingress", EVERYWHERE),
        (DB | {"namespaceSelector": 1}, "security", "all()", "ingress", EVERYWHERE),
        ({"ingress": 5}, "default", "all()", "ingress egress", EVERYWHERE),
    ],
)  # fmt: skip
def test_what_can_be_read_says_where_it_denies(
    spec: dict[str, Any], tier: str, selector: str, directions: str, said: str
) -> None:
    for first in (True, False):
        assert found(stored(**spec), first=first) == (tier, selector, directions, said)


@pytest.mark.parametrize("value", [b"", b"{", b"\xff\xfe", b"null", b"[]", b"7", b"{}", b'{"spec": []}'])
def test_what_is_no_resource_has_never_been_a_policy_if_it_is_the_first_under_its_key(value: bytes) -> None:
    assert found(value) == ("", "", "", "it has never been a policy and is left out")
    assert found(value, first=False) == ("security", "all()", "ingress egress", EVERYWHERE)


def test_a_namespaced_policy_keeps_to_its_namespace() -> None:
    key = ResourceKey("NetworkPolicy", "a", "blue")
    _, selector, _, said = found(stored(selector="("), key=key)
    assert (selector, said) == (
        'projectcalico.org/namespace == "blue"',
        "it denies, on every endpoint of its namespace, what the rest of its tier does not allow",
    )
    assert found(stored(selector="x == 'y'", ingress=1), key=key)[1] == (
        '(x == "y" && projectcalico.org/namespace == "blue")'
    )


@pytest.mark.parametrize(
    ("spec", "said"),
    [
        ({"ingress": [{"unheard": 1}]}, r"unknown field `unheard` - at `\$\.spec\.ingress\[0\]`"),
        ({"selector": "role ="}, "cannot be applied: "),
        ({"selector": "global()"}, "cannot be applied: "),
    ],
)
def test_a_policy_of_which_nobody_can_tell_where_it_applies_is_as_unreadable_as_any_other(
    spec: dict[str, Any], said: str
) -> None:
    value = stored(**DB | spec).encode()
    with pytest.raises(Unreadable, match=rf"GlobalNetworkPolicy\(security\.a\).*{said}") as caught:
        read(KEY, value, first=True)
    assert (caught.value.value, caught.value.first) == (value, True)
