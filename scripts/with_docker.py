"""Run a command beside a dockerd: the machine's, or one of our own that ends with the command."""

from __future__ import annotations

import signal
import subprocess
import sys

from scripts.machine import some_docker


def main() -> None:
    with some_docker():
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the command, which decides
        command = subprocess.Popen(sys.argv[1:], preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL))
        signal.signal(signal.SIGTERM, lambda *_: command.terminate())
        status = command.wait()
    sys.exit(status if status >= 0 else 128 - status)


if __name__ == "__main__":
    main()
