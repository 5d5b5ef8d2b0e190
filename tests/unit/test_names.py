"""Names that Calico and the kernel fix."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model.names import (
    endpoint_interface,
    is_label_key,
    is_label_value,
    is_resource_name,
    split_workload_endpoint_name,
    workload_endpoint_name,
)

ENDPOINT = "8f3a01b2c3d4e5f60718293a4b5c6d7e8f3a01b2c3d4e5f60718293a4b5c6d7e"
LABEL = st.from_regex(r"[a-z0-9]([-a-z0-9]{0,8}[a-z0-9])?", fullmatch=True)
NODE = st.lists(LABEL, min_size=1, max_size=4).map(".".join)


@given(NODE, st.text("0123456789abcdef", min_size=1, max_size=64))
def test_workload_endpoint_name_round_trips(node: str, endpoint_id: str) -> None:
    name = workload_endpoint_name(node, endpoint_id)
    assert split_workload_endpoint_name(name) == (node, "libnetwork", "libnetwork", endpoint_id)
    assert is_resource_name(name)


@pytest.mark.parametrize(
    ("node", "escaped"), [("docker-1", "docker--1"), ("a--b", "a----b"), ("host.example.com", "host.example.com")]
)
def test_dashes_of_the_node_are_doubled(node: str, escaped: str) -> None:
    assert workload_endpoint_name(node, ENDPOINT) == f"{escaped}-libnetwork-libnetwork-{ENDPOINT}"


def test_node_name_may_have_166_characters_escaped() -> None:
    assert len(workload_endpoint_name("n" * 166, ENDPOINT)) == 253
    with pytest.raises(InvalidResource, match="166 characters; set NODENAME"):
        workload_endpoint_name("n" * 167, ENDPOINT)


def test_interface_name_fits_the_kernel() -> None:
    assert endpoint_interface(ENDPOINT) == "cali8f3a01b2c3d"
    assert len(endpoint_interface(ENDPOINT)) == 15


@pytest.mark.parametrize("name", ["a", "0", "net-1", "a.b", "a.b-c.d", "x" * 253])
def test_legal_resource_names(name: str) -> None:
    assert is_resource_name(name)


@pytest.mark.parametrize("name", ["", "My_Net", "a_b", "A", "-a", "a-", "a..b", ".a", "a b", "a/b", "a\n", "x" * 254])
def test_illegal_resource_names(name: str) -> None:
    assert not is_resource_name(name)


@pytest.mark.parametrize("key", ["a", "a/b", "projectcalico.org/namespace", "A_b.c-D", "x" * 63, "e.org/" + "x" * 63])
def test_legal_label_keys(key: str) -> None:
    assert is_label_key(key)


@pytest.mark.parametrize("key", ["", "/b", "a/", "a/b/c", "E.org/x", "a b", "-a", "x" * 64, "a\n"])
def test_illegal_label_keys(key: str) -> None:
    assert not is_label_key(key)


def test_label_values() -> None:
    assert all(map(is_label_value, ("", "a", "A.b_c-D", "x" * 63)))
    assert not any(map(is_label_value, ("x" * 64, "a b", "a/b", "-a", "a\n")))
