"""What a command works on: the configuration, and the datastore it names."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from contextlib import asynccontextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import click

from calico_libnetwork import config as configuration
from calico_libnetwork.config import Config
from calico_libnetwork.datastore import embedded
from calico_libnetwork.datastore.protocol import Datastore
from calico_libnetwork.errors import DatastoreUnavailable

if TYPE_CHECKING:
    from calico_libnetwork.datastore.etcd import EtcdDatastore

T = TypeVar("T")

SOCKET = "control.sock"
FILE = "calico.db"


class Session:
    """Reads the configuration when a command first needs it; ``given`` takes its place in tests."""

    def __init__(self, given: Config | None = None) -> None:
        self._given = given

    @cached_property
    def config(self) -> Config:
        return self._given or configuration.load()

    @asynccontextmanager
    async def datastore(self, *, may_make: bool = False) -> AsyncGenerator[Datastore, None]:
        """The configured datastore, closed at the end. Raises ``DatastoreUnavailable``."""
        if not may_make:
            _require_one(self.config)
        datastore = await open_datastore(self.config)
        try:
            yield datastore
        finally:
            await datastore.close()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run(work)


pass_session = click.make_pass_decorator(Session, ensure=True)


def _require_one(config: Config) -> None:
    """A question must not leave an empty datastore behind, nor be answered out of one."""
    file = config.state_directory / FILE
    if config.datastore_type == "embedded" and not file.exists() and not (config.run_directory / SOCKET).exists():
        raise DatastoreUnavailable(
            f"this host has no datastore: {file} does not exist; start calico-libnetwork run, or set ETCD_ENDPOINTS"
            " where the cluster has etcd"
        )


async def open_datastore(config: Config) -> Datastore:
    if config.datastore_type == "etcdv3":
        return open_etcd(config, patient=True)
    return await embedded.opened(config.state_directory / FILE, config.run_directory / SOCKET)


def open_etcd(config: Config, *, patient: bool) -> EtcdDatastore:
    """``patient``: for somebody who waits at a terminal, and not dockerd, which wants its refusal soon."""
    from calico_libnetwork.datastore.etcd import EtcdDatastore, EtcdSettings, Timing  # gRPC is loaded for etcd alone

    return EtcdDatastore(
        EtcdSettings(
            endpoints=config.etcd_endpoints,
            ca_cert_file=config.etcd_ca_cert_file,
            cert_file=config.etcd_cert_file,
            key_file=config.etcd_key_file,
            username=config.etcd_username,
            password=config.etcd_password,
        ),
        timing=Timing(connect=8, deadline=10, limit=20) if patient else Timing(),
    )
