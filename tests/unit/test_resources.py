"""Every value that Calico's own tools stored is read completely and re-encodes to the same bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model import documents, kinds
from calico_libnetwork.model.kinds import KINDS, ResourceKey, decode, parse_path
from calico_libnetwork.model.resources import IPPool, Profile, Resource, WorkloadEndpoint

CALICO = Path(__file__).parents[1] / "data" / "calico"


def _stored() -> list[tuple[str, bytes]]:
    """Each distinct (key, value) of the recordings, the state after IPAM operations included."""
    found: dict[tuple[str, bytes], None] = {}
    for name in ("resources", "go-plugin", "calico-node", "ipam-1", "ipam-2"):
        for line in (CALICO / f"{name}.jsonl").read_text().splitlines():
            record = json.loads(line)
            if "key" in record:
                found[record["key"], record["value"].encode()] = None
            for key, value in record.get("changed", {}).items():
                found[key, value.encode()] = None
    return list(found)


STORED = _stored()
RESOURCES = [(key, path, value) for path, value in STORED if (key := parse_path(path)) is not None]


def test_recordings_hold_every_kind_this_project_reads() -> None:
    unseen = {"NetworkPolicy", "GlobalNetworkPolicy"} - {key.kind for key, _, _ in RESOURCES}
    assert not unseen
    assert len(STORED) > 200


@pytest.mark.parametrize(("path", "value"), STORED, ids=[path.rpartition("/calico/")[2] for path, _ in STORED])
def test_stored_value_re_encodes_to_the_same_bytes(path: str, value: bytes) -> None:
    assert documents.encode(documents.decode(value)) == value, path


def test_keys_and_paths_are_inverse() -> None:
    for key, path, value in RESOURCES:
        assert key.path == path
        document = documents.decode(value)
        assert (key.kind, key.name) == (document["kind"], document["metadata"]["name"])
        assert key.namespace == document["metadata"].get("namespace", "")


def test_views_read_every_field_that_appears() -> None:
    unread = {
        f"{key.kind}: {name}"
        for key, _, value in RESOURCES
        if KINDS[key.kind].decoder.type != Resource[Any]
        for name in _unread_fields(decode(key, value), documents.decode(value))
    }
    # interfaces repeats the addresses of the node that are in bgp, with those of no use to other nodes
    assert unread == {"Node: status", "Tier: status", "Node: spec.interfaces"}


def _unread_fields(view: object, stored: Any, path: str = "") -> list[str]:
    if isinstance(stored, list):
        assert isinstance(view, tuple), path
        assert len(view) == len(stored), path
        return [
            name for item, value in zip(view, stored, strict=True) for name in _unread_fields(item, value, f"{path}[]")
        ]
    if not isinstance(stored, dict):
        assert view == stored, path
        return []
    if not isinstance(view, msgspec.Struct):
        assert view == stored, path
        return []
    fields = {field.encode_name: field.name for field in msgspec.structs.fields(view)}
    unread = []
    for name, value in stored.items():
        here = f"{path}.{name}".lstrip(".")
        if name not in fields:
            unread.append(here)
        else:
            unread += _unread_fields(getattr(view, fields[name]), value, here)
    return unread


def _pool(spec: str) -> IPPool:
    resource = decode(
        ResourceKey("IPPool", "p"),
        b'{"kind":"IPPool","apiVersion":"v","metadata":{"name":"p"},"spec":%b}' % spec.encode(),
    )
    assert isinstance(resource, IPPool)
    return resource


def test_pool_of_2018_has_the_defaults_of_today() -> None:
    pool = _pool('{"cidr":"10.0.0.0/16","ipipMode":"Never"}')
    assert (pool.spec.vxlan_mode, pool.spec.assignment_mode, pool.spec.block_size) == ("Never", "Automatic", 0)
    assert pool.spec.allowed_uses is None
    assert pool.status is None


def test_nulls_read_as_nothing() -> None:
    value = (
        b'{"kind":"WorkloadEndpoint","apiVersion":"projectcalico.org/v3","metadata":{"name":"e","namespace":"libnetwork",'
        b'"creationTimestamp":null,"labels":null,"annotations":null},'
        b'"spec":{"node":"n","ipNetworks":null,"profiles":null,"ports":null}}'
    )
    endpoint: WorkloadEndpoint = decode(ResourceKey("WorkloadEndpoint", "e", "libnetwork"), value)
    assert endpoint.labels == {}
    assert endpoint.annotations == {}
    assert endpoint.metadata.creation_timestamp is None
    assert (endpoint.spec.ip_networks or ()) == ()


def test_profile_with_null_rules_is_read() -> None:
    value = b'{"kind":"Profile","apiVersion":"v","metadata":{"name":"p"},"spec":{"ingress":null,"labelsToApply":null}}'
    profile: Profile = decode(ResourceKey("Profile", "p"), value)
    assert profile.spec.ingress is None


def test_unreadable_value_names_the_object() -> None:
    for value in (b"", b"nonsense", b"\xff\xfe", b'{"kind":"IPPool"}', b'{"kind":"IPPool","spec":{"cidr":5}}'):
        with pytest.raises(InvalidResource, match=r"IPPool\(p\) is not readable"):
            kinds.decode(ResourceKey("IPPool", "p"), value)
