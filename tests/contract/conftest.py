"""The stores that the contract is held against."""

from __future__ import annotations

import uuid
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from calico_libnetwork.datastore.memory import MemoryDatastore
from calico_libnetwork.datastore.protocol import Datastore
from calico_libnetwork.datastore.sqlite import SqliteDatastore


@pytest.fixture(params=["memory", "sqlite"])
async def store(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncGenerator[Datastore, None]:
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
