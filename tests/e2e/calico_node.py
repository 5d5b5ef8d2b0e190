"""The real calico/node on a host of the lab, as far as its programs go without a container: start-up, tunnels, Felix.

``CALICO_LAB_PROGRAMS`` names a directory with ``calicoctl``, ``calico-node`` and ``calico-felix``, linked statically.
Felix runs in nftables mode. A supervisor starts it again when it ends, as it does itself when its settings change.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tests.e2e.lab import Host
from tests.e2e.machine import Process, wait_for
from tests.etcd_server import EtcdServer

PROGRAMS = Path(os.environ.get("CALICO_LAB_PROGRAMS", "/nowhere"))
_POOLS = {
    "CALICO_IPV4POOL_CIDR": "10.77.0.0/16",
    "CALICO_IPV4POOL_VXLAN": "Always",
    "CALICO_IPV4POOL_IPIP": "Never",
    "CALICO_IPV6POOL_CIDR": "fd77::/48",
    "CALICO_IPV6POOL_VXLAN": "Always",
}
_FELIX = {
    "FELIX_DATASTORETYPE": "etcdv3",
    "FELIX_IPV6SUPPORT": "true",
    "FELIX_NFTABLESMODE": "Enabled",
    "FELIX_LOGSEVERITYFILE": "none",
    "FELIX_LOGSEVERITYSYS": "none",
    "FELIX_USAGEREPORTINGENABLED": "false",
    "FELIX_DebugSkipCTLBCleanup": "true",  # of BPF, which a statically linked Felix has not
}
# Felix asks for ipsets that it left in another mode, even where the kernel has none
_NO_IPSETS = "#!/bin/sh\nexit 0\n"


@dataclass
class CalicoNode:
    host: Host
    etcd: EtcdServer
    _felix: Process | None = None
    _environment: Mapping[str, str] = field(init=False)

    def __post_init__(self) -> None:
        directory = self.host.machine.directory / "felix-tools"
        directory.mkdir()
        (directory / "ipset").write_text(_NO_IPSETS)
        (directory / "ipset").chmod(0o755)
        self.host.machine.run("mkdir", "-p", "/run/calico", "/var/log/calico")
        self._environment = {
            "PATH": f"{directory}:{self.host.machine.path}",
            "DATASTORE_TYPE": "etcdv3",
            "ETCD_ENDPOINTS": self.etcd.endpoint,
            "NODENAME": self.host.name,
            "CALICO_NETWORKING_BACKEND": "vxlan",
            "IP": "autodetect",
            "IP6": "autodetect",
            "FELIX_ETCDENDPOINTS": self.etcd.endpoint,
            "FELIX_FELIXHOSTNAME": self.host.name,
            **_FELIX,
            **_POOLS,
        }

    def start_up(self) -> None:
        """What calico/node does before anything runs: the Node resource, pools, tunnel addresses."""
        for options in (("-startup",), ("-allocate-tunnel-addrs", "-allocate-tunnel-addrs-run-once")):
            self._run("calico-node", *options)

    def start_felix(self) -> None:
        supervisor = f"while :; do {shlex.quote(str(PROGRAMS / 'calico-felix'))}; sleep 0.2; done"
        self._felix = self.host.machine.start(
            "sh", "-c", supervisor, log=self.host.machine.directory / "felix.log", environment=self._environment
        )
        status = self.host.machine.root / "run/calico/endpoint-status"
        wait_for("Felix to report endpoints", status.is_dir, seconds=30)

    def kill_felix(self) -> None:
        """For good, and without a word."""
        assert self._felix is not None
        self._felix.send(signal.SIGKILL)
        self._felix.entered.wait(10)
        self.host.machine.run("sh", "-c", "kill -9 $(pidof calico-felix)")
        wait_for("Felix to end", lambda: not self.host.machine.try_run("pidof", "calico-felix").stdout)

    def calicoctl(self, *arguments: str, text: str = "") -> str:
        return self._run("calicoctl", *arguments, text=text)

    def try_calicoctl(self, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
        return self.host.machine.try_run(*self._command("calicoctl", *arguments), text=text)

    def _run(self, program: str, *arguments: str, text: str = "") -> str:
        return self.host.machine.run(*self._command(program, *arguments), text=text)

    def _command(self, program: str, *arguments: str) -> list[str]:
        variables = (f"{name}={value}" for name, value in self._environment.items())
        return ["env", *variables, str(PROGRAMS / program), *arguments]
