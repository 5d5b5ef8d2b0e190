"""Stored JSON: kept as it is, encoded as Go would, policies under the name their annotation holds."""

from __future__ import annotations

from typing import Any

import pytest

from calico_libnetwork.model import documents
from calico_libnetwork.model.documents import (
    new_document,
    shown_name,
    with_policy_annotation,
    without_policy_annotation,
)


def test_unknown_fields_and_order_survive() -> None:
    value = b'{"z":1,"kind":"Profile","spec":{"future":{"b":null,"a":[]}},"metadata":{"name":"p","managedFields":[]}}'
    document = documents.decode(value)
    document["spec"]["egress"] = []
    assert documents.encode(document) == value.replace(b'"a":[]}', b'"a":[]},"egress":[]')


def test_integers_beyond_floats_survive() -> None:
    value = b'{"sequenceNumber":1795480141763700699,"max":18446744073709551615}'
    assert documents.encode(documents.decode(value)) == value


def test_characters_that_go_escapes_are_escaped() -> None:
    assert documents.encode({"s": "a && b < c > d\u2028\u2029é"}) == (
        b'{"s":"a \\u0026\\u0026 b \\u003c c \\u003e d\\u2028\\u2029' + "é".encode() + b'"}'
    )


def test_new_document_has_calicos_order() -> None:
    document = new_document(
        "NetworkSet", "s", {"nets": []}, uid="u", created="2026-11-24T00:00:00Z", namespace="n", labels={"a": "b"}
    )
    assert documents.encode(document) == (
        b'{"kind":"NetworkSet","apiVersion":"projectcalico.org/v3","metadata":{"name":"s","namespace":"n","uid":"u",'
        b'"creationTimestamp":"2026-11-24T00:00:00Z","labels":{"a":"b"}},"spec":{"nets":[]}}'
    )


def _policy(name: str, *, tier: str | None = "default", annotations: dict[str, str] | None = None) -> dict[str, Any]:
    document: dict[str, Any] = {"kind": "NetworkPolicy", "metadata": {"name": name}, "spec": {}}
    if tier is not None:
        document["spec"]["tier"] = tier
    if annotations is not None:
        document["metadata"]["annotations"] = annotations
    return document


@pytest.mark.parametrize(
    ("document", "name"),
    [
        (_policy("web", annotations={documents.POLICY_NAME_ANNOTATION: '{"name":"web"}'}), "web"),
        (
            _policy("default.web", annotations={documents.POLICY_NAME_ANNOTATION: '{"name":"default.web"}'}),
            "default.web",
        ),
        (_policy("default.web"), "web"),
        (_policy("default.web", tier=None), "web"),
        (_policy("default.web", tier=""), "web"),
        (_policy("security.web", tier="security"), "security.web"),
        (_policy("default.web", tier="security"), "default.web"),
        (_policy("web", annotations={documents.POLICY_NAME_ANNOTATION: "nonsense"}), "web"),
        (_policy("web", annotations={documents.POLICY_NAME_ANNOTATION: '{"name":5}'}), "web"),
        ({"kind": "Profile", "metadata": {"name": "default.web"}, "spec": {}}, "default.web"),
    ],
)
def test_shown_name(document: dict[str, Any], name: str) -> None:
    assert shown_name(document) == name


def test_policy_annotation_is_added_on_writing_and_gone_on_reading() -> None:
    policy = _policy("web", annotations={"z": "1", "a": "2"})
    stored = with_policy_annotation(policy)
    assert list(stored["metadata"]["annotations"]) == ["a", "projectcalico.org/metadata", "z"]
    assert stored["metadata"]["annotations"]["projectcalico.org/metadata"] == '{"name":"web"}'
    assert without_policy_annotation(stored) == policy
    assert "annotations" not in without_policy_annotation(with_policy_annotation(_policy("web")))["metadata"]
    assert policy["metadata"]["annotations"] == {"z": "1", "a": "2"}


def test_other_kinds_have_no_policy_annotation() -> None:
    profile = {"kind": "Profile", "metadata": {"name": "p"}, "spec": {}}
    assert with_policy_annotation(profile) is profile
    assert without_policy_annotation(profile) is profile
