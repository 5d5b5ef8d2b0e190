"""The Calico profile of a Docker network: its name, its label, its rules. Pure.

Every endpoint of the network gets one label from the profile, and the profile lets in what carries that label. The
label's key differs per network and its value is empty, so an operator may put several profiles on one endpoint and
join it to several networks.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

from calico_libnetwork.model import documents
from calico_libnetwork.model.documents import Document
from calico_libnetwork.model.names import NAME_LIMIT, is_label_key, is_resource_name
from calico_libnetwork.model.resources import DEFAULT_ALLOW_PROFILE

LABEL_PREFIX = "network.projectcalico.org/"
"""Of the labels that make an endpoint a member of a network; never copied from a container's labels."""

ANNOTATION_PREFIX = "org.projectcalico.libnetwork/"
NETWORK_ID = ANNOTATION_PREFIX + "network-id"
NETWORK_NAME = ANNOTATION_PREFIX + "network-name"
_OWNER = ANNOTATION_PREFIX + "owner"
_OURS = "calico-libnetwork"

_SHORT_ID = 12
_LABEL_NAME_LIMIT = 63
_ILLEGAL = re.compile(r"[^a-z0-9.-]+")
_EMPTY_PARTS = re.compile(r"[-.]*\.[-.]*")


def profile_name(network_name: str, network_id: str, *, taken: bool = False) -> str:
    """The network's own name where Calico allows it, else one made from it and a digest of it.

    So it is the same on all hosts that have the network, though Docker gives it another id on each; only where another
    network of this host has the name already is it made from the id.
    """
    if taken:
        return _derived_name(network_name, re.sub(r"[^a-z0-9]", "", network_id.lower())[:_SHORT_ID])
    if is_resource_name(network_name) and network_name != DEFAULT_ALLOW_PROFILE:
        return network_name
    return _derived_name(network_name, hashlib.sha256(network_name.encode()).hexdigest()[:_SHORT_ID])


def profile_name_of_unnamed(network_id: str) -> str:
    """For a network whose name could not be learnt."""
    return profile_name("", network_id, taken=True)


def _derived_name(network_name: str, suffix: str) -> str:
    legal = _EMPTY_PARTS.sub(".", _ILLEGAL.sub("-", network_name.lower()))
    stem = legal[: NAME_LIMIT - _SHORT_ID - 1].strip("-.")
    return f"{stem}-{suffix}" if stem else f"network-{suffix}"


def label_key(profile: str) -> str:
    """The label that the profile gives to its endpoints and lets in."""
    key = LABEL_PREFIX + profile
    if is_label_key(key):
        return key
    digest = hashlib.sha256(profile.encode()).hexdigest()[:_SHORT_ID]
    stem = profile[: _LABEL_NAME_LIMIT - _SHORT_ID - 1].rstrip("-.")
    return f"{LABEL_PREFIX}{stem}-{digest}"


def profile_spec(profile: str) -> Document:
    key = label_key(profile)
    return {
        "ingress": [{"action": "Allow", "source": {"selector": f"has({key})"}, "destination": {}}],
        "egress": [{"action": "Allow", "source": {}, "destination": {}}],
        "labelsToApply": {key: ""},
    }


def profile_document(profile: str, *, network_id: str, network_name: str, uid: str, created: str) -> Document:
    annotations = {NETWORK_ID: network_id, _OWNER: _OURS}
    if network_name:
        annotations[NETWORK_NAME] = network_name
    return documents.new_document(
        "Profile",
        profile,
        profile_spec(profile),
        uid=uid,
        created=created,
        annotations=dict(sorted(annotations.items())),
    )


def is_unedited(document: Mapping[str, object], profile: str) -> bool:
    """Ours, and as we made it: the only profile that may be deleted with its network."""
    metadata = document.get("metadata")
    annotations = metadata.get("annotations") if isinstance(metadata, Mapping) else None
    owner = annotations.get(_OWNER) if isinstance(annotations, Mapping) else None
    return owner == _OURS and document.get("spec") == profile_spec(profile)
