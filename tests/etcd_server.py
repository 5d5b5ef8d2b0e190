"""Real etcd servers for tests: Debian's etcd-server, one member each, with or without TLS and users.

On loopback, or at an address of a network namespace that ``enter`` leads into.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from calico_libnetwork.datastore.etcd import EtcdSettings


@dataclass(frozen=True, slots=True)
class Certificates:
    """A certificate authority, a server certificate for one address, and client certificates by user name."""

    directory: Path

    @classmethod
    def made_in(cls, directory: Path, *users: str, address: str = "127.0.0.1") -> Certificates:
        certificates = cls(directory)
        _openssl(directory, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2",
                 "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.crt")  # fmt: skip
        certificates._issue("server", "server", f"subjectAltName=IP:{address},DNS:localhost")
        for user in users:
            certificates._issue(user, user, "extendedKeyUsage=clientAuth")
        return certificates

    def file(self, name: str) -> str:
        return str(self.directory / name)

    def _issue(self, name: str, common_name: str, extension: str) -> None:
        (self.directory / f"{name}.ext").write_text(extension)
        _openssl(self.directory, "req", "-newkey", "rsa:2048", "-nodes", "-subj", f"/CN={common_name}",
                 "-keyout", f"{name}.key", "-out", f"{name}.csr")  # fmt: skip
        _openssl(self.directory, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.crt", "-CAkey", "ca.key",
                 "-CAcreateserial", "-days", "2", "-extfile", f"{name}.ext", "-out", f"{name}.crt")  # fmt: skip


class EtcdServer:
    """One member; ``start`` after ``stop`` continues with its data, ``wipe`` makes it a new cluster.

    ``cluster`` names all members (name -> peer port) where there are several.
    """

    def __init__(
        self,
        *options: str,
        certificates: Certificates | None = None,
        client_certificates: bool = True,
        name: str = "default",
        cluster: dict[str, int] | None = None,
        address: str = "127.0.0.1",
        enter: Sequence[str] = (),
    ) -> None:
        self.address = address
        self.enter = enter
        self.directory = Path(tempfile.mkdtemp(prefix="etcd-"))
        self.port = free_port()
        self.cluster = cluster or {name: free_port()}
        self.name = name
        self.options = options
        self.certificates = certificates
        self.user = ""  # of ``control``, where none is given
        self.client_certificates = client_certificates
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def endpoint(self) -> str:
        return f"{'https' if self.certificates else 'http'}://{self.address}:{self.port}"

    def settings(self, user: str = "", *, username: str = "", password: str = "") -> EtcdSettings:
        """``user`` names a client certificate."""
        if self.certificates is None:
            return EtcdSettings((self.endpoint,), username=username, password=password)
        file = self.certificates.file
        return EtcdSettings(
            (self.endpoint,),
            ca_cert_file=file("ca.crt"),
            cert_file=file(f"{user}.crt") if user else "",
            key_file=file(f"{user}.key") if user else "",
            username=username,
            password=password,
        )

    def launch(self) -> None:
        """Starts without waiting: a member of a cluster answers only when others do."""
        peer = f"http://127.0.0.1:{self.cluster[self.name]}"
        initial = ",".join(f"{name}=http://127.0.0.1:{port}" for name, port in self.cluster.items())
        command = [
            *self.enter, "etcd", "--name", self.name, "--data-dir", str(self.directory / "data"),
            "--logger", "zap", "--log-level", "error",
            "--listen-client-urls", self.endpoint, "--advertise-client-urls", self.endpoint,
            "--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer, "--initial-cluster", initial,
            *self.options,
        ]  # fmt: skip
        if self.certificates is not None:
            file = self.certificates.file
            command += ["--cert-file", file("server.crt"), "--key-file", file("server.key")]
            if self.client_certificates:
                command += ["--trusted-ca-file", file("ca.crt"), "--client-cert-auth"]
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log)

    def start(self) -> None:
        self.launch()
        self.wait()

    def wait(self, seconds: float = 20) -> None:
        deadline = time.monotonic() + seconds
        while not self._answers():
            assert self.process is not None
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"etcd did not start: {(self.directory / 'log').read_text()[-2000:]}")
            time.sleep(0.02)

    def metrics(self) -> str:
        """In Prometheus' text format; of a server without certificates."""
        command = [*self.enter, "busybox", "wget", "-qO-", f"{self.endpoint}/metrics"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    def stop(self, *, kill: bool = False) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.send_signal(signal.SIGKILL if kill else signal.SIGTERM)
            self.process.wait()
            self.process = None

    def wipe(self) -> None:
        self.stop(kill=True)
        shutil.rmtree(self.directory / "data", ignore_errors=True)

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)
        threads = Path(f"/proc/{self.process.pid}/task")
        while any((thread / "stat").read_text().rpartition(")")[2].split()[0] != "T" for thread in threads.iterdir()):
            time.sleep(0.001)
        try:
            yield
        finally:
            self.process.send_signal(signal.SIGCONT)

    def control(self, *arguments: str, user: str = "") -> str:
        """etcdctl; ``user`` is a client certificate's name, or name:password."""
        user = user or self.user
        command = [*self.enter, "etcdctl", "--endpoints", self.endpoint]
        if self.certificates is not None:
            command += ["--cacert", self.certificates.file("ca.crt")]
            name = user if user and ":" not in user else "root"
            command += ["--cert", self.certificates.file(f"{name}.crt"), "--key", self.certificates.file(f"{name}.key")]
        if ":" in user:
            command += ["--user", user]
        environment = {**os.environ, "ETCDCTL_API": "3"}
        run = subprocess.run([*command, *arguments], env=environment, capture_output=True, text=True, check=False)
        if run.returncode:
            raise RuntimeError(f"etcdctl {arguments}: {run.stderr}")
        return run.stdout

    def keys(self, prefix: str) -> list[str]:
        return self.control("get", "--prefix", "--keys-only", prefix).split()

    def enable_users(self, *, password: bool) -> None:
        """User calico may use every key; root has what etcd wants before it enables users."""
        no_password = [] if password else ["--no-password"]
        self.control("user", "add", "root:secret" if password else "root", *no_password)
        self.control("user", "add", "calico:secret" if password else "calico", *no_password)
        self.control("role", "add", "everything")
        self.control("role", "grant-permission", "everything", "--prefix=true", "readwrite", "/")
        self.control("user", "grant-role", "root", "root")
        self.control("user", "grant-role", "calico", "everything")
        self.control("auth", "enable")

    def save(self) -> Path:
        """A snapshot for ``restore``."""
        file = self.directory / "snapshot"
        self.control("snapshot", "save", str(file))
        return file

    def restore(self, snapshot: Path) -> None:
        """Starts with the data of the snapshot, as a new cluster."""
        self.wipe()
        peer = f"http://127.0.0.1:{self.cluster[self.name]}"
        self.control(
            "snapshot", "restore", str(snapshot), "--data-dir", str(self.directory / "data"), "--name", self.name,
            "--initial-cluster", f"{self.name}={peer}", "--initial-advertise-peer-urls", peer,
        )  # fmt: skip
        self.start()

    def remove(self) -> None:
        self.stop(kill=True)
        shutil.rmtree(self.directory)

    def _answers(self) -> bool:
        """Listening is not enough: a member alone has no leader yet."""
        try:
            self.control("get", "/none")
        except RuntimeError as error:
            return "user name is empty" in str(error) or "permission denied" in str(error)
        return True


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)
