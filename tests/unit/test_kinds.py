"""Where resources live, and which keys are none of ours to read."""

from __future__ import annotations

import pytest

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model.kinds import KINDS, RESOURCE_PREFIX, ResourceKey, find_kind, parse_path


def test_every_kind_has_a_path_and_back() -> None:
    for name, row in KINDS.items():
        key = ResourceKey(name, "a.b-c", "libnetwork" if row.namespaced else "")
        assert parse_path(key.path) == key
        assert key.path.startswith(row.prefix)


def test_prefixes_do_not_overlap() -> None:
    prefixes = [kind.prefix for kind in KINDS.values()]
    assert len(set(prefixes)) == len(prefixes)
    assert not [(a, b) for a in prefixes for b in prefixes if a != b and a.startswith(b)]


@pytest.mark.parametrize(
    "path",
    [
        "/calico/ipam/v2/config",
        RESOURCE_PREFIX + "unknowns/x",
        RESOURCE_PREFIX + "profiles/",
        RESOURCE_PREFIX + "profiles/a/b",
        RESOURCE_PREFIX + "networkpolicies/only-a-name",
        RESOURCE_PREFIX + "networkpolicies/a/b/c",
        "/calico-libnetwork/v1/networks/x",
    ],
)
def test_foreign_keys_are_no_resources(path: str) -> None:
    assert parse_path(path) is None


def test_keys_read_well_in_messages() -> None:
    assert str(ResourceKey("Profile", "net1")) == "Profile(net1)"
    assert str(ResourceKey("NetworkPolicy", "web", "libnetwork")) == "NetworkPolicy(libnetwork/web)"


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("ippool", "IPPool"), ("IPPools", "IPPool"), ("pool", "IPPool"), ("wep", "WorkloadEndpoint"),
        ("gnp", "GlobalNetworkPolicy"), ("policies", "NetworkPolicy"), ("networkpolicies", "NetworkPolicy"),
        ("pro", "Profile"),
    ],
)  # fmt: skip
def test_kinds_are_found_by_calicoctls_words(word: str, kind: str) -> None:
    assert find_kind(word).name == kind


def test_every_alias_means_one_kind() -> None:
    for kind in KINDS.values():
        assert find_kind(kind.plural) is kind
        assert find_kind(kind.name) is kind
    with pytest.raises(InvalidResource, match="pod is no kind of resource; there are BGPConfiguration, "):
        find_kind("pod")
