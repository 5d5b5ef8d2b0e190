"""BGP passwords outside Kubernetes: a secret is a directory, its keys are files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from calico_libnetwork.routing.bgp_settings import SecretReference

DIRECTORY = Path("/etc/calico-libnetwork/secrets")


def read(references: Iterable[SecretReference], directory: Path = DIRECTORY) -> dict[SecretReference, str]:
    """Of ``<directory>/<name>/<key>``, without a final newline; what cannot be read is left out. Blocks."""
    found = {}
    for name, key in references:
        if _is_plain(name) and _is_plain(key):
            try:
                found[name, key] = (directory / name / key).read_text().removesuffix("\n")
            except (OSError, UnicodeDecodeError):
                continue
    return found


def _is_plain(part: str) -> bool:
    """References come from the datastore: they must not lead out of the directory."""
    return part not in ("", ".", "..") and "/" not in part and "\0" not in part
