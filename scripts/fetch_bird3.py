"""Unpack Debian 13's BIRD 3 with the C library it needs, for tests that hold for BIRD 2 and 3; nothing is installed.

The loader bears the program's name, since a BIRD is known by it. A second run is free.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from scripts.fetch_dockers import private_lists

SUITE = "trixie"
PACKAGES = (
    *("bird3", "libc6", "libssh-4", "libssl3t64", "libzstd1", "zlib1g"),
    *("libgssapi-krb5-2", "libkrb5-3", "libk5crypto3", "libkrb5support0", "libcom-err2", "libkeyutils1"),
)
LAUNCHER = """#!/bin/sh
here=$(dirname "$0")
exec "$here/loader/bird" --library-path "$(echo "$here"/tree/usr/lib/*-linux-gnu)" "$here/tree/usr/sbin/bird" "$@"
"""


def main() -> None:
    target = Path(sys.argv[1]) / "bird3"
    launcher = target / "bird"
    if launcher.exists():
        return
    target.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=target) as work:
        options = private_lists(Path(work), [SUITE])
        names = [f"{name}/{SUITE}" for name in PACKAGES]
        subprocess.run(["apt-get", "-q", *options, "download", *names], cwd=work, check=True)
        for package in Path(work).glob("*.deb"):
            subprocess.run(["dpkg", "-x", package, target / "tree"], check=True)
    (loader,) = (target / "tree/usr/lib").glob("*-linux-gnu/ld-linux-*.so.*")
    (target / "loader").mkdir(exist_ok=True)
    shutil.copy(loader, target / "loader" / "bird")
    complete = target / "bird.new"
    complete.write_text(LAUNCHER)
    complete.chmod(0o755)
    answer = subprocess.run([complete, "--version"], check=True, capture_output=True, text=True)
    complete.rename(launcher)
    print(f"{(answer.stdout + answer.stderr).strip()} of Debian {SUITE} is in {target}", flush=True)


if __name__ == "__main__":
    main()
