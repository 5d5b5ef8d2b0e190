"""Stored JSON as it is: decode, change in place, encode to the bytes Calico's own tools would write.

The tree keeps every field and the order of the keys, so what others wrote survives our updates.
"""

from __future__ import annotations

from typing import Any

import msgspec

from calico_libnetwork.model.resources import API_VERSION

Document = dict[str, Any]

_decoder = msgspec.json.Decoder(dict[str, Any])
# Go's encoder writes these five as escapes inside strings, and JSON has them nowhere else
_GO_ESCAPES = {
    b"<": b"\\u003c",
    b">": b"\\u003e",
    b"&": b"\\u0026",
    "\u2028".encode(): b"\\u2028",
    "\u2029".encode(): b"\\u2029",
}


def decode(value: bytes) -> Document:
    return _decoder.decode(value)


def encode(document: Document) -> bytes:
    encoded = msgspec.json.encode(document)
    for character, escape in _GO_ESCAPES.items():
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
