"""Stored JSON as it is: decode, change in place, encode to the bytes Calico's own tools would write.

The tree keeps every field and the order of the keys, so what others wrote survives our updates.
"""

from __future__ import annotations

from typing import Any

import msgspec

from calico_libnetwork.errors import InvalidResource
from calico_libnetwork.model.resources import API_VERSION

Document = dict[str, Any]

UNDECODABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What decoders raise for a value that is none of theirs; the last for one of a hundred thousand brackets."""

_decoder = msgspec.json.Decoder(dict[str, Any])
# Go's encoder writes these five as escapes inside strings, and JSON has them nowhere else
_ASCII_ESCAPES = {b"<": b"\\u003c", b">": b"\\u003e", b"&": b"\\u0026"}
_GO_ESCAPES = _ASCII_ESCAPES | {"\u2028".encode(): b"\\u2028", "\u2029".encode(): b"\\u2029"}


def decode(value: bytes) -> Document:
    """Raises ``InvalidResource``."""
    try:
        return _decoder.decode(value)
    except UNDECODABLE as error:
        raise InvalidResource(f"the value is not readable: {error}") from error


def encode(document: Document) -> bytes:
    encoded = msgspec.json.encode(document)
    for character, escape in (_ASCII_ESCAPES if encoded.isascii() else _GO_ESCAPES).items():
        if character in encoded:
            encoded = encoded.replace(character, escape)
    return encoded


def new_document(
    kind: str,
    name: str,
    spec: Document,
    *,
    uid: str,
    created: str,
    namespace: str = "",
    labels: dict[str, str] | None = None,
    annotations: dict[str, str] | None = None,
) -> Document:
    """An envelope as Calico's tools write it; ``created`` is RFC 3339, UTC, whole seconds, with ``Z``."""
    metadata: Document = {"name": name}
    if namespace:
        metadata["namespace"] = namespace
    metadata |= {"uid": uid, "creationTimestamp": created}
    if labels:
        metadata["labels"] = labels
    if annotations:
        metadata["annotations"] = annotations
    return {"kind": kind, "apiVersion": API_VERSION, "metadata": metadata, "spec": spec}


POLICY_KINDS = frozenset({"NetworkPolicy", "GlobalNetworkPolicy", "StagedNetworkPolicy", "StagedGlobalNetworkPolicy"})
POLICY_NAME_ANNOTATION = "projectcalico.org/metadata"
_DEFAULT_TIER_PREFIX = "default."


def shown_name(document: Document) -> str:
    """The name a user knows the object by.

    Of a policy, the one in its annotation; without it, the stored name, which data from before Calico 3.30 prefixes
    with ``default.`` in the default tier.
    """
    metadata = document["metadata"]
    name: str = metadata["name"]
    if document.get("kind") not in POLICY_KINDS:
        return name
    annotation = (metadata.get("annotations") or {}).get(POLICY_NAME_ANNOTATION)
    if annotation is not None:
        return _annotated_name(annotation) or name
    if (document.get("spec") or {}).get("tier") in (None, "", "default"):
        return name.removeprefix(_DEFAULT_TIER_PREFIX)
    return name


def without_policy_annotation(document: Document) -> Document:
    """A policy as users see it: the annotation gone, its name in its place. Other kinds come back as they are."""
    if document.get("kind") not in POLICY_KINDS:
        return document
    metadata = document["metadata"] | {"name": shown_name(document)}
    annotations = {
        key: value for key, value in (metadata.get("annotations") or {}).items() if key != POLICY_NAME_ANNOTATION
    }
    if annotations:
        metadata["annotations"] = annotations
    else:
        metadata.pop("annotations", None)
    return document | {"metadata": metadata}


def with_policy_annotation(document: Document) -> Document:
    """The inverse, as every write of a policy stores it. Other kinds come back as they are."""
    if document.get("kind") not in POLICY_KINDS:
        return document
    metadata = document["metadata"]
    annotation = encode({"name": metadata["name"]}).decode()
    annotations = (metadata.get("annotations") or {}) | {POLICY_NAME_ANNOTATION: annotation}
    return document | {"metadata": metadata | {"annotations": dict(sorted(annotations.items()))}}


def _annotated_name(annotation: str) -> str:
    try:
        name = msgspec.json.decode(annotation, type=dict[str, Any]).get("name")
    except msgspec.DecodeError:
        return ""
    return name if isinstance(name, str) else ""
