#!/usr/bin/env python3
"""Looks at all that crosses a link, as anybody on the way between the machines can.

usage: wire.py LINK

The machines say in plain datagrams which phase begins: `phase-sealed` or `phase-plain`. At the end (SIGTERM) it says
what it has seen, and fails if packets of pods, or what they say, were to be seen in a sealed phase, or if there was no
other phase, in which it must have seen them.
"""

import ipaddress
import signal
import socket
import sys

PODS = ipaddress.ip_network("10.42.0.0/16")
PORT = 51871
SECRET = b"what-pods-say"
ALL = 3  # (of Ethernet's protocols)


def stop(*_):
    raise SystemExit


def look(link, seen):
    phase = "sealed"
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL)) as listener:
        listener.bind((link, 0))
        while True:
            frame = listener.recv(65536)
            if frame[12:14] != b"\x08\x00":
                continue
            packet = frame[14:]
            ends = [ipaddress.ip_address(packet[12:16]), ipaddress.ip_address(packet[16:20])]
            body = packet[(packet[0] & 15) * 4 :]
            if b"phase-plain" in body:
                phase = "plain"
            elif b"phase-sealed" in body:
                phase = "sealed"
            found = seen[phase]
            found["all"] += 1
            if packet[9] == 17 and int.from_bytes(body[2:4], "big") == PORT:
                found["tunnel"] += 1
            if any(end in PODS for end in ends):
                found["pods"] += 1
            if SECRET in body:
                found["secrets"] += 1


def main():
    seen = {phase: dict.fromkeys(["all", "tunnel", "pods", "secrets"], 0) for phase in ["sealed", "plain"]}
    signal.signal(signal.SIGTERM, stop)
    try:
        look(sys.argv[1], seen)
    except SystemExit:
        pass
    sealed, plain = seen["sealed"], seen["plain"]
    for phase, found in seen.items():
        print(f"on the wire while {phase}: " + ", ".join(f"{what} {count}" for what, count in found.items()))
    good = sealed["tunnel"] > 100 and sealed["pods"] == sealed["secrets"] == 0
    good = good and plain["pods"] > 10 and plain["secrets"] > 0
    print("ok      nothing of pods is seen while sealed" if good else "NOT OK  nothing of pods is seen while sealed")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
