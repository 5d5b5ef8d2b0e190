from __future__ import annotations

import pytest

from calico_libnetwork.datastore import etcd_pb2 as pb
from calico_libnetwork.datastore.etcd_messages import is_guarded, outcome, prefix_range, settled, transaction_request
from calico_libnetwork.datastore.protocol import Compare, Delete, KeyValue, Outcome, Put, Transaction, absent, unchanged

GUARDED = Transaction([Compare("/a", "mod", 5), absent("/b"), Compare("/c", "mod", 6)], [Put("/a", b"2"), Put("/b", b"1"), Delete("/c")])  # fmt: skip  # noqa: E501
OURS = {"/a": KeyValue("/a", b"2", 3, 9, 2), "/b": KeyValue("/b", b"1", 9, 9, 1), "/c": None}


@pytest.mark.parametrize(
    ("prefix", "expected"),
    [
        ("/calico/", (b"/calico/", b"/calico0")),
        ("", (b"\0", b"\0")),
        ("a\udcff", (b"a\xff", b"b")),
        ("\udcff", (b"\xff", b"\0")),
    ],
)
def test_prefix_is_a_range(prefix: str, expected: tuple[bytes, bytes]) -> None:
    assert prefix_range(prefix) == expected


def test_guarded_is_what_compares_each_key_it_writes() -> None:
    assert is_guarded(GUARDED)
    assert not is_guarded(Transaction([absent("/a")], [Put("/a", b""), Put("/b", b"")]))
    assert not is_guarded(Transaction([Compare("/a", "value", b"")], [Put("/a", b"")]))
    assert not is_guarded(Transaction([absent("/a")], ()))


def test_own_earlier_run_is_recognised() -> None:
    assert settled(GUARDED, Outcome(False, 12, OURS)) == Outcome(True, 9, OURS)
    gone = Transaction([Compare("/c", "mod", 6)], [Delete("/c")])
    assert settled(gone, Outcome(False, 12, {"/c": None})) == Outcome(True, 12, {"/c": None})


@pytest.mark.parametrize(
    "difference",
    [
        {"/a": KeyValue("/a", b"other", 3, 9, 2)},
        {"/a": KeyValue("/a", b"2", 3, 5, 2)},
        {"/a": KeyValue("/a", b"2", 3, 8, 2)},
        {"/b": None},
        {"/c": KeyValue("/c", b"", 4, 6, 1)},
    ],
    ids=["other value", "not written since", "written at two revisions", "missing", "not deleted"],
)
def test_refusal_by_the_write_of_another_stays_one(difference: dict[str, KeyValue | None]) -> None:
    refused = Outcome(False, 12, OURS | difference)
    assert settled(GUARDED, refused) == refused


def test_second_run_that_succeeded_is_the_answer() -> None:
    assert settled(GUARDED, Outcome(True, 12, OURS)) == Outcome(True, 12, OURS)


def test_what_a_compare_tells_of_a_key_is_not_asked_for_again() -> None:
    known = KeyValue("/a", b"1", 3, 5, 1)
    transaction = Transaction([unchanged(known), absent("/b")], [Put("/a", b"2"), Put("/b", b"1"), Put("/c", b"1")])
    puts = [operation.request_put for operation in transaction_request(transaction).success]
    assert [put.prev_kv for put in puts] == [False, False, True]

    answer = pb.TxnResponse(header=pb.ResponseHeader(revision=9), succeeded=True)
    answer.responses.extend(pb.ResponseOp(response_put=pb.PutResponse()) for _ in puts)
    assert outcome(transaction, answer).current == OURS | {"/c": KeyValue("/c", b"1", 9, 9, 1)}
