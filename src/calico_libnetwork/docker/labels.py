"""What a container tells about its endpoint: Calico labels out of its own, and who it is, as annotations. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from calico_libnetwork.docker.containers import COMPOSE_PROJECT, COMPOSE_SERVICE, Container
from calico_libnetwork.docker.profiles import ANNOTATION_PREFIX, LABEL_PREFIX
from calico_libnetwork.model.names import is_label_key, is_label_value
from calico_libnetwork.model.resources import CONTAINER_ID

CONTAINER_PREFIX = "org.projectcalico.label."
"""Of the container labels that are copied; the rest of the key is Calico's."""

CONTAINER_NAME = ANNOTATION_PREFIX + "container-name"
_IMAGE = ANNOTATION_PREFIX + "container-image"
_PROJECT = ANNOTATION_PREFIX + "compose-project"
_SERVICE = ANNOTATION_PREFIX + "compose-service"

_RESERVED = ("projectcalico.org/", "pcns.", "pcsa.", LABEL_PREFIX)


@dataclass(frozen=True, slots=True)
class Facts:
    """For a workload endpoint; ``skipped`` are container labels that Calico does not take, with the reason."""

    labels: Mapping[str, str]
    annotations: Mapping[str, str]
    skipped: Mapping[str, str]


NOTHING_KNOWN = Facts({}, {}, {})


def facts_of(container: Container, *, copy_labels: bool) -> Facts:
    labels: dict[str, str] = {}
    skipped: dict[str, str] = {}
    for full_key, value in sorted(container.labels.items()) if copy_labels else ():
        if full_key.startswith(CONTAINER_PREFIX):
            reason = _objection(full_key.removeprefix(CONTAINER_PREFIX), value)
            if reason:
                skipped[full_key] = reason
            else:
                labels[full_key.removeprefix(CONTAINER_PREFIX)] = value
    annotations = {
        CONTAINER_ID: container.id,
        CONTAINER_NAME: container.name,
        _IMAGE: container.image,
        _PROJECT: container.labels.get(COMPOSE_PROJECT, ""),
        _SERVICE: container.labels.get(COMPOSE_SERVICE, ""),
    }
    return Facts(labels, {key: value for key, value in annotations.items() if value}, skipped)


def _objection(key: str, value: str) -> str:
    """Reserved keys decide about membership: with them a container could join any network."""
    if key.startswith(_RESERVED):
        return f"keys that begin with {', '.join(_RESERVED[:-1])} or {_RESERVED[-1]} are reserved"
    if not is_label_key(key):
        return f"{key!r} is no label key: at most 63 letters, digits, -, _ and ., alphanumeric at both ends"
    if not is_label_value(value):
        return f"{value!r} is no label value: at most 63 letters, digits, -, _ and ., alphanumeric at both ends"
    return ""
