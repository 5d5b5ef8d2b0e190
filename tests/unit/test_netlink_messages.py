"""Netlink's bytes: what is packed is what is parsed, and a malformed message ends the parsing, not the process."""

from __future__ import annotations

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calico_libnetwork.dataplane import netlink, rtnetlink
from calico_libnetwork.dataplane.netlink import Message, Request
from calico_libnetwork.dataplane.veth import link_local
from calico_libnetwork.errors import KernelRefused


@given(st.dictionaries(st.integers(1, 0x3FFF), st.binary(max_size=60), max_size=8))
def test_attributes_survive_packing(values: dict[int, bytes]) -> None:
    packed = b"".join(netlink.attribute(kind, payload) for kind, payload in values.items())
    assert len(packed) % 4 == 0
    assert netlink.attributes(packed) == values


@given(st.binary(max_size=200))
def test_garbage_is_parsed_without_an_error(data: bytes) -> None:
    netlink.attributes(data)
    list(netlink.parse(data))


def test_nested_attribute_carries_its_flag_and_reads_back_without_it() -> None:
    packed = netlink.nested(5, netlink.u32(1, 7), netlink.text(2, "eth0"))
    assert struct.unpack_from("=HH", packed)[1] == 5 | 0x8000
    assert netlink.attributes(netlink.attributes(packed)[5]) == {1: struct.pack("=I", 7), 2: b"eth0\0"}


@given(st.lists(st.integers(0, 40_000), max_size=400))
def test_batches_keep_order_and_stay_within_bounds(sizes: list[int]) -> None:
    requests = [Request(position, b"x" * size) for position, size in enumerate(sizes)]
    batches = list(netlink._batches(requests))
    assert [request for batch in batches for request in batch] == requests
    for batch in batches:
        assert 1 <= len(batch) <= 128
        assert len(batch) == 1 or sum(16 + len(request.body) for request in batch) <= 65536


@pytest.mark.parametrize(
    ("body", "flags", "text"),
    [
        (struct.pack("=i", -errno.ENODEV) + bytes(16), 0, "No such device"),
        (struct.pack("=iI", -errno.EINVAL, 20) + bytes(16) + netlink.text(1, "why"), 0x200, "Invalid argument: why"),
        (struct.pack("=iI", -errno.EINVAL, 64) + bytes(12) + netlink.text(1, "why"), 0x300, "Invalid argument: why"),
    ],
    ids=["bare", "with the request", "capped"],
)
def test_refusal_carries_the_kernels_words(body: bytes, flags: int, text: str) -> None:
    refusal = netlink._refusal(body, flags)
    assert isinstance(refusal, KernelRefused)
    assert str(refusal) == text


def test_acknowledgement_is_no_refusal() -> None:
    assert netlink._refusal(struct.pack("=i", 0), 0) is None


def test_question_acknowledged_without_an_answer_is_an_error() -> None:
    with pytest.raises(KernelRefused, match="without answering"):
        netlink.Answer().one()


def test_cached_and_foreign_family_routes_are_nobodys() -> None:
    cloned = struct.pack("=BBBBBBBBI", 2, 32, 0, 0, 254, 3, 0, 1, 0x200)
    multicast_family = struct.pack("=BBBBBBBBI", 128, 32, 0, 0, 254, 3, 0, 1, 0)
    assert rtnetlink.parse_route(Message(24, cloned, 0)) is None
    assert rtnetlink.parse_route(Message(24, multicast_family, 0)) is None


def test_shared_mac_gives_the_gateway_that_calico_documents() -> None:
    assert str(link_local("ee:ee:ee:ee:ee:ee")) == "fe80::ecee:eeff:feee:eeee"
