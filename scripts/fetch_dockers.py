#!/usr/bin/python3
"""Unpack the Docker releases the end-to-end tests run: Debian 12's, 13's and testing's, none of them installed.

apt keeps lists of its own for this, so the machine's package state is not touched and no service is started.
dockerd, containerd and the command line tool of newer suites run on Debian 12's C library, their runc does not:
all of them use Debian 12's. Needs nothing but Debian's python3, apt and dpkg; a second run is free.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

MIRROR = "http://deb.debian.org/debian"
KEYRING = "/usr/share/keyrings/debian-archive-keyring.gpg"
PACKAGES = {
    "bookworm": ("docker.io", "containerd", "runc", "tini"),
    "trixie": ("docker.io", "docker-cli", "containerd"),
    "forky": ("docker.io", "docker-cli", "containerd"),
}


def main() -> None:
    cache = Path(sys.argv[1])
    missing = [suite for suite in PACKAGES if not (cache / suite / "version").exists()]
    if not missing:
        return
    cache.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=cache) as work:
        options = private_lists(Path(work), missing)
        for suite in missing:
            version = _unpack(suite, Path(work), cache / suite, options)
            print(f"Docker {version} of Debian {suite} is in {cache / suite}", flush=True)
    programs = cache / "bin"
    programs.mkdir(exist_ok=True)
    for name, target in {"runc": "usr/sbin/runc", "docker-init": "usr/bin/tini-static"}.items():
        (programs / name).unlink(missing_ok=True)
        (programs / name).symlink_to(Path("..") / "bookworm" / target)


def private_lists(work: Path, suites: list[str]) -> list[str]:
    """Package lists of ``suites`` in ``work``; returns the options that make apt use them."""
    (work / "lists" / "partial").mkdir(parents=True)
    sources = work / "sources.list"
    sources.write_text("".join(f"deb [signed-by={KEYRING}] {MIRROR} {suite} main\n" for suite in suites))
    options = [
        f"-oDir::State::Lists={work / 'lists'}",
        f"-oDir::Etc::SourceList={sources}",
        "-oDir::Etc::SourceParts=-",
        f"-oDir::Cache={work}",
        "-oAPT::Sandbox::User=root",
        "-oAcquire::Languages=none",
        "-oAcquire::Retries=3",
        "-oAcquire::Check-Valid-Until=false",  # a mirror that is days behind still serves what Debian has signed
    ]
    subprocess.run(["apt-get", "-qq", *options, "update"], check=True)
    return options


def _unpack(suite: str, work: Path, target: Path, options: list[str]) -> str:
    """Downloads and unpacks one suite; its version file is written last and marks it complete."""
    packages = work / suite
    packages.mkdir()
    names = [f"{name}/{suite}" for name in PACKAGES[suite]]
    subprocess.run(["apt-get", "-q", *options, "download", *names], cwd=packages, check=True)
    for package in packages.glob("*.deb"):
        subprocess.run(["dpkg", "-x", package, target], check=True)
        package.unlink()
    answer = subprocess.run([target / "usr/sbin/dockerd", "--version"], check=True, capture_output=True, text=True)
    version = answer.stdout.split()[2].split("+")[0].rstrip(",")
    (target / "version").write_text(f"{version}\n")
    return version


if __name__ == "__main__":
    main()
