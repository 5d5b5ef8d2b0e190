"""Every error this project raises, drawn as one tree; imports nothing.

    CalicoError                      one sentence for the user: the object and the remedy
    ├── ConfigError                  a setting is wrong; stops the start
    ├── InvalidResource              an object is not what Calico's validator accepts
    │   └── Unreadable               it is stored as it is; ``value`` is what was found
    ├── NotFound                     the named object does not exist
    ├── AlreadyExists                the named object exists and was to be created
    ├── PortInUse                    a port of this host is somebody's already; ``holder`` is the endpoint that has it
    ├── Refused                      a Docker request asks for what this driver does not do
    ├── DatastoreError
    │   ├── DatastoreUnavailable     not reachable within the deadline; the outcome of a write may be unknown
    │   ├── Conflict                 another writer kept winning; nothing was written
    │   └── Compacted                the revision asked for is gone; list again
    ├── IpamError
    │   ├── NoPool                   no pool serves this request
    │   ├── NoFreeAddress            every usable pool is full
    │   ├── AddressInUse             the address asked for is assigned already
    │   ├── AddressNotInPool         the address asked for lies in no enabled pool
    │   └── BlockLimit               the node owns as many blocks as it may
    ├── DataplaneError               the kernel, nft or a helper program said no
    │   └── KernelRefused            a netlink request was refused; ``errno`` says why
    ├── DockerUnavailable            the Docker API did not answer
    └── DockerRefused                the Docker API said no

Library errors are translated where they enter; only the plugin's front and the agent's loop log errors.
"""

from __future__ import annotations


class CalicoError(Exception):
    """Root of the tree; ``str(error)`` is the sentence shown to the user."""


class ConfigError(CalicoError):
    pass


class InvalidResource(CalicoError):
    pass


class Unreadable(InvalidResource):
    """A stored ``value`` that is none of its kind; ``first``: under its key there was no other before."""

    def __init__(self, message: str, value: bytes, *, first: bool) -> None:
        super().__init__(message)
        self.value = value
        self.first = first


class NotFound(CalicoError):
    pass


class AlreadyExists(CalicoError):
    pass


class PortInUse(CalicoError):
    """``holder`` is "" where it is no endpoint of ours."""

    def __init__(self, message: str, holder: str = "") -> None:
        super().__init__(message)
        self.holder = holder


class Refused(CalicoError):
    pass


class DatastoreError(CalicoError):
    pass


class DatastoreUnavailable(DatastoreError):
    pass


class Conflict(DatastoreError):
    pass


class Compacted(DatastoreError):
    """``revision`` is the oldest one still readable, where the store says so (else 0)."""

    def __init__(self, message: str, revision: int = 0) -> None:
        super().__init__(message)
        self.revision = revision


class IpamError(CalicoError):
    pass


class NoPool(IpamError):
    pass


class NoFreeAddress(IpamError):
    pass


class AddressInUse(IpamError):
    pass


class AddressNotInPool(IpamError):
    pass


class BlockLimit(IpamError):
    pass


class DataplaneError(CalicoError):
    pass


class KernelRefused(DataplaneError):
    """``offset``: where in the request the kernel found fault, counted from its header; 0 where it does not say."""

    def __init__(self, message: str, errno: int, *, offset: int = 0) -> None:
        super().__init__(message)
        self.errno = errno
        self.offset = offset


class DockerUnavailable(CalicoError):
    pass


class DockerRefused(CalicoError):
    pass
