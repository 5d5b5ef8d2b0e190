"""Runs inside a container's network, started by traffic.py: answers, asks once, or keeps asking. Standard library only.

``serve PORT`` echoes UDP of both families. ``ask`` reads ``[[service, address], ...]`` and prints a list of booleans.
``insist ADDRESS PORT SECONDS`` opens up to twenty UDP flows a second, gives each those seconds to be answered,
and prints ``sent`` and ``answered`` for each.
"""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

PATIENCE = 1.5
"""Seconds after which a question counts as dropped."""
INTERVAL = 0.05


def serve(port: str) -> None:
    with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as server:
        server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        server.bind(("::", int(port)))
        print("ready", flush=True)
        while True:
            data, sender = server.recvfrom(2048)
            server.sendto(data, sender)


def ask() -> None:
    questions = json.load(sys.stdin)
    with ThreadPoolExecutor(max_workers=len(questions)) as pool:
        print(json.dumps(list(pool.map(lambda question: _answered(*question), questions))))


def insist(address: str, port: str, seconds: str) -> None:
    while True:
        started = time.monotonic()
        print("sent", flush=True)
        with _udp(address, int(port), float(seconds)) as connection:
            if _reply(connection):
                print("answered", flush=True)
        time.sleep(max(0.0, started + INTERVAL - time.monotonic()))


def _answered(service: str, address: str) -> bool:
    protocol, _, port = service.partition(" ")
    try:
        return _ASK[protocol](address, port)
    except OSError:
        return False


def _tcp(address: str, port: str) -> bool:
    with socket.create_connection((address, int(port)), timeout=PATIENCE) as connection:
        connection.sendall(b"GET / HTTP/1.0\r\n\r\n")
        return bool(connection.recv(1))


def _ask_udp(address: str, port: str) -> bool:
    with _udp(address, int(port), PATIENCE) as connection:
        return _reply(connection)


def _icmp(address: str, _: str) -> bool:
    command = ["ping", "-n", "-q", "-c", "1", "-W", str(PATIENCE), address]
    return subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False).returncode == 0


_ASK: dict[str, Callable[[str, str], bool]] = {"tcp": _tcp, "udp": _ask_udp, "icmp": _icmp}


def _udp(address: str, port: int, patience: float) -> socket.socket:
    connection = socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET, socket.SOCK_DGRAM)
    connection.settimeout(patience)
    connection.connect((address, port))
    return connection


def _reply(connection: socket.socket) -> bool:
    try:
        connection.send(b"?")
        return connection.recv(16) == b"?"
    except OSError:
        return False


_MODES: dict[str, Callable[..., None]] = {"serve": serve, "ask": ask, "insist": insist}

if __name__ == "__main__":
    _MODES[sys.argv[1]](*sys.argv[2:])
