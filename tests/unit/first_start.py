"""A Node as the first start makes it, for tests in which its content does not matter."""

from __future__ import annotations

from collections.abc import Callable

from calico_libnetwork.model.documents import Document, new_document


def plain_node(name: str) -> Callable[[Document | None], Document]:
    made = new_document("Node", name, {}, uid=f"uid-{name}", created="2026-11-24T00:00:00Z")
    return lambda stored: stored or made | {"status": {}}
