"""Names that Calico and the kernel fix: workload endpoints, interfaces, nodes, handles, labels."""

from __future__ import annotations

import re

from calico_libnetwork.errors import InvalidResource

NAME_LIMIT = 253
INTERFACE_PREFIX = "cali"
NETWORK_RECORDS = "/calico-libnetwork/v1/networks/"
"""Keys of what is known of Docker's networks, by their ids."""
PEER_PREFIX = "temp"
"""Of a container's end until Docker moves and renames it."""
_HANDLE_PREFIX = "libnetwork."
_NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
_LABEL_NAME = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")


def is_resource_name(name: str) -> bool:
    """A DNS-1123 subdomain of at most 253 characters."""
    return len(name) <= NAME_LIMIT and _NAME.fullmatch(name) is not None


def is_label_key(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    if slash and not is_resource_name(prefix):
        return False
    return _LABEL_NAME.fullmatch(name) is not None


def is_label_value(value: str) -> bool:
    return value == "" or _LABEL_NAME.fullmatch(value) is not None


def endpoint_interface(endpoint_id: str) -> str:
    """Host side interface of a Docker endpoint: ``cali`` and the first 11 characters, 15 in all."""
    return INTERFACE_PREFIX + endpoint_id[:11]


def address_handle(node: str, request: str) -> str:
    """The IPAM handle of one address that Docker requested; no endpoint or container is known by then."""
    return f"{_HANDLE_PREFIX}{node}.{request}"


def is_address_handle(handle: str | None, node: str) -> bool:
    return handle is not None and handle.startswith(f"{_HANDLE_PREFIX}{node}.")


def workload_endpoint_name(node: str, endpoint_id: str) -> str:
    """``<node>-libnetwork-libnetwork-<endpoint>``, dashes inside a segment doubled."""
    name = "-".join((_escape(node), "libnetwork", "libnetwork", _escape(endpoint_id)))
    if len(name) > NAME_LIMIT:
        raise InvalidResource(
            f"node name {node!r} is too long for Calico: escaped, it may have 166 characters; set NODENAME"
        )
    return name


def workload_endpoint_prefix(node: str) -> str:
    """What the names of all endpoints of ``node`` begin with, and those of a few other nodes."""
    return f"{_escape(node)}-"


def split_workload_endpoint_name(name: str) -> tuple[str, ...]:
    """The segments of a workload endpoint's name, unescaped."""
    segments, current, position = [], "", 0
    while position < len(name):
        character = name[position]
        if character == "-" and name[position : position + 2] == "--":
            current, position = current + "-", position + 2
        elif character == "-":
            segments.append(current)
            current, position = "", position + 1
        else:
            current, position = current + character, position + 1
    return (*segments, current)


def _escape(segment: str) -> str:
    return segment.replace("-", "--")
