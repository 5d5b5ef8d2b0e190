"""Many hosts on one real etcd: processes are killed, etcd hangs and restarts, and no address is given twice or lost."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from calico_libnetwork.datastore.etcd import EtcdDatastore
from calico_libnetwork.model.ipam_check import PREFIXES, check
from tests.contract.ipam_worker import IN_FLIGHT, MOST
from tests.etcd_server import EtcdServer
from tests.unit.ipam_cluster import Clock, Cluster

ROOT = Path(__file__).parents[2]
NODES = ("host-a", "host-b", "host-c", "host-d", "host-e")
QUOTA = 1000  # operations of one node: with five of them, 2 500 assignments and as many releases
ADDRESSES = 256
SECONDS = 90


@pytest.fixture
async def server() -> AsyncGenerator[EtcdServer, None]:
    made = EtcdServer()
    await asyncio.to_thread(made.start)
    yield made
    await asyncio.to_thread(made.remove)


class Workers:
    """A process per node that is started again whenever it ends before its work is done."""

    def __init__(self, endpoint: str, directory: Path) -> None:
        self._endpoint = endpoint
        self._directory = directory
        (directory / "held").mkdir()
        for node in NODES:
            (directory / node).touch()
        self._processes = {node: self._started(node) for node in NODES}
        self.killed = 0

    def _started(self, node: str) -> subprocess.Popen[bytes]:
        command = (sys.executable, "-m", "tests.contract.ipam_worker", self._endpoint, node, str(self._directory))
        environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"}
        with (self._directory / f"{node}.log").open("ab") as log:
            return subprocess.Popen((*command, str(QUOTA)), cwd=ROOT, env=environment, stdout=log, stderr=log)

    def kill_one(self) -> None:
        running = [node for node, process in self._processes.items() if process.poll() is None]
        if running:
            node = random.choice(running)
            self._processes[node].kill()
            self._processes[node].wait()
            self._processes[node] = self._started(node)
            self.killed += 1

    def done(self) -> bool:
        codes = {node: process.poll() for node, process in self._processes.items()}
        for node, code in codes.items():
            assert code in (None, 0), (self._directory / f"{node}.log").read_text()[-3000:]
        return all(code == 0 for code in codes.values())

    def operations(self) -> int:
        return sum((self._directory / node).stat().st_size for node in NODES)

    def stop(self) -> None:
        for process in self._processes.values():
            process.kill()
            process.wait()


@pytest.mark.timeout(SECONDS + 60)
async def test_five_hosts_share_a_pool_through_kills_and_outages(server: EtcdServer, tmp_path: Path) -> None:
    assert len(NODES) * IN_FLIGHT * MOST > ADDRESSES
    store = EtcdDatastore(server.settings())
    cluster = Cluster(store, Clock())
    await cluster.pool("10.5.0.0/24", blockSize=28)
    for node in NODES:
        await cluster.node(node)
    workers = Workers(server.endpoint, tmp_path)
    try:
        await _disturb(workers, server)
    finally:
        workers.stop()
    assert workers.killed > 10
    assert workers.operations() >= len(NODES) * QUOTA
    assert list((tmp_path / "held").iterdir()) == []
    values = {item.key: item.value for item in (await store.list(PREFIXES)).items}
    report = check(values, now=time.time_ns())
    assert (report.problems, report.remarks, report.assigned) == ([], [], 0)
    await store.close()


async def _disturb(workers: Workers, server: EtcdServer) -> None:
    """Along the way workers are killed; etcd hangs for longer than a request waits, twice, and is killed once."""
    deadline = time.monotonic() + SECONDS
    total = len(NODES) * QUOTA
    hurdles = [(total * step // 20, step) for step in range(1, 18)]
    while not workers.done():
        assert time.monotonic() < deadline, f"{workers.operations()} operations done"
        await asyncio.sleep(0.02)
        if not hurdles or workers.operations() < hurdles[0][0]:
            continue
        _, step = hurdles.pop(0)
        if step in (4, 12):
            with server.paused():
                await asyncio.sleep(1.5)
        elif step == 8:
            await asyncio.to_thread(server.stop, kill=True)
            await asyncio.to_thread(server.start)
        else:
            workers.kill_one()
    assert not hurdles
