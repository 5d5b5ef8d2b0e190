"""etcd in the lab's fabric, where every host reaches it, and a host whose plugin keeps everything there."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from tests.e2e.lab import Docker, Host, Lab
from tests.e2e.machine import wait_for
from tests.etcd_server import Certificates, EtcdServer

ADDRESS = "172.30.0.1"
_HANDLED = re.compile(r'grpc_server_handled_total\{.*grpc_method="(\w+)".*grpc_type="unary"\} (\d+)')


@contextmanager
def etcd_in(lab: Lab, *options: str, certificates: Certificates | None = None) -> Iterator[EtcdServer]:
    """It ends with the test run, however that ends."""
    enter = ("nsenter", f"--net=/proc/{lab.fabric.pid}/ns/net", "setpriv", "--pdeathsig", "KILL", "--")
    server = EtcdServer(*options, certificates=certificates, address=ADDRESS, enter=enter)
    try:
        server.start()
        yield server
    finally:
        server.remove()


@contextmanager
def a_host(lab: Lab, docker: Docker) -> Iterator[Host]:
    """Without a plugin that has ever run."""
    host = lab.host(docker)
    try:
        yield host
    finally:
        lab.remove(host)


@contextmanager
def on_etcd(host: Host, etcd: EtcdServer, environment: Mapping[str, str] | None = None) -> Iterator[Host]:
    """The plugin with everything in ``etcd``; afterwards it is stopped, and nothing is left of what the test made.

    ``environment`` says where etcd is, if more is to be said than its endpoint.
    """
    host.etcd = etcd
    try:
        host.plugin.environment = {"ETCD_ENDPOINTS": etcd.endpoint} if environment is None else dict(environment)
        if not host.plugin.running:
            host.plugin.start()
        yield host
        host.clear()
        wait_for("the host to be clean", lambda: not host.traces(), seconds=10, found=host.traces)
    finally:
        host.clear()
        host.etcd = None
        host.plugin.environment = {}
        host.plugin.stop()


def requests(etcd: EtcdServer) -> Counter[str]:
    """Answered requests by method, as etcd itself counts them; what comes over a stream is none."""
    counts: Counter[str] = Counter()
    for method, count in _HANDLED.findall(etcd.metrics()):
        counts[method] += int(count)
    return counts
