"""The stores that the contract is held against."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Datastore
from calico_libnetwork.datastore.remote import RemoteDatastore
from calico_libnetwork.datastore.serve import serving
from calico_libnetwork.datastore.sqlite import SqliteDatastore


@asynccontextmanager
async def served(datastore: Datastore) -> AsyncGenerator[RemoteDatastore, None]:
    """``datastore`` through a socket, as another process reaches it."""
    with TemporaryDirectory(prefix="served-") as directory:
        path = Path(directory) / "datastore.sock"
        async with serving(datastore, path):
            yield await RemoteDatastore.open(path)


@pytest.fixture(params=["memory", "sqlite", "remote"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Datastore, None]:
    if request.param == "remote":
        async with served(MemoryDatastore()) as remote:
            yield remote
            await remote.close()
        return
    datastore: Datastore
    match request.param:
        case "memory":
            datastore = MemoryDatastore()
        case "sqlite":
            datastore = await SqliteDatastore.open(tmp_path / "calico.db")
    yield datastore
    await datastore.close()


@pytest.fixture
def root() -> str:
    """A prefix that no other test has written under."""
    return f"/{uuid.uuid4().hex}/"
