"""Runs a command in a network of its own, and records what it asks of the world outside.

`unshare --net --mount python -m tests.stack.alone FOLDER COMMAND…` writes `FOLDER/asked.json`: the
names that were looked up, and the addresses that packets were sent to, loopback left out. There is
a route to everywhere, which nobody answers. The first of each is its own: it shows that a query
and a packet are seen.
"""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
from pathlib import Path

CONTROL_NAME = "control.test"
CONTROL_ADDRESS = "192.0.2.1:9"
_ALL_PROTOCOLS = 0x0003  # ETH_P_ALL (linux/if_ether.h)
_NETWORK = """
ip link set lo up
ip link add out0 type veth peer name out1
ip link set out0 arp off
ip addr add 10.99.0.2/24 dev out0
ip link set out0 up
ip link set out1 up
ip route add default dev out0
"""


def _name(query: bytes) -> str:
    labels, at = [], 12
    while length := query[at]:
        labels.append(query[at + 1 : at + 1 + length].decode())
        at += 1 + length
    return ".".join(labels)


def _resolve(resolver: socket.socket, names: list[str]) -> None:
    """Answers every query with "no such name"."""
    while True:
        query, client = resolver.recvfrom(4096)
        names.append(_name(query))
        resolver.sendto(query[:2] + b"\x81\x83" + query[4:6] + bytes(6) + query[12:], client)


def _destination(packet: bytes) -> str:
    """Returns the address and port that an IP packet is for."""
    if packet[0] >> 4 == 6:
        host, body = socket.inet_ntop(socket.AF_INET6, packet[24:40]), packet[40:]
    else:
        host, body = socket.inet_ntoa(packet[16:20]), packet[(packet[0] & 15) * 4 :]
    return f"{host}:{int.from_bytes(body[2:4], 'big')}"


def _watch(interface: socket.socket, addresses: list[str]) -> None:
    while True:
        packet, (_, _, kind, *_) = interface.recvfrom(65535)
        if kind == socket.PACKET_OUTGOING:
            addresses.append(_destination(packet))


def main(folder: Path, command: list[str]) -> int:
    """Returns the command's exit code."""
    # The kernel's own packets on a new interface; ::1 stays.
    Path("/proc/sys/net/ipv6/conf/default/disable_ipv6").write_text("1")
    for line in _NETWORK.strip().splitlines():
        subprocess.run(line.split(), check=True)
    configuration = folder / "resolv.conf"
    configuration.write_text("nameserver 127.0.0.1\n")
    subprocess.run(["mount", "--bind", configuration, "/etc/resolv.conf"], check=True)
    resolver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    resolver.bind(("127.0.0.1", 53))
    interface = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(_ALL_PROTOCOLS))
    interface.bind(("out0", _ALL_PROTOCOLS))
    names: list[str] = []
    addresses: list[str] = []
    threading.Thread(target=_resolve, args=(resolver, names), daemon=True).start()
    threading.Thread(target=_watch, args=(interface, addresses), daemon=True).start()
    with contextlib.suppress(socket.gaierror):
        socket.getaddrinfo(CONTROL_NAME, 443)
    host, port = CONTROL_ADDRESS.split(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
        control.sendto(b"", (host, int(port)))
    code = subprocess.run(command, cwd=folder, check=False).returncode
    asked = {"names": sorted(set(names)), "addresses": sorted(set(addresses))}
    (folder / "asked.json").write_text(json.dumps(asked))
    return code


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
