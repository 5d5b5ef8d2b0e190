"""TCP without copies, so that what is measured is the way and not its ends.

    python uncopied.py receive
    python uncopied.py send ADDRESS SECONDS CONNECTIONS

The sender sends the same pages of memory over and over, by sendfile; the receiver lets the kernel drop what arrived.
Printed are Gbit/s of all connections together, and the seconds that all the machine's processors worked per gigabyte.
"""

from __future__ import annotations

import multiprocessing
import os
import socket
import socketserver
import sys
import time
from pathlib import Path

PORT = 5300
SIZE = 1 << 20


class Receiver(socketserver.BaseRequestHandler):
    """Answers the end of a connection with the number of bytes that arrived."""

    def handle(self) -> None:
        buffer = bytearray(SIZE)  # never written to
        arrived = 0
        while count := self.request.recv_into(buffer, SIZE, socket.MSG_TRUNC):
            arrived += count
        self.request.sendall(str(arrived).encode())


def send(address: str, seconds: float) -> tuple[int, float]:
    """The bytes that arrived by one connection, and the seconds until all had."""
    memory = os.memfd_create("data")
    os.write(memory, bytes(SIZE))
    with socket.create_connection((address, PORT)) as connection:
        started = time.monotonic()
        while time.monotonic() < started + seconds:
            os.sendfile(connection.fileno(), memory, 0, SIZE)
        connection.shutdown(socket.SHUT_WR)
        return int(connection.recv(100)), time.monotonic() - started


def busy() -> float:
    """Seconds that all processors together have worked since boot."""
    numbers = map(int, Path("/proc/stat").read_text().split()[1:8])
    user, nice, system, _, _, interrupts, soft_interrupts = numbers
    return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK")


def main() -> None:
    if sys.argv[1] == "receive":
        with socketserver.ForkingTCPServer(("", PORT), Receiver) as server:
            server.serve_forever()
    address, seconds, connections = sys.argv[2], float(sys.argv[3]), int(sys.argv[4])
    with multiprocessing.Pool(connections) as pool:
        before = busy()
        sent = pool.starmap(send, [(address, seconds)] * connections)
        worked = busy() - before
    print(sum(arrived * 8 / 1e9 / took for arrived, took in sent), worked / (sum(arrived for arrived, _ in sent) / 1e9))


if __name__ == "__main__":
    main()
