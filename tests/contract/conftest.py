"""The stores that the contract is held against; etcd plain, with client certificates and users, with a password."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from calico_libnetwork.datastore.etcd import EtcdDatastore, EtcdSettings
from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Datastore
from calico_libnetwork.datastore.remote import RemoteDatastore
from calico_libnetwork.datastore.serve import serving
from calico_libnetwork.datastore.sqlite import SqliteDatastore
from tests.etcd_server import Certificates, EtcdServer


@pytest.fixture(scope="session")
def etcd() -> Iterator[EtcdServer]:
    server = EtcdServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates.made_in(tmp_path_factory.mktemp("certificates"), "root", "calico", "stranger")


@pytest.fixture(scope="session")
def etcd_with_certificates(certificates: Certificates) -> Iterator[EtcdServer]:
    """Users are known by their certificates' common names."""
    server = EtcdServer(certificates=certificates)
    server.start()
    server.enable_users(password=False)
    yield server
    server.remove()


@pytest.fixture(scope="session")
def etcd_with_password() -> Iterator[EtcdServer]:
    server = EtcdServer("--auth-token-ttl", "1")
    server.start()
    server.enable_users(password=True)
    yield server
    server.remove()


@asynccontextmanager
async def _served(datastore: Datastore) -> AsyncGenerator[RemoteDatastore, None]:
    """``datastore`` through a socket, as another process reaches it."""
    with TemporaryDirectory(prefix="served-") as directory:
        path = Path(directory) / "datastore.sock"
        async with serving(datastore, path):
            yield await RemoteDatastore.open(path)


@pytest.fixture(params=["memory", "sqlite", "remote", "etcd", "etcd-certificates", "etcd-password"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Datastore, None]:
    if request.param == "remote":
        async with _served(MemoryDatastore()) as remote:
            yield remote
            await remote.close()
        return
    datastore: Datastore
    match request.param:
        case "memory":
            datastore = MemoryDatastore()
        case "sqlite":
            datastore = await SqliteDatastore.open(tmp_path / "calico.db")
        case _:
            datastore = EtcdDatastore(_settings(request))
    yield datastore
    await datastore.close()


def _settings(request: pytest.FixtureRequest) -> EtcdSettings:
    server: EtcdServer
    match request.param:
        case "etcd-certificates":
            server = request.getfixturevalue("etcd_with_certificates")
            return server.settings("calico")
        case "etcd-password":
            server = request.getfixturevalue("etcd_with_password")
            return server.settings(username="calico", password="secret")
        case _:
            server = request.getfixturevalue("etcd")
            return server.settings()


@pytest.fixture
def root() -> str:
    """A prefix that no other test has written under."""
    return f"/{uuid.uuid4().hex}/"
