"""The commands say the same on every datastore: the file itself, its owner's socket, etcd."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import yaml
from click.testing import CliRunner

from calico_libnetwork.cli.main import cli
from calico_libnetwork.cli.session import FILE, SOCKET, Session
from calico_libnetwork.config import Config
from calico_libnetwork.datastore.serve import serving
from calico_libnetwork.datastore.sqlite import SqliteDatastore
from tests.etcd_server import EtcdServer

CALICO = Path(__file__).parents[1] / "data" / "calico"
RECORDED = [json.loads(line) for line in (CALICO / "resources.jsonl").read_text().splitlines()]
INPUTS = [line["input"] for line in RECORDED if "input" in line]
COMMANDS = [line for line in RECORDED if "command" in line and "yaml" not in line["command"]]

Command = Callable[..., str]


@contextmanager
def owned(directory: Path) -> Iterator[None]:
    """A process (here a thread) that owns the file and serves it, as the running agent does."""
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def own() -> None:
        store = await SqliteDatastore.open(directory / FILE)
        async with serving(store, directory / SOCKET):
            ready.set()
            await stop.wait()
        await store.close()

    thread = threading.Thread(target=loop.run_until_complete, args=(own(),))
    thread.start()
    ready.wait(10)
    try:
        yield
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def commands(config: Config) -> Command:
    def call(*words: str, documents: object = None) -> str:
        text = None if documents is None else yaml.safe_dump(documents)
        result = CliRunner().invoke(cli, words, input=text, obj=Session(config), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    return call


def embedded(directory: Path) -> Config:
    return Config(datastore_type="embedded", state_directory=directory, run_directory=directory)


@pytest.fixture(params=["file", "owner", "etcd"])
def calico(request: pytest.FixtureRequest) -> Iterator[Command]:
    with TemporaryDirectory(prefix="commands-") as name:
        directory = Path(name)
        match request.param:
            case "file":
                yield commands(embedded(directory))
            case "owner":
                with owned(directory):
                    yield commands(embedded(directory))
            case _:
                server: EtcdServer = request.getfixturevalue("etcd")
                server.control("del", "--prefix", "/calico")
                yield commands(Config(datastore_type="etcdv3", etcd_endpoints=server.settings().endpoints))


def test_created_shown_and_deleted(calico: Command) -> None:
    assert calico("create", "-f", "-", documents=INPUTS) == f"Successfully created {len(INPUTS)} resource(s)\n"
    for line in COMMANDS:
        if "clusterinformation" not in line["command"]:
            words = ["-A" if word == "--all-namespaces" else word for word in line["command"].split()[1:]]
            assert calico(*words) == line["stdout"]
    assert "IP Pool" in calico("ipam", "show")
    calico("delete", "pool", "pool-b")
    calico("delete", "node", "host-a")
    assert "pool-b" not in calico("get", "pool")
    assert calico("get", "wep", "-A", "-o", "name") == ""


def test_embedded_cluster_moves_into_etcd(etcd: EtcdServer, tmp_path: Path) -> None:
    old = commands(embedded(tmp_path))
    old("create", "-f", "-", documents=INPUTS)
    old("datastore", "export", "-o", str(tmp_path / "export"))
    etcd.control("del", "--prefix", "/calico")
    new = commands(Config(datastore_type="etcdv3", etcd_endpoints=etcd.settings().endpoints))
    assert new("datastore", "import", "-f", str(tmp_path / "export")).startswith("Imported ")
    for kind in ("pool", "gnp", "node", "tier", "profile", "clusterinfo"):
        before, after = (yaml.safe_load(call("get", kind, "-o", "yaml"))["items"] for call in (old, new))
        for item in before + after:
            item["metadata"].pop("resourceVersion")
        assert before == after
