"""``make run``: the plugin in the foreground, and a dockerd beside it where none answers.

A dockerd of our own ends first, since its containers' last calls need the plugin; hence Ctrl-C is ours to pass on.
"""

from __future__ import annotations

import signal
import subprocess
import sys

from scripts.machine import COMMAND, end_abandoned, plugin_answers, some_docker


def main() -> None:
    end_abandoned()
    if plugin_answers():
        raise SystemExit("calico-libnetwork runs on this machine already.")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    plugin = subprocess.Popen([COMMAND, "run", *sys.argv[1:]], start_new_session=True)
    try:
        with some_docker():
            plugin.wait()
    except KeyboardInterrupt:
        print("Ending.", flush=True)
    finally:
        plugin.terminate()
        plugin.wait()
    sys.exit(max(plugin.returncode, 0))


if __name__ == "__main__":
    main()
